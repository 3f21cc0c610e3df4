"""What was asked for: a sweep, where, on what; kept in WORKDIR/launch.json.

So launch.status, launch.logs, launch.stop and launch.retry are told the folder alone.
They read the sweep file again, and on a scheduler take the checkout's commit.
"""

import contextlib
import dataclasses
import fnmatch
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fluid import files, remote, shipped
from fluid.durable import compiled
from fluid.durable.lock import lock
from fluid.errors import ConfigError
from launch import code, engines
from launch.hardware import Hardware
from launch.plan import Stage, check_fit, command, plan
from launch.spec import RunSpec

FILE = "launch.json"


@dataclasses.dataclass(frozen=True)
class Order:
  """A call of launch.sweep.

  Attributes:
    config: the sweep file.
    on: engine.
    topology: what runs take, in place of what the sweep says; see launch.plan.
    only: runs whose names match.
    overrides: config keys of all runs.
    options: of the engine.
    jobs: that run together on this machine.
  """

  config: str
  on: str = "local"
  topology: str = ""
  only: str = ""
  overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
  options: dict[str, str] = dataclasses.field(default_factory=dict)
  jobs: int = 1

  def stages(
    self, workdir: Any, also: Iterable[str] = (), *, look: bool = True
  ) -> list[Stage]:
    """What there is to do, in an order in which each comes after those it needs.

    Args:
      also: ids of stages that `only` does not keep out.
      look: whether to use what is in the folder already.
    """
    engine = None if self.on == "local" else self.engine()
    if engine is None or not engine.buckets:
      files.on_disk(workdir, "--workdir")
    elif not remote.is_url(workdir) and not engine.sees(workdir):
      ways = " or ".join(f"--set {k}={v}" for k, v in engine.mounts.items())
      raise ConfigError(
        f"--on {self.on} needs a work folder that outlives its machines, and that this "
        f"one sees too: --workdir gs://BUCKET/FOLDER, or {ways}"
      )
    stages = plan(
      self.config,
      workdir,
      overrides=self.overrides,
      topology=self.topology if engine else None,
      shares=engine is None or engine.shares,
      look=look,
    )
    stages = choose(stages, self.only, also) if self.only else stages
    for stage in stages:
      check_fit(stage)
    return stages

  def engine(self) -> engines.Remote:
    """Raises ConfigError where an option is missing or unknown."""
    return engines.remote(self.on, self.options)

  def specs(
    self,
    stages: list[Stage],
    workdir: Any,
    engine: engines.Remote,
    build: Callable[[Stage], list[str]] | None = None,
  ) -> dict[str, RunSpec]:
    """Id of a stage -> what the engine gets.

    Args:
      build: stage -> argv; a seam for tests.
    """
    source = engine.code(workdir)
    env = {"FLUID_COMMIT": source.commit, "PYTHONUNBUFFERED": "1"}
    out = {}
    for stage in stages:
      path = stage.config.partition(":")[0]
      if not code.tracked(path):
        raise ConfigError(
          f"{path} is not in git, so a job would not have it: git add {path}"
        )
      assert stage.hardware
      argv = build(stage) if build else command(stage, "python")
      h = stage.hardware
      out[stage.id] = RunSpec(
        Path(self.config).stem, stage.id, tuple(argv), env | kept(workdir, h),
        str(workdir), h, source,
      )  # fmt: skip
    return out

  def save(self, workdir: Any) -> None:
    """Writes launch.json; says whose it was, where that was another sweep's.

    Raises:
      ConfigError: the folder is of another sweep of the same name.
    """
    config = os.path.abspath(self.config)
    place = {"config": config} if os.path.exists(config) else {}
    said = dataclasses.asdict(self) | place
    there = ""
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError):
      there = json.loads(files.read_text(workdir / FILE))["config"]
    other = there and there != said["config"] and not _alike(there, said["config"])
    if other and Path(there).name == Path(config).name:
      raise ConfigError(
        f"{workdir} is of the sweep {there}, and {said['config']} has the same name: "
        "choose another --workdir, or rename one of them (if they are one, that was "
        f"moved, remove {workdir / FILE})"
      )
    if other:
      print(
        f"{workdir} was of the sweep {there}: launch.status, stop, logs and retry are "
        f"of {said['config']} from now on, and of the other after its launch.sweep"
      )
    files.write_json(workdir / FILE, said)


def _alike(old: str, new: str) -> bool:
  """Whether one sweep file is a copy of the other, as in another clone."""
  one, two = (Path(shipped.find(name)) for name in (old, new))
  if one.name != two.name or not (one.is_file() and two.is_file()):
    return False
  return one.read_bytes() == two.read_bytes()


def kept(workdir: Path | str, hardware: Hardware) -> dict[str, str]:
  """The environment that says where jobs keep what XLA compiled.

  As the submitting shell has it, or in the sweep's folder. On CPUs each run has its
  own: nodes may differ, and machine code with them.
  """
  name = "JAX_COMPILATION_CACHE_DIR"
  if (told := os.environ.get(name)) is not None:
    return {name: told}
  one = hardware.tpu or hardware.gpus
  return {name: f"{workdir}/{compiled.NAME}"} if one else {}


def load(workdir: Any) -> Order:
  """What was asked for in a folder.

  Raises:
    ConfigError: nothing was, or it cannot be read.
  """
  try:
    said = json.loads(files.read_text(workdir / FILE))
    lists = {k: tuple(v) for k, v in said["overrides"].items() if isinstance(v, list)}
    return Order(**said | {"overrides": said["overrides"] | lists})
  except FileNotFoundError:
    raise ConfigError(
      f"no sweep in {workdir}: python -m launch.sweep --workdir {workdir} begins one"
    ) from None
  except (ValueError, TypeError, KeyError) as e:
    raise ConfigError(f"{workdir / FILE} is damaged: run launch.sweep again") from e


def choose(stages: list[Stage], pattern: str, also: Iterable[str] = ()) -> list[Stage]:
  """The runs whose names match, the stages `also`, and all stages they need."""
  names = [s.name for s in stages if s.kind == "run"]
  if not fnmatch.filter(names, pattern):
    raise ConfigError(f"--only {pattern} matches no run; runs: {', '.join(names)}")
  keep = set(also)
  for stage in reversed(stages):
    if stage.id in keep or (
      stage.kind in ("run", "tune") and fnmatch.fnmatch(stage.name, pattern)
    ):
      keep |= {stage.id, *stage.needs}
  return [s for s in stages if s.id in keep]


@contextlib.contextmanager
def hold(workdir: Any, wait: float = 60.0) -> Iterator[None]:
  """Keeps others from submitting meanwhile; it waits for them, as they take seconds.

  A bucket has no lock: there it is the names of jobs that keep one from being twice.
  """
  if remote.is_url(workdir):
    yield
    return
  workdir.mkdir(parents=True, exist_ok=True)
  end = time.monotonic() + wait
  while True:
    try:
      descriptor = lock(workdir)
      break
    except ConfigError:
      if time.monotonic() > end:
        raise
      time.sleep(0.5)
  try:
    yield
  finally:
    os.close(descriptor)
