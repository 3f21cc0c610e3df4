"""One owner of a folder at a time: a sweep, a run."""

import contextlib
import fcntl
import os
import socket
import sys
import time
from pathlib import Path

from fluid.config import ConfigError
from fluid.errors import REQUEUE


class AwayError(ConfigError):
  """A folder that another machine has, or had: it may be free again later."""

  exit_code = REQUEUE


def lock(folder: Path, *, wait: float = 0.0) -> int:
  """Takes a folder for this process, as long as it lives.

  The lock is the kernel's: it ends with the process, however that dies. Between hosts
  it holds where the file system passes locks on (NFS 4, Lustre, GPFS). Of a machine
  that is lost it stays until the file system gives it up: NFS 4 after its lease, 90 s.

  Args:
    folder: exists.
    wait: seconds given to an owner that is not seen to live: to what a killed one left
      running, to stop, and to a lock of another machine, which may be gone, to end.

  Returns:
    The descriptor that holds the lock; close it to give the folder back.

  Raises:
    ConfigError: another process has the folder, naming it.
    AwayError: so has one of another machine.
  """
  descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
  end = time.monotonic() + wait
  said = False
  while True:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      break
    except BlockingIOError:
      pid, host, here = _said(os.pread(descriptor, 256, 0))
      alive = here and pid is not None and _alive(pid)
      if alive or time.monotonic() > end:
        os.close(descriptor)
        raise _in_use(folder, pid, host, here, alive) from None
      if not here and not said:
        said = True
        print(
          f"waiting up to {wait:.0f} s for {folder}, which process {pid} on {host} "
          "has or had",
          file=sys.stderr,
          flush=True,
        )
      time.sleep(0.5)
  os.ftruncate(descriptor, 0)
  os.pwrite(
    descriptor, f"{os.getpid()} on {socket.gethostname()}\n{_numbers()}\n".encode(), 0
  )
  return descriptor


def owner(folder: Path) -> int | None:
  """The process of this host that has the folder; None where nothing here has it."""
  try:
    with open(folder / ".lock", "rb+") as f:
      try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None
      except BlockingIOError:
        pid, _, here = _said(f.read(256))
  except OSError:
    return None
  return pid if here else None


def _said(content: bytes) -> tuple[int | None, str, bool]:
  """Process, host, and whether it is this host and the process one of its numbers."""
  who, _, numbers = content.decode().strip().partition("\n")
  pid, _, host = who.partition(" on ")
  # Before, the name of the host was all there was.
  here = numbers == _numbers() if numbers else host in ("", socket.gethostname())
  return (int(pid) if pid.isdigit() else None), host, here


def _numbers() -> str:
  """What the numbers of processes here belong to: a start of the kernel, a container.

  Containers may share the host's name, and their processes have the same numbers.
  """
  with contextlib.suppress(OSError):  # Elsewhere than on Linux.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  return ""


def _in_use(folder, pid, host: str, here: bool, alive: bool) -> ConfigError:
  if not here:
    return AwayError(
      f"{folder} is in use by process {pid} on {host}; wait for it or stop it. If that "
      f"machine is gone for good and its lock stays, remove {folder / '.lock'}"
    )
  who = f"process {pid} on {host}" if alive else "what an earlier one left behind"
  return ConfigError(f"{folder} is in use by {who}; wait for it or stop it")


def _alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True
