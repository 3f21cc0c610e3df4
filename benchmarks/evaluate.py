"""fluid.evaluate against its parts alone: drawing, reading, features, metrics.

  python -m benchmarks.evaluate --workdir=RUN [--images=512] [--json=FILE]

Judges a checkpoint by evaluator `distribution` (its metrics and network) on so many
samples and as many real images. The parts are done alone, on what is there already, in
turn with the whole, all without compilation; the floor of the whole is their time one
after the other, as on CPUs they share the cores.
"""

import dataclasses
import shutil
import tempfile

import jax
import numpy as np
from absl import flags

from benchmarks import timing
from fluid import api, config, rng
from fluid.console import cli
from fluid.data import make_source
from fluid.evals import features
from fluid.evals.metrics import PROTOCOLS, Side, on, parse
from fluid.evaluate import Judge
from fluid.sampling import Sampler

WORKDIR = cli.workdir_flag()


def measure(workdir: str, images: int, rounds: int, scratch: str) -> dict:
  """Seconds of each part and of the whole, for `images` samples."""
  # Features are kept beside the cache: of each round, in a folder of its own.
  run = config.replaced(api.read_config(workdir), {"data.cache": scratch})
  part = run.evals.get("distribution")
  if part is None:
    raise config.ConfigError(f"{workdir} has no evaluator 'distribution' to be timed")
  part = dataclasses.replace(part, examples=images, prompts="val", tokenizer=False)
  judge = Judge(workdir, run)
  loaded, source = judge.load("ema"), make_source(run.data, "val")
  real = min(images, len(source) // 2)
  # As the evaluator has them: captions behind the real images.
  prompts = [source[real + i % (len(source) - real)]["caption"] for i in range(images)]
  sampler = Sampler(loaded.net, loaded.tokenizer, loaded.vocabulary, run.sample)
  net = features.load(part.features)
  names = [on(name, part.features) for name in part.metrics]
  kept: dict[str, np.ndarray] = {}

  def draw():
    with jax.set_mesh(judge.mesh):
      kept["drawn"] = sampler(loaded.params, prompts, key=rng.stream(0, "samples"))

  def read():
    kept["real"] = np.stack([source[i]["image"] for i in range(real)])

  def run_network():
    with jax.set_mesh(judge.mesh):
      for name in ("drawn", "real"):
        found = features.extract(net, kept[name], tuple(net.outputs)[:1])
        kept[f"{name} features"] = next(iter(found.values()))

  def compute():
    for name in names:
      metric = parse(name)[0]
      sides = (Side(kept[f"{n} features"]) for n in ("drawn", "real"))
      metric.compute(*sides, PROTOCOLS[part.protocol], 0)

  def whole():
    shutil.rmtree(scratch, ignore_errors=True)
    judge.values("ema", {"distribution": part})

  variants = {
    "draw": draw,
    "read": read,
    "features": run_network,
    "metrics": compute,
    "whole": whole,
  }
  return timing.interleave(variants, rounds=rounds, warmup=1)


def main(argv) -> None:
  """Prints the seconds of each, and the share that the floor has of the whole."""
  del argv
  f = flags.FLAGS
  with tempfile.TemporaryDirectory() as folder:
    scratch = f"{folder}/cache"
    times = measure(cli.require(WORKDIR), f.images, f.rounds, scratch)
  found = {name: timing.summary(seconds) for name, seconds in times.items()}
  seconds = {name: s["median_s"] for name, s in found.items()}
  floor = sum(seconds[name] for name in seconds if name != "whole")
  timing.write(
    f.json,
    {
      "images": f.images,
      "images_per_second": f.images / seconds["whole"],
      "floor_s": floor,
      "share_of_floor": floor / seconds["whole"],
      "memory_bytes": timing.peak_memory(),
      "times": found,
    },
  )


if __name__ == "__main__":
  flags.DEFINE_integer("images", 512, "Samples to judge.", lower_bound=2)
  flags.DEFINE_integer("rounds", 3, "Of all in turn.", lower_bound=1)
  flags.DEFINE_string("json", None, "Write the report to this file.")
  cli.run(main)
