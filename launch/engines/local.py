"""Jobs as processes of this machine.

A job gets its own process group, so that Ctrl-C reaches it once, through the launcher;
on Linux it is also told to stop when the launcher itself is killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from fluid.console import pages
from launch.engines import Job

ROOT = Path(__file__).resolve().parents[2]
GRACE = 60.0  # seconds between asking a job to stop and killing it
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def _die_with_parent():
  _PRCTL(_DEATH_SIGNAL, signal.SIGTERM)


class Engine:
  """See launch.engines.Engine."""

  def __init__(self, jobs: int, lock: int | None = None):
    self.slots = jobs
    self._lock = lock

  def submit(self, job: Job) -> subprocess.Popen:
    env = {**(pages.ENV if pages.on_cpu() else {}), **os.environ, **job.env}
    env["PYTHONUNBUFFERED"] = "1"
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "ab") as log:
      return subprocess.Popen(
        job.argv,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_parent if _PRCTL else None,
        pass_fds=() if self._lock is None else (self._lock,),
      )

  def poll(self, handle: subprocess.Popen) -> int | None:
    return handle.poll()

  def cancel(self, handles: list[subprocess.Popen]) -> None:
    for handle in handles:
      if handle.poll() is None:
        handle.send_signal(signal.SIGTERM)
    end = time.monotonic() + GRACE
    for handle in handles:
      try:
        handle.wait(max(0.0, end - time.monotonic()))
      except subprocess.TimeoutExpired:
        os.killpg(handle.pid, signal.SIGKILL)
        handle.wait()
