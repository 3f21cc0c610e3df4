"""Metrics of a checkpoint: `python -m fluid.evaluate --workdir DIR [--weights raw]`.

  python -m fluid.evaluate --workdir DIR --protocol=imagenet50k [--quick]
  python -m fluid.evaluate --workdir DIR --sweep=guidance=1:8:0.5,weights=ema,raw

Runs the evaluators of the run's config, or those named by --evals, prints a table and
writes WORKDIR/eval/<step>-<weights>[-<protocol>][-<evals>][-<overrides>].json, so
that calls which differ overwrite nothing. Values that metrics.jsonl does not have for
this step are appended to it, unless --override or --protocol changed what is measured.
--sweep writes WORKDIR/eval/sweep-<step>.json, every point, and
WORKDIR/sample.json, the best one.
"""

import ast
import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from fluid import api, config, evals, remote
from fluid.config import identity
from fluid.console import cli
from fluid.data import pipeline
from fluid.durable.workdir import commit
from fluid.evals import metrics, protocols, records, tuning
from fluid.parallel import distributed, sharding

_KIND = "data.source.kind"


class Judge:
  """Evaluates checkpoints of one run: the data, the tokenizer and programs are shared.

  Args:
    workdir: folder of the run.
    run: its config, with evaluators and overrides.
    step: a saved step (None: the newest).
  """

  def __init__(self, workdir, run: config.Run, step: int | None = None):
    self.mirror = remote.Mirror(workdir)
    self.folder = self.mirror.path
    self.workdir, self.step = self.mirror.url or self.folder, step
    self.run, self._given = _with_cache(run, api.read_config(workdir).data, self.folder)
    self.mesh = sharding.make_mesh(run.mesh)
    self.load = functools.cache(self._load)
    self._commits = functools.cache(self._code)
    self.records: list[dict] = []
    self._context: evals.EvalContext | None = None

  def _load(self, weights: str) -> api.Loaded:
    return api.load(self.workdir, weights, self.step, mesh=self.mesh)

  def values(self, weights: str, evaluators=None) -> dict[str, float | str | None]:
    """name -> value of the run's evaluators, or of others by name."""
    loaded = self.load(weights)
    if self._context is None:
      self._context = evals.EvalContext(
        self.run,
        loaded.tokenizer,
        loaded.vocabulary,
        self.mesh,
        self.folder,
        self._loader,
      )
    run = self.run
    if evaluators is not None:
      run = dataclasses.replace(run, evals=evaluators)
    # Images are shared by these evaluators: a sweep would gather those of every point.
    context = dataclasses.replace(self._context, run=run, records=[], drawn=[])
    out: dict[str, float | str | None] = {}
    measured: list[dict] = []
    with jax.set_mesh(self.mesh):
      for name, evaluator in evals.make(loaded.net, context).items():
        found = evaluator.run(loaded.params, loaded.step, weights)
        values = {k: _plain(v) for k, v in found}
        out |= values
        own, context.records[:] = [*context.records], []
        measured += records.described(name, run.evals[name], run, values, own)
    described = {"checkpoint": str(self.workdir), "weights": weights}
    described |= {"step": loaded.step} | self._commits()
    self.records = [record | described for record in measured]
    return out

  def _code(self) -> dict[str, Any]:
    """The commits of the code that judges, and of what trained the run."""
    trained = api.read_model(self.folder).get("commit")
    return commit() | ({"trained_commit": trained} if trained else {})

  def close(self) -> None:
    """Uploads what was written, where the workdir is in a bucket."""
    if jax.process_index() == 0:
      self.mirror.push()

  def _loader(self, split, batch):
    run = self.run
    if not self._given:
      from fluid import prepare

      path = run.text.path or str(self.folder / run.text.FILE)
      run = config.replaced(run, {"text.path": path})
      prepare.prepare(run, splits=(split,), log=distributed.say)
    return pipeline.loader(run, split, self.mesh, batch=batch, shuffle=False, epochs=1)


def evaluate(
  workdir,
  *,
  weights: str = "ema",
  step: int | None = None,
  names: Sequence[str] = (),
  overrides: Sequence[str] = (),
  protocol: str = "",
  quick: bool = False,
) -> dict[str, float | str | None]:
  """Evaluates one checkpoint.

  Args:
    workdir: folder of the run.
    weights: 'ema' or 'raw'.
    step: a saved step (None: the newest).
    names: evaluators (default: those of the run's config).
    overrides: 'evals.geneval.n=4', 'sample.guidance=2', 'mesh.fsdp=2', and other images
      than those of the training: 'data.source.kind=coco', 'data.source.val_images=DIR'.
    protocol: entry of fluid.evals.protocols.PROTOCOLS, whose evaluators are run.
    quick: few images, for a try; no number of it compares with others.

  Returns:
    name -> value, as in metrics.jsonl (raw weights: under 'raw/'; of a protocol under
    'deviations' how it was not followed).

  Raises:
    ConfigError: unknown evaluator or key, or what fluid.load refuses.
  """
  if quick and not protocol:
    raise config.ConfigError("a quick form is of a protocol: name one")
  run = api.read_config(workdir)
  if protocol:
    run = protocols.apply(run, protocol, quick=quick)
  run = override(run, overrides, names)
  judge = Judge(workdir, run, step)
  plain = judge.values(weights)
  loaded = judge.load(weights)
  taken = loaded.step
  described: dict[str, Any] = {"step": taken, "weights": weights}
  described |= {"overrides": list(overrides), "values": plain}
  if protocol:
    off = ["--quick"] if quick else []
    off += protocols.deviations(run, protocol, classes=loaded.vocabulary.size)
    off += protocols.short(judge.records, protocol)
    described |= {"protocol": protocol, "deviations": off}
    if off:
      plain["deviations"] = f"not comparable with {protocol}: {'; '.join(off)}"
  if weights == "raw":
    plain = {f"raw/{k}": v for k, v in plain.items()}
  parts = [str(taken), weights, *filter(None, [protocol]), *["quick"] * quick]
  parts += [*(["+".join(names)] if names else []), *overrides]
  name = "-".join(parts).replace("/", "_")
  if len(name) > 120:  # Names of files end at 255 bytes.
    name = f"{name[:100]}-{identity.digest({'name': name})}"
  name += ".json"
  file = judge.folder / "eval" / name
  distributed.write_json(file, described | {"values": plain, "records": judge.records})
  notes: dict[str, list[str]] = {}
  for record in judge.records:
    for note in record.get("notes", ()):
      notes.setdefault(note, []).append(record["metric"])
  for note, found in notes.items():
    distributed.say(f"{', '.join(found)}: {note}")
  # In a bucket the file is that of the training, which uploads it whole, until its end.
  free = not judge.mirror.url or (judge.folder / "done.json").exists()
  if free and not overrides and not protocol and jax.process_index() == 0:
    append(judge.folder / "metrics.jsonl", taken, plain)
  judge.close()
  return plain


def sweep(
  workdir,
  grid: str,
  *,
  by: str = "kid",
  images: int = 0,
  step: int | None = None,
  overrides: Sequence[str] = (),
) -> tuning.Found:
  """Finds the best sampling options of a checkpoint; see fluid.evals.tuning.

  Writes WORKDIR/eval/sweep-<step>.json with every point, and WORKDIR/sample.json with
  the best, which fluid.sample and fluid.load then draw with.

  Args:
    workdir: folder of the run.
    grid: 'guidance=1:8:0.5,weights=ema,raw': fields of config.sample, and weights.
    by: the value that decides: 'kid', 'fid' and others of fluid.evals.distribution
      (lower is better but for scores), or 'geneval/overall'.
    images: of the last points (0: as the run's evaluator has it).
    step: a saved step (None: the newest).
    overrides: see `evaluate`.
  """
  name = tuning.evaluator(by)
  run = override(api.read_config(workdir), overrides, [name])
  points = tuning.grid(grid)
  known = run.sample.flat()
  for point in points:
    for key, asked in point.items():
      if isinstance(known.get(key), int | float) and isinstance(asked, str):
        raise config.ConfigError(f"sweep '{grid}': {key} is '{asked}', no number")
    run.model.check_sample(
      run.sample.replace(**{k: v for k, v in point.items() if k != "weights"}),
      "sample.",
    )
  part, judge = run.evals[name], Judge(workdir, run, step)
  images, least = tuning.judged(part, images)
  for weights in dict.fromkeys(point.get("weights", "ema") for point in points):
    judge.load(weights)  # What is not there is refused before anything is drawn.
  if name == "distribution":
    metric = metrics.parse(by)[0]
    if metric.needs == "pairs":
      raise config.ConfigError(f"--by={by} is of pairs, and samples have no partners")
    lower = metric.best == "low"
    # The same real images for all, however few samples they judge.
    changes = {"metrics": (by,), "prompts": "val", "tokenizer": False, "real": images}
    part = dataclasses.replace(part, **changes)
    by, size = by.removesuffix(f"@{part.features}"), lambda n: {"examples": n}
  else:
    lower, size = False, lambda n: {"n": max(1, n // least)}

  def value(point, n):
    weights = point.get("weights", "ema")
    sample = part.sample | {k: v for k, v in point.items() if k != "weights"}
    changed = dataclasses.replace(part, sample=sample, **size(n))
    values = judge.values(weights, {name: changed})
    if by not in values:
      known = ", ".join(k for k, v in values.items() if isinstance(v, float))
      raise config.ConfigError(f"--by={by}: no such value; there are {known}")
    found = values[by]
    if not isinstance(found, float):
      raise config.ConfigError(f"--by={by}: no number at {point}")
    shown = ", ".join(f"{k} {v}" for k, v in point.items())
    distributed.say(f"{shown}: {by} {found:.6g} ({n} images)")
    return found

  found = tuning.search(points, value, images, lower=lower, least=least)
  taken = judge.load(found.best.get("weights", "ema")).step
  described = {"step": taken, "by": by, "value": found.value, "images": images}
  described |= {"inside": found.inside, "drawn": found.drawn, "grid": grid}
  file = judge.folder / "eval" / f"sweep-{taken}.json"
  distributed.write_json(file, described | {"points": found.judged})
  # All of what was judged: overrides and the evaluator's own options as well.
  best = {k: v for k, v in found.best.items() if k != "weights"}
  sample = run.sample.replace(**(part.sample | best)).flat()
  chosen = {"sample": {k: v for k, v in sample.items() if k != "batch"}}
  distributed.write_json(judge.folder / api.CHOSEN, chosen | {"found": described})
  judge.close()
  return found


def _with_cache(
  run: config.Run, own: config.Data, folder: pathlib.Path
) -> tuple[config.Run, bool]:
  """The run with a folder for tokens and features of its images; is that prepared?

  A folder given away has none, and of other images than those of its training, a run
  has one for each source: what is kept of one is never taken for another's.
  """
  same = run.data.source == own.source
  if same and run.data.cache:
    return run, True
  made_from = identity.of_cache(run) | {"source": config.to_dict(run.data.source)}
  name = "cache" if same else f"cache-{identity.digest(made_from)}"
  return config.replaced(run, {"data.cache": str(folder / "eval" / name)}), False


def _plain(value) -> float | str | None:
  if value is None or isinstance(value, str):
    return value
  return float(value) if math.isfinite(value) else None  # JSON has no NaN.


def override(
  run: config.Run, overrides: Sequence[str], names: Sequence[str] = ()
) -> config.Run:
  """The config with 'section.key=value' of evals, sample, mesh or data.source changed.

  With `names`, config.evals is those alone; one that the run lacks gets its defaults. A
  source of another kind has nothing of the run's own.
  """
  tree = config.to_dict(run)
  if names:
    tree["evals"] = {name: tree["evals"].get(name, {}) for name in names}
  # The kind first: the other keys are those of the source that it names.
  for item in sorted(overrides, key=lambda o: not o.startswith(f"{_KIND}=")):
    key, sign, value = item.partition("=")
    *parents, last = key.split(".")
    ours = parents[:1] in (["evals"], ["sample"], ["mesh"])
    if not sign or not (ours or parents[:2] == ["data", "source"]):
      raise config.ConfigError(
        f"override '{item}' is not understood; write evals.<name>.<key>=<value>, "
        "sample.<key>=<value>, mesh.<key>=<value> or data.source.<key>=<value>"
      )
    if key == _KIND and value != run.data.source.kind:
      tree["data"]["source"] = {}
    node = tree
    for part in parents:
      node = node.setdefault(part, {})
    try:
      node[last] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      node[last] = value  # Text needs no quotes.
  return config.from_config_dict(tree)


def append(path: pathlib.Path, step: int, values: dict) -> None:
  """Adds a line with the values that metrics.jsonl does not have for this step."""
  there = set()
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
    except ValueError:
      continue  # A kill may cut the last line short.
    if row.get("step") == step:
      there |= row.keys()
  new = {k: v for k, v in values.items() if k not in there}
  if new:
    line = json.dumps({"step": step, "time": round(time.time(), 3)} | new)
    with path.open("a") as f:
      f.write(line + "\n")


def table(values: dict[str, float | str | None]) -> str:
  """Names and values in two columns."""
  width = max(map(len, values), default=0)
  show = lambda v: f"{v:.6g}" if isinstance(v, float) else str(v)
  return "\n".join(f"{name:<{width}}  {show(v)}" for name, v in values.items())


def main(argv) -> None:
  """Entry point."""
  del argv
  args = flags.FLAGS
  distributed.join_by_flags()
  workdir = cli.require(WORKDIR)
  cli.useful(
    needs={"quick": "protocol", "by": "sweep", "images": "sweep"},
    # Weights are an axis of its grid, evaluators follow from --by.
    without=dict.fromkeys(("weights", "evals", "protocol", "quick"), "sweep"),
  )
  if args.sweep:
    found = sweep(
      workdir,
      args.sweep,
      by=args.by,
      images=args.images,
      step=args.step,
      overrides=args.override or (),
    )
    if jax.process_index() == 0:
      print(table({**found.best, args.by: found.value, "images drawn": found.drawn}))
      if found.best.get("weights") == "raw":
        print("Of raw weights: draw with fluid.sample --weights=raw.")
      if not found.inside:
        print("The best is at an end of its axis: a better one may lie beyond it.")
    return
  values = evaluate(
    workdir,
    weights=args.weights,
    step=args.step,
    names=args.evals or (),
    overrides=args.override or (),
    protocol=args.protocol or "",
    quick=args.quick,
  )
  if jax.process_index() == 0:
    print(table(values))


if __name__ == "__main__":
  WORKDIR = cli.workdir_flag()
  flags.DEFINE_enum(
    "weights", "ema", ["ema", "raw"], "Averaged or raw (not of a sweep)."
  )
  flags.DEFINE_integer("step", None, "Checkpoint (default: the newest).")
  flags.DEFINE_list("evals", None, "Evaluators (default: those of the run).")
  flags.DEFINE_multi_string("override", None, "E.g. evals.geneval.n=4; repeatable.")
  flags.DEFINE_enum(
    "protocol", None, list(protocols.PROTOCOLS), "Of a published table."
  )
  flags.DEFINE_bool("quick", False, "Of a protocol: few images, for a try.")
  flags.DEFINE_string("sweep", None, "Grid of sampling options: guidance=1:8:0.5.")
  flags.DEFINE_string("by", "kid", "What a sweep minimises, or maximises if a score.")
  flags.DEFINE_integer("images", 0, "Of a sweep's last points (0: the evaluator's).")
  distributed.define_flags()
  cli.run(main)
