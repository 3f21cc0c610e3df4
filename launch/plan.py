"""A sweep file -> the stages it takes: tokenizers, caches of tokens, runs, tuning.

launch.points says what a sweep file is. What a run needs first is read off its config:
runs with the same tokenizer and data share one tokenizer and one cache. No device is
touched.
"""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fluid import files
from fluid.config import ConfigError, Run, from_file
from fluid.config.identity import (
  differences,
  digest,
  identity,
  of_cache,
  of_tokenizer,
  places,
  stored,
)
from fluid.remote import is_url
from launch import code, recommended
from launch.hardware import TPUS, Hardware, parse
from launch.points import load_points, resolve

_FOLDERS = {"tokenizer": "tokenizers", "data": "data", "run": "runs", "tune": "runs"}
MODULES = {
  "tokenizer": "fluid.tokenizers.train",
  "data": "fluid.prepare",
  "run": "fluid.train",
  "tune": "fluid.evaluate",
}


@dataclasses.dataclass(frozen=True)
class Stage:
  """One command of the sweep and the folder it fills.

  Attributes:
    kind: key of MODULES.
    name: of the folder below tokenizers/, data/ or runs/.
    folder: what the command writes, see files.place; `done.json` in it means finished
      (for a cache: a metadata.json that lists both splits; for tuning: a table of the
      last step).
    config, overrides: as in the sweep file, with the paths of `needs` added.
    needs: ids of the stages that come first.
    run: the resolved config.
    hardware: None where the machine is this one.
    tune: grid and measure, of a stage of that kind.
  """

  kind: str
  name: str
  folder: Any
  config: str
  overrides: dict[str, Any]
  needs: tuple[str, ...]
  run: Run
  hardware: Hardware | None = None
  tune: tuple[str, str] = ("", "")

  @property
  def id(self) -> str:
    return f"{self.kind}/{self.name}"

  @property
  def cell(self) -> str:
    return self.run.model.cell

  def finished(self) -> bool:
    """Whether the folder says so (for a run: for as many steps as planned now)."""
    if self.kind == "data":
      return {"train", "val"} <= set(
        read_json(self.folder, "metadata.json").get("splits", ())
      )
    if self.kind == "tune":
      return f"sweep-{self.run.steps}.json" in files.names(self.folder / "eval")
    done = read_json(self.folder, "done.json")
    if not done:
      return False
    return self.kind != "run" or done.get("step", self.run.steps) >= self.run.steps

  def mismatch(self) -> str:
    """Names the first key in which a run already in `folder` differs; '' if none.

    One whose config cannot be read differs as well.
    """
    if self.kind != "run":
      return ""
    try:
      old, now = identity(from_file(self.folder / "config.json")), identity(self.run)
    except FileNotFoundError:
      return ""
    except ConfigError as e:
      return str(e)
    for key in differences(old, now):
      return f"{key} was {old.get(key)!r}, now {now.get(key)!r}"
    return ""


def command(stage: Stage, python: str = sys.executable) -> list[str]:
  """The argv that carries out a stage."""
  argv = [python, "-m", MODULES[stage.kind]]
  if stage.kind == "tune":
    grid, by = stage.tune
    return [*argv, f"--workdir={stage.folder}", f"--sweep={grid}", f"--by={by}"]
  argv.append(f"--config={stage.config}")
  argv += [f"--config.{key}={value}" for key, value in stage.overrides.items()]
  if stage.kind == "run":
    argv.append(f"--workdir={stage.folder}")
  return argv


def plan(
  sweep_file: str | Path,
  workdir: str | Path,
  *,
  overrides: Mapping[str, Any] | None = None,
  topology: str | None = None,
  shares: bool = True,
  look: bool = True,
) -> list[Stage]:
  """All stages of a sweep, each after those it needs.

  Args:
    overrides: of all runs, beside their own.
    topology: None: hardware does not matter, all runs here. Else what runs take: a
      topology, or a generation such as 'v5e' where the sweep says 'recommended', or ''
      for what the sweep says.
    shares: whether those machines have this one's files.
    look: whether to use what is in the folder already.

  Raises:
    ConfigError: a sweep file or a point of it cannot be used.
  """
  workdir = files.place(workdir, "--workdir")
  stages: dict[str, Stage] = {}
  made = _made(workdir) if look else {}
  for point in load_points(sweep_file):
    point = point | {"overrides": {**point.get("overrides", {}), **(overrides or {})}}
    for stage in _stages(point, workdir, made, topology, shares, look):
      if stage.kind == "run" and stage.id in stages:
        raise ConfigError(f"{sweep_file} yields two runs named '{stage.name}'")
      first = stages.setdefault(stage.id, stage)
      if stage.kind == "data":
        _check_shared(first.run, stage.run, stage.name)
  return list(stages.values())


