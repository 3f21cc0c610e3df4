"""Sweeps on stand-ins of schedulers, whose stages end as they are told to."""

import json
import time
from pathlib import Path

from fluid import files
from launch import code, order, sweep
from tests import schedulers

COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMAGE = f"registry/fluid@sha256:{'0' * 64}"
OPTIONS = {
  "slurm": {
    "setup": "source /shared/venv/bin/activate",
    "partition": "gpu",
    "exclusive": "",
  },
  "gke": {"image": IMAGE, "claim": "work", "queue": "team"},
  "tpu_vm": {"zone": "us-east5-a", "repository": "https://host/fluid.git"},
  "skypilot": {
    "repository": "https://host/fluid.git",
    "gpu": "H100",
    "mount": "/data=gs://bucket",
  },
}


class Machine:
  """A sweep on stand-ins: `submit()`, the folder, and how its stages are to end."""

  def __init__(self, study, folder):
    self.study, self.folder = study, folder
    self.workdir, self.state = folder / "w", folder / "state"
    self.modes: dict[str, str] = {}

  def build(self, stage):
    mode = self.modes.get(stage.id.split("-")[0], "ok")
    return ["python", str(self.folder / "fake.py"), str(stage.folder), mode]

  def order(self, engine, **changes):
    own = {"gke": {"mount": str(self.folder)}}
    own |= {name: {"setup": "true"} for name in ("slurm", "skypilot", "tpu_vm")}
    options = OPTIONS[engine] | own.get(engine, {})
    where = "cpu:1x1" if engine in ("slurm", "gke", "skypilot") else "v5e:1x1"
    return order.Order(str(self.study), engine, where, options=options, **changes)

  def submit(self, engine, **changes):
    asked = self.order(engine, **changes)
    return sweep.submit(asked, self.workdir, build=self.build)

  def until(self, engine, done, seconds=120):
    """Submits again until the states are as wanted."""
    end = time.monotonic() + seconds
    while True:
      result = self.submit(engine)
      if done(found := self.states()):
        return result, found
      assert time.monotonic() < end, found
      time.sleep(0.3)

  def states(self):
    records = json.loads(files.read_text(self.workdir / "sweep.json"))
    return {f"{r['kind']}/{r['name'].split('-')[0]}": r["status"] for r in records}

  def begins(self, name, seconds=60):
    """Waits for a job to do something: its scheduler says before that it runs."""
    end = time.monotonic() + seconds
    while name not in self.starts() and time.monotonic() < end:
      time.sleep(0.05)

  def starts(self):
    return {
      p.parent.name: int(p.read_text() or 0) for p in self.workdir.glob("*/*/starts")
    }


def install(study, folder, patch) -> Machine:
  """In `folder`, with the stand-ins in the place of commands and no code copied."""
  env = schedulers.install(folder / "bin", folder / "state")
  for key, value in env.items():
    patch.setenv(key, value)
  patch.setattr(code, "_state", lambda root: (COMMIT, "HEAD"))
  patch.setattr(
    code, "write", lambda c: Path(c.folder).mkdir(parents=True, exist_ok=True)
  )
  (folder / "fake.py").write_text(schedulers.FAKE)
  return Machine(study, folder)


def specs_with(build):
  """The argv of fake stages for commands that have no seam for it."""
  original = order.Order.specs
  return lambda self, stages, workdir, engine, _=None: original(
    self, stages, workdir, engine, build
  )
