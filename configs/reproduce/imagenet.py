"""Published models with their recipe: `configs/reproduce/imagenet.py:model=mar_b`.

ImageNet at the model's size of image: `data.source`, `data.cache` and `tokenizer.path`
say where it and the converted tokenizer lie (docs/reproduce.md). Numbers are those of
the authors' papers and training commands; an epoch has 1,281,167 images.
"""

import dataclasses

import ml_collections

from configs import arguments
from configs.fluid import to_config_dict
from fluid import config
from fluid.evals.images import ImagesConfig
from fluid.evals.loss import LossConfig
from fluid.models.orders.permuted import Permuted
from fluid.models.published import RUNS

EPOCH = 1_281_167


def mar() -> dict:
  """400 epochs of 2048, 100 of warm-up, a constant rate (800 for the last digits)."""
  optim = config.Optim(lr=8e-4, warmup=_steps(100, 2048))
  return dict(optim=optim, batch=2048, steps=_steps(400, 2048))


def llamagen() -> dict:
  """300 epochs of 256 at a constant rate, without warm-up."""
  optim = config.Optim(lr=1e-4, warmup=1, weight_decay=0.05, clip=1.0)
  return dict(optim=optim, batch=256, steps=_steps(300, 256))


def maskgit() -> dict:
  """300 epochs of 256, 5,000 steps of warm-up."""
  optim = config.Optim(lr=1e-4, warmup=5000, b2=0.96, weight_decay=0.045, clip=0.0)
  return dict(optim=optim, batch=256, steps=_steps(300, 256))


def rar() -> dict:
  """400 epochs of 2048, 100 of warm-up, then a cosine; raster order from epoch 300."""
  optim = config.Optim(
    lr=4e-4,
    warmup=_steps(100, 2048),
    schedule="cosine",
    b2=0.96,
    weight_decay=0.03,
    clip=1.0,
  )
  return dict(optim=optim, batch=2048, steps=_steps(400, 2048))


def var() -> dict:
  """200 epochs of 768, 4 of warm-up, then linearly down (to 0, VAR's to a tenth)."""
  optim = config.Optim(
    lr=3e-4,
    warmup=_steps(4, 768),
    schedule="wsd",
    decay_fraction=0.98,
    weight_decay=0.05,
    clip=2.0,
  )
  return dict(optim=optim, batch=768, steps=_steps(200, 768))


RECIPES = {"mar": mar, "llamagen": llamagen, "maskgit": maskgit, "rar": rar, "var": var}


def _steps(epochs: int, batch: int) -> int:
  return round(epochs * EPOCH / batch)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Arguments: model (a name of fluid.models.published.RUNS)."""
  name = arguments.parse(arg, model=tuple(RUNS)).model
  run = RUNS[name]()
  run = dataclasses.replace(
    run,
    **RECIPES[name.split("_")[0]](),
    mesh=config.Mesh(data=1, fsdp=-1),
    evals={
      "loss": LossConfig(examples=50_000),
      "images": ImagesConfig(every=50_000),
    },
    tensorboard=True,
  )
  if run.model.order.kind == "permuted":
    order = Permuted(until=_steps(200, run.batch), raster_from=_steps(300, run.batch))
    run = config.replaced(run, {"model.order": order})
  return to_config_dict(run)