def _made(workdir: Any) -> dict[str, str]:
  """Digest of an identity -> the folder that runs here have of it, whatever its name.

  Digests change with the layout of the config; what is there goes on being used.
  """
  out: dict[str, str] = {}
  there = {kind: files.names(workdir / kind) for kind in ("tokenizers", "data")}
  for folder in sorted(files.names(workdir / "runs")):
    try:
      run = from_file(workdir / "runs" / folder / "config.json")
    except (ConfigError, FileNotFoundError, NotADirectoryError):
      continue
    tokenizer, cache = Path(run.tokenizer.path).name, Path(run.data.cache).name
    for kind, name, key in (
      ("tokenizers", tokenizer, _tokenizer(run)),
      ("data", cache, _cache(run, tokenizer)),
    ):
      if name in there[kind]:
        out[key] = name
  return out


def _tokenizer(run: Run) -> str:
  return f"{run.tokenizer.kind}-{digest(of_tokenizer(run), 8)}"


def _cache(run: Run, tokenizer: str) -> str:
  """A name that is the same on a machine that has the source's files and on others."""
  made_from = of_cache(run, files=False) | {"tokenizer": tokenizer}
  return f"{run.data.source.kind}-{run.tokenizer.kind}-{digest(made_from, 8)}"


def _prepared(workdir: Any, run: Run, tokenizer: str) -> str:
  """Name of the one cache there that says it is of this data and this tokenizer.

  No run has to have used it. '' for none, or where several say so.

  Args:
    tokenizer: its folder.
  """
  names = sorted(files.names(workdir / "data"))
  if not names:
    return ""  # And nothing is asked of a tokenizer that may be far away.
  folder = files.place(tokenizer, "config key 'tokenizer.path'")
  weights = read_json(folder, "config.json").get("weights_sha256")
  wanted = of_cache(run, files=False) | {"tokenizer.weights": weights}
  found = []
  for name in names:
    said = read_json(workdir / "data" / name, "metadata.json")
    try:
      there = stored(said.get("config", {}))
    except ConfigError:
      continue
    if wanted.items() <= there.items():
      found.append(name)
  return found[0] if len(found) == 1 else ""


def _check_shared(a: Run, b: Run, name: str) -> None:
  """Refuses one cache for files that lie in two places: nobody knows if they differ."""
  for key, value in vars(a.data.source).items():
    if (other := getattr(b.data.source, key)) != value:
      raise ConfigError(
        f"two runs would share the cache {name}, but their config key "
        f"'data.source.{key}' is {value!r} and {other!r}: name a cache of each in "
        "config key 'data.cache', or sweep them in two workdirs"
      )


def _stages(
  point: dict,
  workdir: Any,
  made: dict[str, str],
  topology: str | None,
  shares: bool,
  look: bool,
) -> Iterator[Stage]:
  config, overrides = point["config"], dict(point.get("overrides", {}))
  run = resolve(config, overrides)
  _check_source(run.data.source)
  machine, more = _machine(point, run, topology)
  moved = {} if topology is None else _moved(run, shares)

  def stage(kind, name, needs, run=run, more=None):
    return Stage(
      kind, name, workdir / _FOLDERS[kind] / name, config,
      overrides | moved | (more or {}),
      needs, run, machine(kind), tuple(point.get("tune") or ("", "")),
    )  # fmt: skip

  needs: tuple[str, ...] = ()
  if not run.tokenizer.path and not run.data.cache:
    name = made.get(_tokenizer(run), _tokenizer(run))
    overrides["tokenizer.path"] = str(workdir / "tokenizers" / name)
    yield stage("tokenizer", name, needs)
    needs = (f"tokenizer/{name}",)
  if not run.data.cache:
    tokenizer = overrides.get("tokenizer.path") or run.tokenizer.path
    name = _cache(run, Path(tokenizer).name)
    name = made.get(name) or look and _prepared(workdir, run, tokenizer) or name
    overrides["data.cache"] = str(workdir / "data" / name)
    yield stage("data", name, needs)
    needs += (f"data/{name}",)
  # What the sweep says itself goes before what is recommended.
  more = {k: v for k, v in more.items() if k not in overrides}
  run = resolve(config, overrides | more) if more else run
  yield stage("run", point["name"], needs, run, more)
  if point.get("tune"):
    yield stage("tune", point["name"], (f"run/{point['name']}",), run, more)


def _check_source(source: Any) -> None:
  """Refuses images in a bucket, where few sources read them, before chips are paid."""
  if getattr(source, "buckets", False):
    return
  for key, value in vars(source).items():
    if isinstance(value, str):
      files.on_disk(value, f"config key 'data.source.{key}'")


