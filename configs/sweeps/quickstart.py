"""The toy study cut down to some minutes on two cores: four cells x two sizes.

Long enough for the raster cells to draw what a prompt asks for; random order takes two
to three times as long.
"""

from configs import toy

SHORT = {
  "data.num_train": 24_000,
  "data.num_val": 512,
  "steps": 1000,
  "eval_every": 250,
  "checkpoint_every": 250,
  "log_every": 50,
  "optim.warmup": 50,
  "optim.ema": 0.99,
  "sample.batch": 96,
  "evals.loss.examples": 512,
  "evals.likelihood.examples": 512,
  "evals.geneval.n": 24,
  "evals.distribution.examples": 288,
}
# Raster order has no steps of decoding.
DECODING = {"random": {"sample.steps": 8}}


def sweep():
  yield from toy.cells(("xs", "s"), SHORT, DECODING)
