"""The toy study cut down to some minutes on two cores: four cells x two sizes.

Long enough to see every part work and the losses fall; too short for good images.
"""

import itertools

SIZES = ("xs", "m")
SHORT = {
  "tokenizer.steps": 500,
  "data.num_train": 8_000,
  "data.num_val": 512,
  "steps": 250,
  "eval_every": 125,
  "checkpoint_every": 125,
  "log_every": 25,
  "optim.warmup": 50,
  "sample.steps": 8,
  "sample.diffusion_steps": 20,
  "sample.batch": 48,
  "evals.loss.examples": 512,
  "evals.geneval.n": 8,
  "evals.distribution.examples": 96,
}


def sweep():
  for size in SIZES:
    for tokens, order in itertools.product(
      ("continuous", "discrete"), ("random", "raster")
    ):
      yield dict(
        name=f"{tokens}-{order}-{size}",
        config=f"configs/toy.py:tokens={tokens},order={order},size={size}",
        overrides=SHORT,
      )
