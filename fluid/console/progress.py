"""Long work says how far it is: a line with rate and time left, every few seconds."""

import time
from collections.abc import Callable, Iterable, Iterator

SECONDS = 10.0  # Between two lines.


def clock(seconds: float) -> str:
  """1:02:03, or 2:03 below an hour."""
  minutes, s = divmod(int(seconds), 60)
  h, m = divmod(minutes, 60)
  return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"


class Progress:
  """Counts what is done of a total.

  Args:
    name: of the work.
    total: pieces of it.
    unit: what a piece is, in the plural.
    say: takes the lines.
  """

  def __init__(self, name: str, total: int, unit: str, say: Callable[[str], None]):
    self._name, self._total, self._unit, self._say = name, total, unit, say
    self._done = self._skipped = 0
    self._start = self._last = time.monotonic()

  def skip(self, n: int) -> None:
    """n pieces were done before: they count, but not for the rate."""
    self._done += n
    self._skipped += n

  def add(self, n: int = 1) -> None:
    """n pieces more are done."""
    self._done += n
    now = time.monotonic()
    if now - self._last < SECONDS:
      return
    self._last = now
    rate = (self._done - self._skipped) / max(now - self._start, 1e-9)
    self._say(
      f"{self._name}: {self._done}/{self._total} {self._unit}, {rate:.3g}/s, "
      f"ETA {clock((self._total - self._done) / rate)}"
    )


def silent(items: Iterable, name: str, total: int) -> Iterable:
  """Stands in for `track` where nothing is to be said."""
  del name, total
  return items


def track(
  items: Iterable,
  name: str,
  total: int,
  *,
  say: Callable[[str], None],
  before: Callable[[], None] = lambda: None,
) -> Iterator:
  """Yields the items, batches of some work, and says how far it is.

  Args:
    items: what to go through.
    name: of the work.
    total: how many items there will be.
    say: takes the lines.
    before: called before each item; what it raises ends the work.
  """
  progress = Progress(name, total, "batches", say)
  for item in items:
    before()
    yield item
    progress.add()
