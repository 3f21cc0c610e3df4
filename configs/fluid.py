"""Fluid at paper scale: `configs/fluid.py:tokens=continuous,order=random,size=369M`.

256 px, 16x16 tokens. Values the paper does not confirm are defaults of fluid.config.
"""

import itertools
from collections.abc import Iterable, Iterator

import ml_collections

from configs import arguments, sizes
from configs import data as data_sets
from fluid import config
from fluid.evals.distribution import DistributionConfig
from fluid.evals.images import ImagesConfig
from fluid.evals.loss import LossConfig
from fluid.models import heads
from fluid.models.conditions.text import TextConfig
from fluid.models.trunks.fluid import FluidConfig
from fluid.text.learned import LearnedConfig
from fluid.text.t5 import T5Config
from fluid.tokenizers.vae import VAEConfig
from fluid.tokenizers.vq import VQConfig

# Best guidance and temperature of each cell (paper's appendix).
SAMPLING = {
  ("continuous", "random"): (5.0, 0.975),
  ("continuous", "raster"): (4.5, 0.975),
  ("discrete", "random"): (1.6, 1.05),
  ("discrete", "raster"): (2.5, 0.95),
}
HEADS = {"continuous": heads.DiffusionConfig(), "discrete": heads.CategoricalConfig()}
TOKENIZERS = {
  # Stable Diffusion's VAE: f8, 32x32x4, grouped 2x2 into 256 tokens of 16 channels.
  "continuous": VAEConfig(
    width=128, multipliers=(1, 2, 4, 4), blocks=2, channels=4, patch=2
  ),
  # A VQGAN: f16, 256 tokens of a vocabulary of 8192.
  "discrete": VQConfig(
    width=128,
    multipliers=(1, 1, 2, 2, 4),
    blocks=2,
    channels=256,
    vocab=8192,
  ),
}
# The paper's is T5-XXL, whose folder goes into config key 'text.path'.
TEXTS = {
  "learned": LearnedConfig(length=128, vocab_size=32_000),
  "t5": T5Config(length=128),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Arguments: tokens, order, size, text, data (a name of configs/data.py), evals.

  evals=distances judges samples as well; `source` is the name that `data` had before.
  """
  a = arguments.parse(
    arg,
    tokens=tuple(HEADS),
    order=("random", "raster"),
    size=tuple(sizes.PAPER),
    data="",
    source="",
    text=tuple(TEXTS),
    evals=("loss", "distances"),
  )
  layers, width, num_heads = sizes.PAPER[a.size]
  guidance, temperature = SAMPLING[a.tokens, a.order]
  model = config.Model(
    size=a.size,
    head=HEADS[a.tokens],
    order=config.resolve("order", a.order)(),
    trunk=FluidConfig(layers=layers, width=width, heads=num_heads),
    condition=TextConfig(width=1024),
  )
  judges: dict = {
    "loss": LossConfig(examples=30_000),
    "images": ImagesConfig(every=50_000, raw=True),
  }
  if a.evals == "distances":
    judges["distribution"] = DistributionConfig(every=0, prompts="val")
  if a.data and a.source:
    raise config.ConfigError(
      f"config arguments data='{a.data}' and source='{a.source}' are two sets: give one"
    )
  # By its old name a source has the options that it had then.
  old = config.resolve("source", a.source or "folder")()
  run = config.Run(
    model=model,
    text=TEXTS[a.text],
    data=config.Data(
      source=data_sets.source(a.data) if a.data else old, image_size=256
    ),
    tokenizer=TOKENIZERS[a.tokens],
    mesh=config.Mesh(data=1, fsdp=-1),
    sample=model.sample(guidance=guidance, temperature=temperature),
    evals=judges,
    tensorboard=True,
  )
  return to_config_dict(run)


def cells(
  sizes: Iterable[str], overrides: dict | None = None, **arguments
) -> Iterator[dict]:
  """The four cells at each size on the slices recommended for it, as a sweep has them.

  Args:
    overrides: of all runs.
    arguments: of get_config.
  """
  for size, (tokens, order) in itertools.product(sizes, SAMPLING):
    args = dict(tokens=tokens, order=order, size=size, **arguments)
    yield dict(
      name=f"{tokens}-{order}-{size}",
      config="configs/fluid.py:" + ",".join(f"{k}={v}" for k, v in args.items()),
      overrides=overrides or {},
      hardware="recommended",
    )


def to_config_dict(run: config.Run) -> ml_collections.ConfigDict:
  """Dataclass -> ConfigDict, for dotted overrides at the command line."""
  return ml_collections.ConfigDict(_tuples(config.to_dict(run)))


def _tuples(tree):
  """The same with tuples for lists, which flags cannot set."""
  if isinstance(tree, dict):
    return {k: _tuples(v) for k, v in tree.items()}
  return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree
