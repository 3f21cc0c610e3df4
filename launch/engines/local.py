"""Jobs as processes of this machine, in this folder, each on its share of the cores.

A job gets its own process group, so that Ctrl-C reaches it once, through the launcher;
on Linux it is also told to stop when the launcher itself is killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time

from fluid.console import pages
from launch.engines import Job

GRACE = 60.0  # seconds between asking a job to stop and killing it
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def _shares(jobs: int) -> list[set[int]]:
  """The cores of this process dealt out to jobs: two on all cores slow each other."""
  if sys.platform != "linux":
    return [set()] * jobs
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < jobs or not pages.on_cpu():
    return [set(cores)] * jobs
  return [
    set(cores[n * len(cores) // jobs : (n + 1) * len(cores) // jobs])
    for n in range(jobs)
  ]


class Engine:
  """See launch.engines.Engine."""

  def __init__(self, jobs: int, lock: int | None = None):
    self.slots = jobs
    self._lock = lock
    self._cores = _shares(jobs)
    self._on: dict[int, subprocess.Popen] = {}  # share -> the job that has it last

  def submit(self, job: Job) -> subprocess.Popen:
    env = {**(pages.ENV if pages.on_cpu() else {}), **os.environ, **job.env}
    env["PYTHONUNBUFFERED"] = "1"
    job.log.parent.mkdir(parents=True, exist_ok=True)
    share = next(
      n
      for n in range(self.slots)
      if n not in self._on or self._on[n].poll() is not None
    )

    def before():
      _PRCTL(_DEATH_SIGNAL, signal.SIGTERM)
      os.sched_setaffinity(0, self._cores[share])

    with open(job.log, "ab") as log:
      self._on[share] = subprocess.Popen(
        job.argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=before if _PRCTL else None,
        pass_fds=() if self._lock is None else (self._lock,),
      )
    return self._on[share]

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
