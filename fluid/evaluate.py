"""Metrics of a checkpoint: `python -m fluid.evaluate --workdir DIR [--weights raw]`.

Runs the evaluators of the run's config, or those named by --evals, prints a table and
writes WORKDIR/eval/<step>-<weights>[-<overrides>].json: a sweep over guidance keeps
every point. Values that metrics.jsonl does not have for this step are appended to it,
unless --override changed what is measured.
"""

import ast
import json
import math
import pathlib
import time
from collections.abc import Sequence

import jax
from absl import flags

from fluid import api, config, evals
from fluid.console import cli
from fluid.data import pipeline
from fluid.parallel import distributed, sharding


def evaluate(
  workdir,
  *,
  weights: str = "ema",
  step: int | None = None,
  names: Sequence[str] = (),
  overrides: Sequence[str] = (),
) -> dict[str, float | str | None]:
  """Evaluates one checkpoint.

  Args:
    workdir: folder of the run.
    weights: 'ema' or 'raw'.
    step: a saved step (None: the newest).
    names: evaluators (default: those of the run's config).
    overrides: 'evals.geneval.n=4', 'sample.guidance=2', 'mesh.fsdp=2'.

  Returns:
    name -> value, as in metrics.jsonl (raw weights: under 'raw/').

  Raises:
    ConfigError: unknown evaluator or key, or what fluid.load refuses.
  """
  run = override(api.read_config(workdir), overrides, names)
  mesh = sharding.make_mesh(run.mesh)
  loaded = api.load(workdir, weights, step, mesh=mesh)

  def loader(split, batch):
    cached = _cached(run, split, workdir)
    return pipeline.loader(cached, split, mesh, batch=batch, shuffle=False, epochs=1)

  context = evals.EvalContext(
    run, loaded.tokenizer, loaded.vocabulary, mesh, workdir, loader
  )
  out: dict[str, float | str] = {}
  with jax.set_mesh(mesh):
    for evaluator in evals.make(loaded.net, context).values():
      out |= dict(evaluator.run(loaded.params, loaded.step, weights))
  plain = {k: _plain(v) for k, v in out.items()}
  if weights == "raw":
    plain = {f"raw/{k}": v for k, v in plain.items()}
  name = "-".join([str(loaded.step), weights, *overrides]).replace("/", "_") + ".json"
  described = {"step": loaded.step, "weights": weights, "overrides": list(overrides)}
  file = pathlib.Path(workdir) / "eval" / name
  content = described | {"values": plain, "records": context.records}
  distributed.write_json(file, content)
  if not overrides and jax.process_index() == 0:
    append(pathlib.Path(workdir) / "metrics.jsonl", loaded.step, plain)
  return plain


def _cached(run: config.Run, split: str, workdir) -> config.Run:
  """The run with a cache: of a folder given away, the split is made anew."""
  if run.data.cache:
    return run
  from fluid import prepare

  cache, vocabulary = pathlib.Path(workdir) / "eval" / "cache", pathlib.Path(workdir)
  path = run.text.path or str(vocabulary / run.text.FILE)
  changes = {"data.cache": str(cache), "text.path": path}
  run = config.replaced(run, changes)

  def make():
    prepare.prepare(run, splits=(split,), log=distributed.say)

  distributed.first(make)
  return run


def _plain(value) -> float | str | None:
  if isinstance(value, str):
    return value
  return float(value) if math.isfinite(value) else None  # JSON has no NaN.


def override(
  run: config.Run, overrides: Sequence[str], names: Sequence[str] = ()
) -> config.Run:
  """The config with 'section.key=value' of evals, sample, mesh or data changed.

  With `names`, config.evals is those alone; one that the run lacks gets its defaults.
  """
  tree = config.to_dict(run)
  if names:
    tree["evals"] = {name: tree["evals"].get(name, {}) for name in names}
  for item in overrides:
    key, sign, value = item.partition("=")
    *parents, last = key.split(".")
    if not sign or not parents or parents[0] not in ("evals", "sample", "mesh"):
      raise config.ConfigError(
        f"override '{item}' is not understood; write evals.<name>.<key>=<value>, "
        "sample.<key>=<value> or mesh.<key>=<value>"
      )
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
  values = evaluate(
    workdir,
    weights=args.weights,
    step=args.step,
    names=args.evals or (),
    overrides=args.override or (),
  )
  if jax.process_index() == 0:
    print(table(values))


if __name__ == "__main__":
  WORKDIR = cli.workdir_flag()
  flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Averaged or raw weights.")
  flags.DEFINE_integer("step", None, "Checkpoint (default: the newest).")
  flags.DEFINE_list("evals", None, "Evaluators (default: those of the run).")
  flags.DEFINE_multi_string("override", None, "E.g. evals.geneval.n=4; repeatable.")
  distributed.define_flags()
  cli.run(main)
