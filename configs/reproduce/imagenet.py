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


# Epochs, of these warm-up, batch, and the optimizer at its peak.
RECIPES = {
  "mar": (400, 100, 2048, config.Optim(lr=8e-4)),  # 800 epochs for the last digits.
  "llamagen": (300, 0, 256, config.Optim(lr=1e-4, weight_decay=0.05, clip=1.0)),
  "maskgit": (
    300,
    1,
    256,
    config.Optim(lr=1e-4, b2=0.96, weight_decay=0.045, clip=0.0),
  ),
  "rar": (
    400,
    100,
    2048,
    config.Optim(lr=4e-4, schedule="cosine", b2=0.96, weight_decay=0.03, clip=1.0),
  ),
  # After a twentieth of what follows the warm-up linearly down to 0; VAR's to a tenth.
  "var": (
    200,
    4,
    768,
    config.Optim(
      lr=3e-4, schedule="wsd", decay_fraction=0.931, weight_decay=0.05, clip=2.0
    ),
  ),
}
# Trained on mirror images, too, where the condition is a class.
MIRRORED = ("mar", "llamagen", "rar")


def _steps(epochs: int, batch: int) -> int:
  return round(epochs * EPOCH / batch)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Arguments: model (a name of fluid.models.published.RUNS)."""
  name = arguments.parse(arg, model=tuple(RUNS)).model
  family = name.split("_")[0]
  epochs, warmup, batch, optim = RECIPES[family]
  optim = dataclasses.replace(optim, warmup=max(1, _steps(warmup, batch)))
  run = RUNS[name]()
  flips = family in MIRRORED and run.model.condition.kind == "class"
  run = dataclasses.replace(
    run,
    data=dataclasses.replace(run.data, flips=flips),
    optim=optim,
    batch=batch,
    steps=_steps(epochs, batch),
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
