"""The run that the drills interrupt: every part is there, and each is tiny."""

import ml_collections

from configs import toy
from fluid import config
from fluid.evals.loss import LossConfig

SMALL = {
  "model.trunk.layers": 1,
  "model.trunk.width": 16,
  "model.trunk.heads": 4,
  "model.condition.layers": 0,
  "model.condition.width": 8,
  "data.image_size": 16,
  "data.num_train": 200,
  "data.num_val": 32,
  "tokenizer.width": 8,
  "tokenizer.channels": 2,
  "tokenizer.steps": 2,
  "tokenizer.batch": 8,
  "tokenizer.warmup": 1,
  "optim.warmup": 5,
  "optim.ema": 0.9,
  "sample.batch": 8,
  "evals": {"loss": LossConfig(every=18)},  # Not where a checkpoint is due.
  "steps": 60,
  "batch": 8,
  "accum": 1,
  "log_every": 1,
  "checkpoint_every": 5,
  "keep": 3,
}
# What only some heads and orders have.
HEADS = {
  "diffusion": {
    "model.head.layers": 1,
    "model.head.batch_mul": 1,
    "sample.head.diffusion_steps": 2,
  }
}
ORDERS = {"random": {"sample.order.steps": 2}}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Arguments: tokens and order, as of configs/toy.py."""
  run = config.from_config_dict(
    toy.get_config(",".join(filter(None, (arg, "size=xs"))))
  )
  own = HEADS.get(run.model.head.kind, {}) | ORDERS.get(run.model.order.kind, {})
  return ml_collections.ConfigDict(config.to_dict(config.replaced(run, SMALL | own)))
