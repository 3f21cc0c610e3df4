"""Tokenizers: `load(path)` gives one; TOKENIZERS maps config.tokenizer.kind to a class.

Linen stays in this package and in fluid.models; others see arrays and pure functions.
"""

import jax

from fluid import config as config_lib
from fluid.tokenizers import store
from fluid.tokenizers.base import Tokenizer, TokenSpec, in_batches
from fluid.tokenizers.vae import VAE
from fluid.tokenizers.vq import VQ

TOKENIZERS = {"vae": VAE, "vq": VQ}

__all__ = ["TOKENIZERS", "TokenSpec", "Tokenizer", "build", "in_batches", "load"]


def build(config: config_lib.Tokenizer, image_size: int, variables=None) -> Tokenizer:
  """The tokenizer that `config` describes; an unknown kind -> ConfigError."""
  if config.kind not in TOKENIZERS:
    raise config_lib.ConfigError(
      f"config key 'tokenizer.kind' is '{config.kind}'; "
      f"choose from {', '.join(TOKENIZERS)}"
    )
  return TOKENIZERS[config.kind](config, image_size, variables)


def load(path: str) -> Tokenizer:
  """Restores PATH/{config.json, weights.safetensors}; else ConfigError says why."""
  content = store.read_config(path)
  config = config_lib.from_config_dict(
    content["tokenizer"], config_lib.Tokenizer, "tokenizer."
  )
  shapes = jax.eval_shape(build(config, content["image_size"]).init, jax.random.key(0))
  weights = store.read_weights(path, content["weights_sha256"], shapes)
  return build(config, content["image_size"], weights)
