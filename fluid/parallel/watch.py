"""Of several processes: which one failed first, and which one stands still.

Each says where it is in the key-value store of jax's coordination service, and what it
fails by. A thread looks there. What it finds becomes the last line and the exit status
of all: the others would else say only that one is gone, or wait for it for ever.
"""

import collections
import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable

from fluid.errors import REQUEUE

WAITS = "steps"  # Of a process that waits for the devices, and so for the others.
# Where one process may have work for as long as it takes that others have not: a cache
# to copy, a program to compile.
LONG = frozenset(("evaluations", "rest", "data", "restore", "compile"))
PATIENCE = 900.0  # Seconds that a wait for a step may take.
AGAIN = "start all of them again: the run goes on from its last checkpoint"
_FAILED, _PLACES = "fluid/failed", "fluid/at/"
# Seconds that a process has to end by itself, by an error that all of them have or by
# what the network says, once another one has failed.
_OWN = 5.0


class Watch:
  """Looks after the other processes of a run.

  Args:
    client: of jax's coordination service.
    leave: (text, status) ends this process.

  Attributes:
    failed: what the first process that failed said: (text, exit status).
  """

  def __init__(
    self,
    client,
    process: int,
    processes: int,
    leave: Callable[[str, int], None],
    *,
    period: float | None = None,
    own: float = _OWN,
  ):
    self._client, self._leave = client, leave
    self._process, self._processes = process, processes
    # A thousand processes ask 256 times a second, all together.
    self._period, self._own = period or max(1.0, processes / 256), own
    self._where: Callable[[], tuple[int, str]] | None = None
    self._waiting = 0
    self._patience = 0.0
    self._host = socket.gethostname()
    self._place: tuple[int, str] | None = None
    self._since = 0.0
    self._seen: dict[int, tuple[str, float]] = {}
    self._asked = 0.0
    self.failed: tuple[str, int] | None = None
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread; it must not ask a service that is being shut down."""
    self._stop.set()
    if threading.current_thread() is not self._thread:
      self._thread.join()

  @contextlib.contextmanager
  def steps(self, where: Callable[[], tuple[int, str]], patience: float):
    """In this block the process makes steps; where they end, so does the run.

    Args:
      where: -> (step, what it does there); WAITS where it waits for all devices.
      patience: seconds that a wait may take; 0: any.
    """
    self._patience, self._where = patience, where
    try:
      yield
    finally:
      self._where = None

  @contextlib.contextmanager
  def waiting(self):
    """In this block the process waits for the others, whatever `where` says."""
    self._waiting += 1
    try:
      yield
    finally:
      self._waiting -= 1

  def fail(self, text: str, status: int) -> None:
    """Tells the others why this process ends, where none has before it."""
    self._stop.set()
    who = f"process {self._process} on {self._host}: "
    with contextlib.suppress(Exception):  # One has, or the service is gone.
      self._publish(who + text, status)
      time.sleep(2 * self._period)  # Until all have heard it.

  def _publish(self, text: str, status: int) -> None:
    self._client.key_value_set(_FAILED, json.dumps([text, status]))

  def _run(self) -> None:
    while not self._stop.wait(self._period):
      try:
        with contextlib.suppress(Exception):  # Nobody has failed.
          text, status = json.loads(self._client.key_value_try_get(_FAILED))
          self.failed = text, status
          break
        self._look()
      except Exception:  # The service is gone, which jax tells the process.
        return
    if self.failed is None or self._stop.wait(self._own):
      return
    if self._process == 0:  # The service is here: the others have to hear it, too.
      time.sleep(2 * self._period)
    if (place := self._at()) and place[1] != WAITS:
      faulthandler.dump_traceback(sys.stderr)  # Of one that stands still: where.
    self._leave(*self.failed)

  def _at(self) -> tuple[int, str] | None:
    if not (where := self._where):
      return None
    step, does = where()
    return step, WAITS if self._waiting else does

  def _look(self) -> None:
    """Says where this process is; where it has waited for long, looks at the others."""
    now = time.monotonic()
    if not (place := self._at()):
      self._place = None
      return
    if place != self._place:
      self._place, self._since = place, now
      self._seen.clear()
      said = json.dumps([*place, self._host])
      self._client.key_value_set(f"{_PLACES}{self._process}", said, True)
      return
    # The others have to stand still for half of the time: who looks does so ten times.
    half = self._patience / 2
    if not half or place[1] != WAITS or now - self._since < half:
      return
    if now - self._asked < half / 10:
      return
    self._asked = now
    for key, value in self._client.key_value_dir_get(_PLACES):
      process = int(key.rsplit("/", 1)[1])
      if self._seen.get(process, ("", 0.0))[0] != value:
        self._seen[process] = value, now
    still = {p: v for p, (v, t) in self._seen.items() if now - t >= half}
    if now - self._since >= self._patience and len(still) == self._processes:
      said, ends = verdict({p: tuple(json.loads(v)) for p, v in still.items()})
      said = f"no step for {now - self._since:.0f} s: {said}"
      if ends:
        self._publish(f"{said}; {AGAIN}", REQUEUE)
      elif self._process == 0:
        os.write(2, f"warning: {said}\n".encode())
      self._since = now


def verdict(places: dict[int, tuple[int, str, str]]) -> tuple[str, bool]:
  """Who is waited for, and whether that will not end by itself.

  Args:
    places: process -> (step, what it does there, host), of processes that stand still.

  Returns:
    What to tell of them; False where the others wait for what may be LONG.
  """
  busy = {p for p, (_, does, _) in places.items() if does != WAITS}
  first = min(step for step, _, _ in places.values())
  behind = busy or {p for p, (step, _, _) in places.items() if step == first}
  groups = collections.defaultdict(list)
  for process in sorted(set(places) - behind):
    groups[places[process][0]].append(process)
  if not groups:
    return f"all processes wait for the devices at step {first}", True
  stuck = ", ".join(
    f"process {p} on {places[p][2]} is at step {places[p][0]}"
    + (f" ({places[p][1]})" if p in busy else "")
    for p in sorted(behind)[:8]
  )
  stuck += f" and {len(behind) - 8} more" if len(behind) > 8 else ""
  waits = "; ".join(f"{_ranges(v)} wait at step {k}" for k, v in groups.items())
  ends = any(places[p][1] not in LONG for p in behind)
  return f"{stuck}, and {waits}", ends


def _ranges(numbers: Iterable[int]) -> str:
  """1, 2, 3, 7 -> '1-3, 7'."""
  out: list[list[int]] = []
  for n in numbers:
    if out and n == out[-1][-1] + 1:
      out[-1] = [out[-1][0], n]
    else:
      out.append([n])
  return ", ".join("-".join(map(str, r)) for r in out)
