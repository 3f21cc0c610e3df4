"""The run that the drills interrupt: every part is there, and each is tiny."""

import dataclasses

import ml_collections

from configs import toy
from fluid import config


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Arguments: tokens and order, as of configs/toy.py."""
  run = config.from_config_dict(
    toy.get_config(",".join(filter(None, (arg, "size=xs"))))
  )
  model = dict(layers=1, width=16, heads=4, head_layers=1, head_batch_mul=1)
  replace = dataclasses.replace
  tokenizer = dict(width=8, channels=2, steps=2, batch=8, warmup=1)
  return ml_collections.ConfigDict(
    dataclasses.asdict(
      replace(
        run,
        model=replace(run.model, **model, aligner_layers=0),
        text=replace(run.text, width=8),
        data=replace(run.data, image_size=16, num_train=200, num_val=32),
        tokenizer=replace(run.tokenizer, **tokenizer),
        optim=replace(run.optim, warmup=5, ema=0.9),
        sample=replace(run.sample, steps=2, diffusion_steps=2, batch=8),
        evals={"loss": {"every": 18}},  # Not where a checkpoint is due.
        steps=60,
        batch=8,
        log_every=1,
        checkpoint_every=5,
        keep=3,
      )
    )
  )