def _machine(point: dict, run: Run, topology: str | None):
  """-> (kind of stage -> its hardware or None, overrides that go with a run's)."""
  if topology is None:
    return lambda kind: None, {}
  said = point.get("hardware", "")
  said = said if isinstance(said, dict) else {"run": said}
  more: dict[str, Any] = {}
  text = said.get("run", "") if topology in ("", *TPUS) else topology
  if text == "recommended":
    found, more = recommended.of(run.model.size, topology or recommended.GENERATION)
  elif not text or topology in TPUS:
    raise ConfigError(
      f"run '{point['name']}' says nothing of its hardware: --topology v5p:4x4x4, "
      "gpu:1x8 (hosts x GPUs) or cpu:1x1 (hosts x processes)"
    )
  else:
    found = parse(text)
    if said.get("run") == "recommended":  # The mesh that topologies.md has of it.
      more = recommended.mesh(run.model.size, found)
  if unknown := said.keys() - MODULES:
    raise ConfigError(
      f"'hardware' of run '{point['name']}' is for the unknown stage "
      f"'{unknown.pop()}'; stages: {', '.join(MODULES)}"
    )
  others = {kind: parse(said[kind]) for kind in said if kind != "run"}
  others["run"] = found
  others.setdefault("tune", found)
  return lambda kind: others.get(kind, found.one_host()), more


def _moved(run: Run, shares: bool) -> dict[str, Any]:
  """Overrides by which jobs find what the config names by paths from this folder.

  They start in the folder of their code, so what is in that keeps its path.
  """

  def path(text: str) -> str:
    if not text or is_url(text) or os.path.isabs(text) or code.has(text):
      return text
    return os.path.abspath(text)

  # What is part of an identity, as the path of a folder of images, is not changed.
  own = getattr(run.data.source, "path", "")
  if path(own) != own and places(run, path).data.source.path == own:
    raise ConfigError(
      f"config key 'data.source.path' is {own!r}, a path from this folder, where jobs "
      "do not start: name it from / as their machines have it"
    )
  before, after = (identity(r, no=()) for r in (run, places(run, path)))
  moved = {k: after[k] for k in differences(before, after)}
  if moved and not shares:
    key = next(iter(moved))
    bucket = "" if key.startswith("data.source.") else ", or as gs://..."
    raise ConfigError(
      f"config key '{key}' is {before[key]!r}, a path from this folder, which the "
      f"machines do not have: name it from / as they have it{bucket}"
    )
  return {k: tuple(v) if isinstance(v, list) else v for k, v in moved.items()}


def check_fit(stage: Stage) -> None:
  """Refuses hardware that a run cannot be divided over, or that cannot hold it.

  Raises:
    ConfigError: naming the remedy.
  """
  h, run, model = stage.hardware, stage.run, stage.run.model
  if stage.kind != "run" or h is None:
    return
  what = f"run '{stage.name}' does not fit {h}"
  devices = h.chips if h.tpu or h.gpus else h.processes
  axes = {k: getattr(run.mesh, k) for k in ("data", "fsdp", "model", "slice")}
  if h.slices > 1:
    axes |= {"slice": h.slices}
  fixed = math.prod(n for n in axes.values() if n > 0)
  shape = ", ".join(f"{k} {v}" for k, v in axes.items())
  if devices % fixed or (devices != fixed and -1 not in axes.values()):
    raise ConfigError(
      f"{what}: mesh {shape} takes {fixed} devices or a multiple, and "
      f"there are {devices}; name another --topology, or --override mesh.fsdp=N"
    )
  split = devices // max(1, axes["model"])
  if run.batch % (run.accum * split):
    raise ConfigError(
      f"{what}: batch {run.batch} in {run.accum} microbatches does "
      f"not divide by {split} devices; --override batch=N, or another --topology"
    )
  rows = recommended.reports()
  name = recommended.name(model.size, model.cell, f"{h.kind}:{h.topology}", h.slices)
  report = rows.get(name)
  if report and not report["fits"]:
    raise ConfigError(
      f"{what}: the compiler says {report.get('error', 'too large')} "
      "(launch/topologies.md has what fits)"
    )
  # Of a device: parameters, EMA and two moments in float32, and its memory.
  sizes = {(r["size"], r["cell"]): r["params"] for r in rows.values()}
  memory = {r["topology"].split(":")[0]: r["memory"]["limit"] for r in rows.values()}
  shards = axes["model"] * (axes["fsdp"] if axes["fsdp"] > 0 else devices // fixed)
  each = sizes.get((model.size, model.cell), 0) * 16 / shards
  if each > (most := memory.get(h.kind, math.inf)):
    raise ConfigError(
      f"{what}: its state alone takes {each / 1e9:,.0f} GB of a device, which has "
      f"{most / 1e9:,.0f}; name another --topology, or --override mesh.fsdp=N"
    )


def read_json(folder: Any, name: str) -> dict:
  """An object in a folder; empty where there is none or it is damaged."""
  try:
    return json.loads(files.read_text(folder / name))
  except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
    return {}
