"""The toy study cut down to some minutes on two cores: four cells x two sizes.

Long enough to see every part work and the losses fall; too short for good images.
"""

from configs import toy

SHORT = {
  "tokenizer.steps": 500,
  "data.num_train": 8_000,
  "data.num_val": 512,
  "steps": 600,
  "eval_every": 200,
  "checkpoint_every": 200,
  "log_every": 50,
  "optim.warmup": 50,
  "sample.batch": 48,
  "evals.loss.examples": 512,
  "evals.geneval.n": 8,
  "evals.distribution.examples": 96,
}
# Raster order has no steps of decoding.
DECODING = {"random": {"sample.steps": 8}}


def sweep():
  yield from toy.cells(("xs", "m"), SHORT, DECODING)
