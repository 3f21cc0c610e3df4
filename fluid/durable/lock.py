"""One owner of a folder at a time: a sweep, a run."""

import fcntl
import os
import socket
import time
from pathlib import Path

from fluid.config import ConfigError


def lock(folder: Path, *, wait: float = 0.0) -> int:
  """Takes a folder for this process, as long as it lives.

  The lock is the kernel's: it ends with the process, however that dies. Between hosts
  it holds where the file system passes locks on (NFS 4, Lustre, GPFS).

  Args:
    folder: exists.
    wait: seconds given to what a killed owner left running, to stop.

  Returns:
    The descriptor that holds the lock; close it to give the folder back.

  Raises:
    ConfigError: another process has the folder, naming it.
  """
  descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
  end = time.monotonic() + wait
  while True:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      break
    except BlockingIOError:
      pid, _, host = os.pread(descriptor, 256, 0).decode().strip().partition(" on ")
      here = host in ("", socket.gethostname())
      alive = not here or pid.isdigit() and _alive(int(pid))
      if alive or time.monotonic() > end:
        who = f"process {pid} on {host}" if alive else "what an earlier one left behind"
        os.close(descriptor)
        raise ConfigError(
          f"{folder} is in use by {who}; wait for it or stop it"
        ) from None
      time.sleep(0.5)
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
  return descriptor


def owner(folder: Path) -> int | None:
  """The process of this host that has the folder; None where nothing here has it."""
  try:
    with open(folder / ".lock", "rb+") as f:
      try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
      except BlockingIOError:
        pid, _, host = f.read(256).decode().strip().partition(" on ")
  except OSError:
    return None
  return int(pid) if pid.isdigit() and host == socket.gethostname() else None


def _alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True
