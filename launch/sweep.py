"""Carries out a sweep: tokenizers once, caches once, then every run; and goes on.

  python -m launch.sweep --config configs/sweeps/toy_study.py --workdir DIR --on local

Finished stages are skipped, interrupted ones started again (they resume by themselves),
a failed one is recorded and the sweep goes on past it. The exit status is 1 if any
failed; else 75 if any was preempted (it ended with that status itself). DIR/sweep.json
says how each stands, DIR/logs has what each printed. Never imports jax.
"""

import argparse
import dataclasses
import fnmatch
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from fluid import files
from fluid.durable.lock import lock
from fluid.errors import REQUEUE, ConfigError
from launch import engines
from launch.plan import Stage, command, plan
from launch.progress import Screen, progress

ENDED = ("finished", "failed", "blocked")
LEFT_SECONDS = 90.0  # given to the jobs of a killed launcher to stop


@dataclasses.dataclass
class Entry:
  """How a stage stands: waiting, running, interrupted, or one of ENDED."""

  stage: Stage
  status: str = "waiting"
  note: str = ""
  started: float = 0.0
  seconds: float = 0.0
  skipped: bool = False

  def record(self) -> dict:
    """The stage's object in sweep.json."""
    stage = self.stage
    return {
      "name": stage.name,
      "kind": stage.kind,
      "config": stage.config,
      "overrides": stage.overrides,
      "cell": stage.cell if stage.kind == "run" else "",
      "size": stage.run.model.size if stage.kind == "run" else "",
      "steps": stage.run.steps if stage.kind == "run" else 0,
      "status": self.status,
      "note": self.note,
      "seconds": round(self.seconds, 1),
      "command": shlex.join(["python", *command(stage)[1:]]),
    }


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
      self._handles[name] = self._engine.submit(self._job(entry.stage))
    except OSError as e:
      self._end(entry, "failed", str(e))

  def _job(self, stage: Stage) -> engines.Job:
    env = {"JAX_COMPILATION_CACHE_DIR": str(self._workdir / "cache")}
    env = {k: v for k, v in env.items() if k not in os.environ}
    log = self._log(stage)
    return engines.Job(stage.id, tuple(self._build(stage)), env, log)

  def _log(self, stage: Stage) -> Path:
    name = stage.name if stage.kind == "run" else f"{stage.kind}-{stage.name}"
    return self._workdir / "logs" / f"{name}.log"

  def _collect(self, entry: Entry, code: int):
    if code == 0 and entry.stage.finished():
      self._end(entry, "finished", "")
      return
    if code == REQUEUE:
      self._end(entry, "interrupted", "start the sweep again to go on")
      return
    last = last_line(self._log(entry.stage))
    why = f"exit status {code}" if code else "stopped before its last step"
    self._end(entry, "failed", f"{why}: {last}" if last else why)

  def _end(self, entry: Entry, status: str, note: str):
    entry.status, entry.note = status, note
    entry.seconds = time.time() - entry.started if entry.started else 0.0

  def _drop_unneeded(self):
    """Leaves out tokenizers and caches whose runs are all finished or not chosen."""
    needed: set[str] = set()
    for name, entry in reversed(list(self.entries.items())):
      if entry.stage.kind == "run" or name in needed or entry.skipped:
        if entry.status == "waiting":
          needed.update(entry.stage.needs)
      else:
        del self.entries[name]

  def _on_signal(self, number, frame):
    del frame
    self._stopped_by = number

  def _cancel(self):
    self._engine.cancel(list(self._handles.values()))
    for name in self._handles:
      self._end(self.entries[name], "interrupted", "start the sweep again to go on")

  def _save(self):
    """Writes sweep.json, keeping stages that only an earlier call knew of."""
    path = self._workdir / "sweep.json"
    try:
      old = {f"{r['kind']}/{r['name']}": r for r in json.loads(path.read_text())}
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
      old = {}
    for name, entry in self.entries.items():
      record = entry.record()
      if entry.skipped and name in old and entry.status == "finished":
        record["seconds"] = old[name].get("seconds", 0.0)
      old[name] = record
    files.write_json(path, list(old.values()))


def last_line(log: Path) -> str:
  """The last line of a log that says something, shortened."""
  try:
    lines = log.read_text(errors="replace").strip().splitlines()
  except FileNotFoundError:
    return ""
  return lines[-1].strip()[-160:] if lines else ""


def choose(stages: list[Stage], pattern: str) -> list[Stage]:
  """The runs whose names match, and all stages they need."""
  names = [s.name for s in stages if s.kind == "run"]
  if not fnmatch.filter(names, pattern):
    raise ConfigError(f"--only {pattern} matches no run; runs: {', '.join(names)}")
  keep: set[str] = set()
  for stage in reversed(stages):
    if stage.id in keep or (
      stage.kind == "run" and fnmatch.fnmatch(stage.name, pattern)
    ):
      keep |= {stage.id, *stage.needs}
  return [s for s in stages if s.id in keep]


def main(argv: list[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  if args.jobs < 1:
    raise ConfigError(f"--jobs must be at least 1, not {args.jobs}")
  stages = plan(args.config, args.workdir)
  if args.only:
    stages = choose(stages, args.only)
  if args.dry_run:
    for stage in stages:
      state = "finished" if stage.finished() else "to do"
      print(f"# {stage.id} ({state})\n{shlex.join(command(stage))}")
    return 0
  workdir = args.workdir.resolve()
  workdir.mkdir(parents=True, exist_ok=True)
  held = lock(workdir, wait=LEFT_SECONDS)
  sweep = Sweep(
    stages,
    workdir,
    engines.make(args.on, jobs=args.jobs, lock=held),
    screen=Screen(progress, plain=args.plain),
  )
  code = sweep.run()
  if args.report and code < 128:
    report = [sys.executable, "-m", "analysis.report", f"--workdir={workdir}"]
    reported = subprocess.run(report).returncode
    code = code or int(reported != 0)
  return code


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(prog="python -m launch.sweep")
  parser.add_argument("--config", required=True, help="file with def sweep()")
  parser.add_argument("--workdir", required=True, type=Path, help="of the whole sweep")
  parser.add_argument("--on", default="local", choices=sorted(engines.ENGINES))
  parser.add_argument("--jobs", type=int, default=1, help="stages that run together")
  parser.add_argument("--only", default="", help="runs whose name matches, with *")
  parser.add_argument("--dry-run", action="store_true", help="print the commands")
  parser.add_argument("--report", action="store_true", help="write the report after")
  parser.add_argument("--plain", action="store_true", help="lines instead of a table")
  return parser


if __name__ == "__main__":
  try:
    sys.exit(main())
  except (ConfigError, FileNotFoundError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
