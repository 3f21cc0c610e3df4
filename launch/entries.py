"""How the stages of a sweep stand: what sweep.json says, whatever runs them."""

import dataclasses
import json
import shlex
from collections.abc import Iterable
from typing import Any

from fluid import files
from launch.plan import Stage, command

STOPPED = ("failed", "blocked", "cancelled")  # Goes on only when it is asked to.


@dataclasses.dataclass
class Entry:
  """One stage.

  Attributes:
    status: waiting, queued, running, restarting, held, interrupted, finished, lost, or
      one of STOPPED.
    note: why.
    key, engine: what a scheduler knows it by.
    pid: of its process, where it runs on this machine under a launcher.
  """

  stage: Stage
  status: str = "waiting"
  note: str = ""
  started: float = 0.0
  seconds: float = 0.0
  skipped: bool = False
  engine: str = "local"
  key: str = ""
  pid: int = 0

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
      **({"engine": self.engine, "key": self.key} if self.key else {}),
      **({"pid": self.pid} if self.pid and self.status == "running" else {}),
    }

  @property
  def log(self) -> str:
    """The name of its log."""
    name = self.stage.name
    return f"{name if self.stage.kind == 'run' else f'{self.stage.kind}-{name}'}.log"


def save(workdir: Any, entries: Iterable[Entry]) -> None:
  """Writes sweep.json, keeping stages that only an earlier call knew of."""
  old = saved(workdir)
  for entry in entries:
    name, record = entry.stage.id, entry.record()
    if entry.skipped and name in old and entry.status == "finished":
      record["seconds"] = old[name].get("seconds", 0.0)
    old[name] = record
  files.write_json(workdir / "sweep.json", list(old.values()))


def saved(workdir: Any) -> dict[str, dict]:
  """Id of a stage -> its record in sweep.json; empty where there is none."""
  try:
    records = json.loads(files.read_text(workdir / "sweep.json"))
    return {f"{r['kind']}/{r['name']}": r for r in records}
  except (FileNotFoundError, json.JSONDecodeError, KeyError):
    return {}


# Slurm's own lines, which come after those of the program and say its status alone.
_SLURM = ("srun: ", "slurmstepd: ")


def last_line(log: Any) -> str:
  """The last line of a log that says something, shortened."""
  lines = files.tail(log, 65_536).decode(errors="replace").strip().splitlines()
  own = [line for line in lines[-64:] if not line.startswith(_SLURM)]
  return (own or lines or [""])[-1].strip()[-160:]
