"""Speed and quality of sampling settings on trained runs, and the fastest that is good.

  python -m benchmarks.sample --workdir=RUN [--workdir=RUN2 ...] [--json=FILE]
    [--setting=solver=dpmpp,diffusion_steps=10 ...] [--prompts=32] [--rounds=3]

For each setting: seconds an image (compiled, settings in turn, median), KID and GenEval
with their 95 % intervals on the same prompts and noise. The first setting is the
reference. A setting is as good where its KID and its GenEval are no worse than the far
ends of the reference's intervals; the fastest of these should be the default.
"""

import dataclasses
import json
from collections.abc import Sequence

import jax
from absl import flags

from benchmarks import timing
from fluid import api, config, evals
from fluid.console import cli
from fluid.data import pipeline
from fluid.evals.distribution import DistributionConfig
from fluid.evals.geneval.evaluator import GenEvalConfig
from fluid.parallel import sharding
from fluid.sample import options as sampling_options
from fluid.sampling import Sampler

REFERENCE = {"steps": 64, "diffusion_steps": 100, "diffusion_steps_last": 0}
REFERENCE |= {"solver": "ancestral", "guidance_from": 0.0, "guidance_to": 1.0}
# What is tried without --setting. Raster has no decoding steps, discrete no solver.
SOLVERS = (
  {"diffusion_steps": 50},
  {"diffusion_steps": 25},
  {"solver": "ddim", "diffusion_steps": 25},
  {"solver": "ddim", "diffusion_steps": 10},
  {"solver": "dpmpp", "diffusion_steps": 25},
  {"solver": "dpmpp", "diffusion_steps": 12},
  {"solver": "dpmpp", "diffusion_steps": 8},
  {"solver": "dpmpp", "diffusion_steps": 5},
  {"solver": "dpmpp", "diffusion_steps": 12, "diffusion_steps_last": 4},
)
DECODING = ({"steps": 12}, {"steps": 8}, {"guidance_from": 0.25})


def settings(run: config.Run) -> list[dict]:
  """The reference and what to compare with it, for the cell of a run."""
  continuous = run.model.head.kind == "diffusion"
  out = [dict(s) for s in SOLVERS] if continuous else []
  # Changes to decoding are judged at a solver that is already fast.
  quick = {"solver": "dpmpp", "diffusion_steps": 12} if continuous else {}
  for change in DECODING:
    if run.model.order.kind == "random" or "steps" not in change:
      out.append(quick | change)
  return [{}, *out]


def parse(text: str) -> dict:
  """'solver=dpmpp,steps=8' -> overrides of config.Sample."""
  fields = sampling_options()
  out = {}
  for item in filter(None, text.split(",")):
    name, _, value = item.partition("=")
    if name not in fields:
      raise cli.UserError(
        f"unknown sampling option '{name}' in --setting; known: {', '.join(fields)}"
      )
    out[name] = fields[name](value)
  return out


def measure(workdir: str, chosen: Sequence[dict], prompts: int, rounds: int) -> dict:
  """-> run, cell, size and a row of numbers for each setting."""
  run = api.read_config(workdir)
  chosen = chosen or settings(run)
  mesh = sharding.make_mesh(run.mesh)
  loaded = api.load(workdir, mesh=mesh)
  rows, calls = [], {}
  for setting in chosen:
    known = run.sample.flat()
    sample = {k: v for k, v in REFERENCE.items() if k in known} | setting
    cfg = run.sample.replace(**sample)
    run.model.check_sample(cfg, "sample.")
    judges = {
      "geneval": GenEvalConfig(n=prompts, k=2, sample=sample),
      "distribution": DistributionConfig(
        prompts="geneval", examples=12 * prompts, sample=sample, tokenizer=False
      ),
    }
    tuned = dataclasses.replace(run, evals=judges)
    context = evals.EvalContext(
      tuned, loaded.tokenizer, loaded.vocabulary, mesh, workdir, _loader(run)
    )
    values = {}
    with jax.set_mesh(mesh):
      for evaluator in evals.make(loaded.net, context).values():
        values |= dict(evaluator.run(loaded.params, loaded.step))
    keep = ("kid", "kid_lo", "kid_hi", "fd") + tuple(
      f"geneval/{k}" for k in ("overall", "overall_lo", "overall_hi", "chance")
    )
    row = {"setting": setting} | {k: values[k] for k in keep}
    rows.append(row)
    print(json.dumps(row), flush=True)
    calls[str(len(calls))] = _call(loaded, cfg, mesh)
  times = timing.interleave(calls, rounds=rounds, warmup=1)
  for row, seconds in zip(rows, times.values()):
    row["seconds_per_image"] = timing.summary(seconds)["median_s"] / run.sample.batch
  judge(rows)
  cell = run.model.cell
  return {"workdir": str(workdir), "cell": cell, "size": run.model.size, "rows": rows}


