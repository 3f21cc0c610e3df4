"""Carries out a sweep: tokenizers once, caches once, then every run; and goes on.

  python -m launch.sweep --config configs/sweeps/toy_study.py --workdir DIR --on local

On a scheduler (--on slurm, gke, tpu_vm, skypilot; launch/README.md) this submits what
is ready and returns: the same command again, or --watch, goes on. Here it waits:
finished stages are skipped, interrupted ones started again (they resume by themselves),
a failed one is recorded and the sweep goes on past it. The exit status is 1 if any
failed; else 75 if any was preempted (it ended with that status itself). DIR/sweep.json
says how each stands, DIR/logs has what each printed. Never imports jax.
"""

import argparse
import ast
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from fluid import files
from fluid.durable import compiled
from fluid.durable.lock import lock
from fluid.errors import REQUEUE, ConfigError
from fluid.remote import BucketError, is_url
from launch import cost, engines, errors
from launch.entries import Entry, last_line, save
from launch.order import Order, choose, hold
from launch.plan import Stage, command
from launch.progress import Screen, progress
from launch.remote import Remote, code_of

__all__ = ["Sweep", "choose", "launch", "main", "submit"]

WATCH_SECONDS = 30.0  # between two looks at a scheduler
WATCH_FAILURES = 20  # in a row, after which --watch gives a scheduler up
LEFT_SECONDS = 90.0  # given to the jobs of a killed launcher to stop


class Sweep:
  """The stages of one sweep on one engine.

  Args:
    stages: in an order in which each comes after those it needs.
    workdir: where sweep.json and logs/ go.
    engine: a launch.engines.Engine.
    build: stage -> argv; a seam for tests.
    poll_seconds: between looks at the jobs.
  """

  def __init__(
    self,
    stages: list[Stage],
    workdir: Path,
    engine: engines.Engine,
    *,
    build: Callable[[Stage], list[str]] = command,
    screen: Screen | None = None,
    poll_seconds: float = 0.5,
  ):
    self.entries = {s.id: Entry(s) for s in stages}
    self._workdir = workdir
    self._engine = engine
    self._build = build
    self._screen = screen or Screen()
    self._poll_seconds = poll_seconds
    self._handles: dict[str, object] = {}
    self._stopped_by: int | None = None

  def run(self) -> int:
    """Runs what is left to run; returns the exit status (128 + n after signal n)."""
    for entry in self.entries.values():
      if entry.stage.finished():
        entry.skipped = True
        difference = entry.stage.mismatch()
        if difference:
          self._end(entry, "failed", f"finished with another config: {difference}")
        else:
          entry.status = "finished"
    self._drop_unneeded()
    self._save()
    for number in (signal.SIGINT, signal.SIGTERM):
      signal.signal(number, self._on_signal)
    with self._screen:
      while self._stopped_by is None and self._step():
        time.sleep(self._poll_seconds)
      if self._stopped_by is not None:
        self._cancel()
      self._save()
      self._screen.update(self.entries.values(), final=True)
    if self._stopped_by is not None:
      return 128 + self._stopped_by
    left = {e.status for e in self.entries.values()}
    if left & {"failed", "blocked"}:
      return 1
    return REQUEUE if "interrupted" in left else 0

  def _step(self) -> bool:
    """Collects what ended, starts what can start; False when nothing is left."""
    changed = False
    for name, handle in list(self._handles.items()):
      code = self._engine.poll(handle)
      if code is not None:
        del self._handles[name]
        changed = True
        self._collect(self.entries[name], code)
    for name, entry in self.entries.items():
      if entry.status != "waiting":
        continue
      needed = {n: self.entries[n].status for n in entry.stage.needs}
      broken = [n for n, s in needed.items() if s in ("failed", "blocked")]
      if broken:
        self._end(entry, "blocked", f"needs {broken[0]}")
        changed = True
      elif len(self._handles) < self._engine.slots and all(
        s == "finished" for s in needed.values()
      ):
        self._start(name, entry)
        changed = True
    if changed:
      self._save()
    self._screen.update(self.entries.values())
    return bool(self._handles)

  def _start(self, name: str, entry: Entry):
    entry.status, entry.started = "running", time.time()
    try:
      handle = self._engine.submit(self._job(entry.stage))
      self._handles[name], entry.pid = handle, getattr(handle, "pid", 0)
    except OSError as e:
      self._end(entry, "failed", str(e))

  def _job(self, stage: Stage) -> engines.Job:
    env = {"JAX_COMPILATION_CACHE_DIR": compiled.folder(self._workdir)}
    env = {k: v for k, v in env.items() if k not in os.environ}
    log = self._workdir / "logs" / self.entries[stage.id].log
    return engines.Job(stage.id, tuple(self._build(stage)), env, log)

  def _collect(self, entry: Entry, code: int):
    if code == 0 and entry.stage.finished():
      self._end(entry, "finished", "")
      return
    if code in (REQUEUE, -signal.SIGTERM, -signal.SIGINT):  # Or before it listened.
      self._end(entry, "interrupted", "start the sweep again to go on")
      return
    if code == -signal.SIGKILL and self._stopped_by is not None:
      why = "it did not end in time and was killed: it goes on from what it saved last"
      self._end(entry, "interrupted", why)
      return
    last = last_line(self._workdir / "logs" / entry.log)
    why = f"exit status {code}" if code else "stopped before its last step"
    self._end(entry, "failed", f"{why}: {last}" if last else why)

  def _end(self, entry: Entry, status: str, note: str):
    entry.status, entry.note = status, note
    entry.seconds = time.time() - entry.started if entry.started else 0.0

  def _drop_unneeded(self):
    """Leaves out tokenizers and caches whose runs are all finished or not chosen."""
    needed: set[str] = set()
    for name, entry in reversed(list(self.entries.items())):
      if entry.stage.kind in ("run", "tune") or name in needed or entry.skipped:
        if entry.status == "waiting":
          needed.update(entry.stage.needs)
      else:
        del self.entries[name]

  def _on_signal(self, number, frame):
    del frame
    self._stopped_by = number

  def _cancel(self):
    self._engine.cancel(list(self._handles.values()))
    for name, handle in self._handles.items():
      code = self._engine.poll(handle)
      self._collect(self.entries[name], REQUEUE if code is None else code)

  def _save(self):
    save(self._workdir, self.entries.values())


