"""Small tokenizers, and images for them."""

import dataclasses

import jax
import numpy as np

from fluid import config as config_lib
from fluid.tokenizers.vae import VAEConfig
from fluid.tokenizers.vq import VQConfig

SMALL = {"width": 16, "multipliers": (1,), "stem": 4}
TRAINING = {"steps": 150, "batch": 16, "lr": 5e-3, "warmup": 10}
TINY = VAEConfig(**SMALL, **TRAINING, channels=4)
TINY_VQ = VQConfig(**SMALL, **TRAINING, channels=8, vocab=32)
SIZE = 16
# Of published kinds and others, where they have the field.
SHRUNK = SMALL | {"width": 8, "blocks": 1, "channels": 4, "groups": 4, "vocab": 32}
SHRUNK |= {"z_channels": 0, "attention": "none", "scales": (1, 3, 4)}


def shrunk(kind, **changes):
  """The config of a kind, small."""
  config = config_lib.resolve("tokenizer", kind)
  fields = {field.name for field in dataclasses.fields(config)}
  return config(**{k: v for k, v in SHRUNK.items() if k in fields} | changes)


def pictures(count, seed=0):
  """uint8 [N, 16, 16, 3]: a coloured rectangle on a coloured ground."""
  gen = np.random.default_rng(seed)
  images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
  for image in images:
    image[:] = gen.integers(0, 256, 3)
    y, x = gen.integers(0, 10, 2)
    image[y : y + 6, x : x + 6] = gen.integers(0, 256, 3)
  return images


class Pictures:
  """The smallest source there is."""

  def __init__(self, split):
    self.images = pictures(64, seed=("train", "val").index(split))

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    return {"image": self.images[index]}


def bound(config, size=SIZE):
  tokenizer = config.make(size)
  return config.make(size, jax.jit(tokenizer.init)(jax.random.key(0, impl="rbg")))