def _loader(run):
  return lambda split, batch: pipeline.loader(
    run, split, batch=batch, shuffle=False, epochs=1
  )


def _call(loaded, cfg, mesh):
  sampler = Sampler(loaded.net, loaded.tokenizer, loaded.vocabulary, cfg)
  texts = ["a photo of a circle"] * cfg.batch

  def call():
    with jax.set_mesh(mesh):
      sampler(loaded.params, texts, key=jax.random.key(0))

  return call


def judge(rows: list[dict]) -> None:
  """Adds 'speedup', 'as_good' and, to the fastest good one, 'default'."""
  first = rows[0]
  for row in rows:
    row["speedup"] = first["seconds_per_image"] / row["seconds_per_image"]
    row["as_good"] = bool(
      row["kid"] <= first["kid_hi"]
      and row["geneval/overall"] >= first["geneval/overall_lo"]
    )
    row["default"] = False
  good = [r for r in rows if r["as_good"]]
  min(good, key=lambda r: r["seconds_per_image"])["default"] = True


def table(report: dict) -> str:
  """The rows as text."""
  out = [f"{report['cell']} {report['size']} ({report['workdir']})"]
  out.append(f"{'setting':58}{'ms/image':>9}{'speedup':>9}  {'KID':26}GenEval")
  for r in report["rows"]:
    name = ", ".join(f"{k}={v}" for k, v in r["setting"].items()) or "reference"
    kid = f"{r['kid']:.4f} [{r['kid_lo']:.4f}, {r['kid_hi']:.4f}]"
    score = f"{r['geneval/overall']:.3f} [{r['geneval/overall_lo']:.3f}, "
    score += f"{r['geneval/overall_hi']:.3f}]"
    mark = " <- default" if r["default"] else "" if r["as_good"] else " worse"
    out.append(
      f"{name:58}{r['seconds_per_image'] * 1e3:9.2f}{r['speedup']:8.1f}x  {kid:26}"
      f"{score}{mark}"
    )
  return "\n".join(out)


def main(argv) -> None:
  """Entry point."""
  del argv
  f = flags.FLAGS
  if not f.workdir:
    raise cli.UserError("missing flag --workdir: a trained run; repeatable")
  chosen = [parse(s) for s in f.setting or ()]
  reports = [measure(w, chosen, f.prompts, f.rounds) for w in f.workdir]
  print("\n\n".join(map(table, reports)))
  if f.json:
    with open(f.json, "w") as out:
      json.dump(reports, out, indent=2)


if __name__ == "__main__":
  flags.DEFINE_multi_string("workdir", None, "A trained run; repeatable.")
  flags.DEFINE_multi_string(
    "setting", None, "key=value,...; the first is the reference."
  )
  flags.DEFINE_integer("prompts", 32, "GenEval prompts a tag, two images each.")
  flags.DEFINE_integer("rounds", 3, "Timed rounds.", lower_bound=1)
  flags.DEFINE_string("json", None, "Write the reports to this file.")
  cli.run(main)
