"""How a sweep stands, whatever runs it: for status, stop, logs and retry."""

import argparse
import fnmatch
import json
from pathlib import Path
from typing import Any

from fluid import files
from fluid.durable.lock import owner
from fluid.errors import ConfigError
from launch import engines, entries, order
from launch.entries import Entry
from launch.order import Order
from launch.remote import Remote


def open_sweep(
  workdir: Any, build=None
) -> tuple[Order, dict[str, Entry], Remote | None]:
  """What was asked for last, how each stage stands now, and the engine's side of it.

  Stages are those of all calls: another `--only` does not end what came before. The
  engine is None on this machine.
  """
  asked = order.load(workdir)
  stages = asked.stages(workdir, also=entries.saved(workdir))
  if asked.on == "local":
    return asked, {e.stage.id: e for e in _local(stages, workdir)}, None
  engine = asked.engine()
  remote = Remote(stages, asked.specs(stages, workdir, engine, build), workdir, engine)
  engines.patiently(remote.look)
  return asked, remote.entries, remote


def _local(stages, workdir: Path) -> list[Entry]:
  """By sweep.json; what runs there without a launcher does not run."""
  old, alive = entries.saved(workdir), owner(workdir) is not None
  out = []
  for stage in stages:
    record = old.get(stage.id, {})
    entry = Entry(stage, record.get("status", "waiting"), record.get("note", ""))
    if stage.finished():
      entry.status = "finished"
    elif entry.status == "running" and not alive:
      entry.status, entry.note = "interrupted", "launch.sweep goes on with it"
    elif entry.status == "running":
      entry.pid = record.get("pid", 0)
    # A tokenizer or cache that no run needed is in no record.
    if record or stage.kind == "run":
      out.append(entry)
  return out


def starts(entry: Entry) -> int:
  """How often the run was started again."""
  try:
    said = json.loads(files.read_text(entry.stage.folder / "starts.json"))
    return max(0, int(said["total"]) - 1)
  except (OSError, ValueError, KeyError):
    return 0


def chosen(found: dict[str, Entry], names: list[str]) -> list[str]:
  """Ids of the stages that names or patterns mean; all where there are none.

  Raises:
    ConfigError: a name means none.
  """
  out = []
  for pattern in names or ["*"]:
    fits = [
      i for i, e in found.items()
      if fnmatch.fnmatch(i, pattern) or fnmatch.fnmatch(e.stage.name, pattern)
    ]  # fmt: skip
    if not fits:
      runs = ", ".join(e.stage.name for e in found.values() if e.stage.kind == "run")
      raise ConfigError(f"no stage is named '{pattern}'; runs: {runs}")
    out += [i for i in fits if i not in out]
  return out


def parser(program: str, *, names: bool = False) -> argparse.ArgumentParser:
  """--workdir, and names of runs where the command takes them."""
  out = argparse.ArgumentParser(prog=f"python -m launch.{program}")
  out.add_argument("--workdir", required=True, help="of the whole sweep")
  if names:
    out.add_argument("run", nargs="*", help="names, with *; default: all")
  return out


def folder(args) -> Any:
  """The folder of the sweep, see files.place."""
  return files.place(args.workdir, "--workdir")
