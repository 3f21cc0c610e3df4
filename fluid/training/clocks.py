"""Where the wall time of a run goes, over all its starts: into steps, or lost, and why.

Goodput is the share of wall time whose steps were kept. WORKDIR/goodput.json has the
account; metrics.jsonl drops what is beyond a checkpoint, and so cannot.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator

from fluid import files

FILE = "goodput.json"
EVERY = 10.0  # Seconds between two writes of it; a kill -9 makes the last ones `down`.
STEPS = "steps"
# Of losses: metrics.jsonl has the share of each as lost/CAUSE; docs/analysis.md says
# what they mean.
CAUSES = (
  "imports", "join", "data", "restore", "compile", "rest",
  "input", "evaluations", "saves", "redone", "down",
)  # fmt: skip


def made(name: str) -> bool:
  """Whether a clock made this field of metrics.jsonl: equal runs differ in it."""
  names = ("time", "images_per_s", "mfu", "input_wait", "goodput")
  return name in names or name.startswith("lost/")


class Clocks:
  """What time goes to, one cause at a time, so that the parts add up to the whole.

  Args:
    since: when the process was started, in seconds since 1970; None: now.
    join: seconds since then that it took to find other processes.

  Attributes:
    seconds: of this start, by cause.
    cause: what time goes to now.
  """

  def __init__(
    self,
    since: float | None = None,
    *,
    join: float = 0.0,
    clock=time.perf_counter,
    wall=time.time,
  ):
    self._clock, self._wall = clock, wall
    now = wall()
    self._since = now if since is None else since
    before = {"imports": now - self._since - join, "join": join}
    self.seconds = {k: v for k, v in before.items() if v > 0}
    self.cause, self._last = "rest", clock()
    self._lap: dict[str, float] = {}
    self._past: dict[str, float] = {}  # Of earlier starts.
    self._file: pathlib.Path | None = None
    self._written = clock()

  def to(self, cause: str) -> str:
    """Time goes to `cause` from now on; returns what it went to before."""
    now, before = self._clock(), self.cause
    self.seconds[before] = self.seconds.get(before, 0.0) + now - self._last
    self.cause, self._last = cause, now
    return before

  @contextlib.contextmanager
  def of(self, cause: str) -> Iterator[None]:
    """Time in this block goes to `cause`."""
    before = self.to(cause)
    try:
      yield
    finally:
      self.to(before)

  def started(self) -> dict[str, float]:
    """What the first step waited for, in seconds; from here on time goes to steps."""
    self.to(STEPS)
    self.lap()
    return {k: round(self.seconds[k], 2) for k in CAUSES if k in self.seconds}

  def lap(self) -> tuple[float, float]:
    """Seconds of steps since the last lap, and the share of them without input."""
    self.to(self.cause)
    now = {k: self.seconds.get(k, 0.0) for k in (STEPS, "input")}
    steps, waited = (v - self._lap.get(k, 0.0) for k, v in now.items())
    self._lap = now
    seconds = max(steps + waited, 1e-9)
    return seconds, waited / seconds

  def resume(self, file: pathlib.Path | None, saved: dict[str, float]) -> None:
    """Goes on with the account of earlier starts.

    Steps beyond the checkpoint are done again: their time is lost.

    Args:
      file: `FILE` of the run; None on processes that write nothing.
      saved: `total` of when the checkpoint was saved that this start goes on from;
        empty where it goes on from none.
    """
    self._file = file
    old = _read(file) if file else {}
    past = dict(old.get("seconds", {}))
    if sum(past.values()) < sum(saved.values()):  # The file was lost.
      past = dict(saved)
    again = past.get(STEPS, 0.0) - saved.get(STEPS, 0.0)
    if again > 0:
      past[STEPS] -= again
      past["redone"] = past.get("redone", 0.0) + again
    if until := old.get("until"):
      past["down"] = past.get("down", 0.0) + max(self._since - until, 0.0)
    self._past = past
    self.write()

  def total(self) -> dict[str, float]:
    """Seconds by cause, over all starts."""
    self.to(self.cause)
    names = dict.fromkeys([STEPS, *CAUSES, *self._past, *self.seconds])
    both = {k: self._past.get(k, 0.0) + self.seconds.get(k, 0.0) for k in names}
    return {k: round(v, 3) for k, v in both.items() if v or k == STEPS}

  def shares(self) -> dict[str, float]:
    """'goodput' and each 'lost/CAUSE': shares of wall time that add up to 1."""
    total = self.total()
    whole = max(sum(total.values()), 1e-9)
    named = {"goodput" if k == STEPS else f"lost/{k}": v for k, v in total.items()}
    return {k: round(v / whole, 5) for k, v in named.items()}

  def write(self, *, finished: bool = False) -> None:
    """Writes the account; what comes after the end of a finished run is no loss."""
    self._written = self._clock()
    if self._file:
      until = None if finished else round(self._wall(), 3)
      content = {"until": until, "seconds": self.total()}
      files.write_json(self._file, self.shares() | content)

  def tend(self) -> None:
    """`write`, now and then."""
    if self._clock() - self._written > EVERY:
      self.write()


def _read(file: pathlib.Path) -> dict:
  try:
    return json.loads(file.read_text())
  except (OSError, ValueError):
    return {}


def process_start() -> float | None:
  """When this process was started, in seconds since 1970 (None: not known here)."""
  try:
    ticks = int(
      pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]
    )
    uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
  except (OSError, IndexError, ValueError):
    return None
  return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")