def main(argv: list[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  if args.jobs < 1:
    raise ConfigError(f"--jobs must be at least 1, not {args.jobs}")
  workdir = files.place(args.workdir, "--workdir")
  if args.price is not None:
    if not args.dry_run or args.on == "local":
      raise ConfigError("--price is of the table that --dry-run prints for a scheduler")
    if not 0 <= args.price < math.inf:
      raise ConfigError(f"--price {args.price:g}: it is dollars for an hour of a chip")
  order = Order(
    args.config,
    args.on,
    args.topology,
    args.only,
    _pairs(args.override, "--override"),
    _pairs(args.set, "--set"),
    args.jobs,
  )
  if order.on == "local" and (order.topology or order.options):
    raise ConfigError("--topology and --set are of a scheduler: --on slurm, gke, ...")
  if order.on == "local" and args.watch:
    raise ConfigError("--watch is of a scheduler: on this machine a sweep waits anyway")
  if order.on != "local" and order.jobs > 1:
    raise ConfigError(f"--jobs is of this machine: --on {order.on} takes all that fits")
  return launch(
    order,
    workdir,
    dry_run=args.dry_run,
    watch=args.watch,
    price=args.price,
    report=args.report,
    plain=args.plain,
  )


def launch(
  order: Order,
  workdir: Any,
  *,
  dry_run: bool = False,
  watch: bool = False,
  price: float | None = None,
  report: bool = False,
  plain: bool = False,
  also: Iterable[str] = (),
) -> int:
  """Carries out an order; -> the exit status.

  Args:
    also: ids of stages beside those of the order's `only`.
  """
  if dry_run:
    return _dry_run(order, workdir, price)
  screen = Screen(progress, plain=plain)
  if order.on == "local":
    stages = order.stages(workdir, also)
    workdir.mkdir(parents=True, exist_ok=True)
    held = lock(workdir, wait=LEFT_SECONDS)
    order.save(workdir)
    engine = engines.make("local", jobs=order.jobs, lock=held)
    code = Sweep(stages, workdir, engine, screen=screen).run()
  else:
    code = submit(order, workdir, watch=watch, screen=screen)
  if report and code < 128:
    argv = [sys.executable, "-m", "analysis.report", f"--workdir={workdir}"]
    reported = subprocess.run(argv).returncode
    code = code or int(reported != 0)
  return code


def submit(
  order: Order,
  workdir: Any,
  *,
  watch: bool = False,
  screen: Screen | None = None,
  build: Callable[[Stage], list[str]] | None = None,
  also: Iterable[str] = (),
) -> int:
  """Submits what is ready to a scheduler; with `watch` until nothing is left to do."""
  screen = screen or Screen(progress)
  engine = order.engine()
  stages = order.stages(workdir, also)
  specs = order.specs(stages, workdir, engine, build)
  for spec in specs.values():
    engine.render(spec)  # What does not fit is refused before anything is written.

  def act() -> tuple[list[Entry], list[Entry]]:
    sweep = Remote(stages, specs, workdir, engine)
    with hold(workdir):
      order.save(workdir)
      return sweep.look(), sweep.submit()

  with screen:
    entries, sent = engines.patiently(act)
    while True:
      screen.update(entries)
      going = [e for e in entries if e.status in (*engines.ALIVE, "waiting")]
      if not watch or not going:
        break
      time.sleep(WATCH_SECONDS)
      # What it took once it takes again, though a queue may be full meanwhile.
      entries, sent = engines.patiently(
        act, WATCH_FAILURES, WATCH_SECONDS, (engines.Refused, BucketError)
      )
    screen.update(entries, final=True)
  if going and not watch:
    print(
      f"{len(sent)} submitted now, {len(going)} to come; python -m launch.status "
      f"--workdir {workdir} says how they stand, this command again goes on"
    )
  return code_of(entries)


def _dry_run(order: Order, workdir: Any, price: float | None) -> int:
  """Prints what would be run or submitted, and what it takes; writes nothing.

  A bucket is left alone: it need not be within reach yet.
  """
  look = not is_url(workdir)
  stages = order.stages(workdir, look=look)

  def state(stage: Stage) -> str:
    return ("finished" if stage.finished() else "to do") if look else "finished or not"

  if order.on == "local":
    for stage in stages:
      print(f"# {stage.id} ({state(stage)})\n{shlex.join(command(stage))}")
    return 0
  engine = order.engine()
  specs = order.specs(stages, workdir, engine)
  rendered = {name: engine.render(spec) for name, spec in specs.items()}
  for stage in stages:
    made, key = rendered[stage.id], specs[stage.id].key
    print(f"# {stage.id} ({state(stage)}) on {stage.hardware} as {key}")
    for path, text in made.files.items():
      print(f"# {path}\n{text.rstrip()}")
    print(shlex.join(made.submit), end="\n\n")
  print("\n".join(cost.table(stages, price)))
  if not look:
    print(f"{workdir} was not looked at: what is finished there is listed, too")
  return 0


def _pairs(given: list[str], flag: str) -> dict[str, Any]:
  out: dict[str, Any] = {}
  for text in given:
    key, equals, value = text.partition("=")
    if not key or not equals:
      raise ConfigError(f"{flag} {text}: is KEY=VALUE")
    out[key] = _value(value) if flag == "--override" else value
  return out


def _value(text: str) -> Any:
  """A config value: a number, True, a tuple or None as Python writes it, else text."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="python -m launch.sweep")
  add = parser.add_argument
  add("--config", required=True, help="file with def sweep()")
  add("--workdir", required=True, help="of the whole sweep")
  add("--on", default="local", choices=sorted(engines.ENGINES))
  add("--topology", default="", help="of runs: v5p:4x4x4, v5e, gpu:1x8, cpu:2x1")
  add("--set", action="append", default=[], metavar="KEY=VALUE", help="of the engine")
  add("--override", action="append", default=[], metavar="KEY=VALUE", help="config key")
  add("--jobs", type=int, default=1, help="stages that run together, on this machine")
  add("--only", default="", help="runs whose name matches, with *")
  add("--dry-run", action="store_true", help="print the commands, and what they cost")
  add("--price", type=float, help="dollars for an hour of a chip (see --dry-run)")
  add("--watch", action="store_true", help="goes on until nothing is left to do")
  add("--report", action="store_true", help="write the report after")
  add("--plain", action="store_true", help="lines instead of a table")
  return parser


if __name__ == "__main__":
  errors.end(main)
