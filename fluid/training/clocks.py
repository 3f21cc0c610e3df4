"""How long steps take, and where the time before the first one goes."""

import contextlib
import os
import pathlib
import time


class Timer:
  """Rates between log points; evaluation and checkpoints are kept out of them.

  Attributes:
    excluded, waited: seconds since the last `lap`, outside training and for input.
  """

  def __init__(self, clock=time.perf_counter):
    self._clock = clock
    self._last = clock()
    self.excluded = self.waited = 0.0

  @contextlib.contextmanager
  def exclude(self):
    """Time in this block does not count as training."""
    start = self._clock()
    yield
    self.excluded += self._clock() - start

  @contextlib.contextmanager
  def wait(self):
    """Time in this block is waiting for input."""
    start = self._clock()
    yield
    self.waited += self._clock() - start

  def lap(self) -> tuple[float, float]:
    """Seconds of training since the last lap, and the share spent waiting."""
    now = self._clock()
    seconds = max(now - self._last - self.excluded, 1e-9)
    share = self.waited / seconds
    self._last, self.excluded, self.waited = now, 0.0, 0.0
    return seconds, share


class Startup:
  """Where the time between starting a process and its first step goes.

  Attributes:
    seconds: of each part, in the order they were measured.
  """

  def __init__(self, clock=time.time):
    self._clock = clock
    self._last = clock()
    began = _process_start()
    self.seconds = {"imports": self._last - began} if began else {}

  @contextlib.contextmanager
  def part(self, name: str):
    """Time in this block belongs to `name`."""
    start = self._clock()
    yield
    self.seconds[name] = self.seconds.get(name, 0.0) + self._clock() - start

  def finish(self) -> str:
    """The line that says it all; what no part claimed is 'rest'."""
    inside = sum(v for k, v in self.seconds.items() if k != "imports")
    self.seconds["rest"] = max(self._clock() - self._last - inside, 0.0)
    self.seconds = {k: round(v, 2) for k, v in self.seconds.items()}
    parts = ", ".join(f"{k} {v:.1f}" for k, v in self.seconds.items())
    return f"first step after {sum(self.seconds.values()):.1f} s: {parts}"


def _process_start() -> float | None:
  """When this process was started, in seconds since 1970 (None: not known here)."""
  try:
    ticks = int(
      pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
    )
    uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
  except (OSError, IndexError, ValueError):
    return None
  return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
