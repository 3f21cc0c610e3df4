"""One sweep at a time in a working folder, even after its launcher was killed."""

import fcntl
import os
import time
from pathlib import Path

from fluid.config import ConfigError

WAIT = 90.0  # seconds given to the jobs of a killed launcher to stop


def lock(workdir: Path) -> int:
  """Takes the workdir for this sweep; waits for jobs that a killed sweep left.

  Returns:
    The descriptor that holds the lock (backends hand it to their jobs).

  Raises:
    ConfigError: another sweep goes on there.
  """
  descriptor = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
  end = time.monotonic() + WAIT
  while True:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      break
    except BlockingIOError:
      owner = os.pread(descriptor, 32, 0).decode().strip() or "0"
      alive = owner != "0" and _alive(int(owner))
      if alive or time.monotonic() > end:
        who = f"process {owner}" if alive else "a job of an earlier sweep"
        raise ConfigError(
          f"{workdir} is in use by {who}; wait for it or stop it"
        ) from None
      time.sleep(0.5)
  os.ftruncate(descriptor, 0)
  os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
  return descriptor


def _alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True
