"""Tokenizers: `load(path)` gives one; TOKENIZERS has the config of every kind.

A tokenizer's config makes it, `config.make(image_size, variables)`; see base.Tokenizer.
Linen stays in this package and in fluid.models; others see arrays and pure functions. A
new tokenizer is one file and one row of TOKENIZERS.
"""

import dataclasses
from typing import Any

import jax

from fluid import config as config_lib
from fluid.config import upgrade
from fluid.data import records
from fluid.tokenizers import store
from fluid.tokenizers.base import Tokenizer, TokenizerConfig, TokenSpec, in_batches
from fluid.tokenizers.vae import VAEConfig
from fluid.tokenizers.vq import VQConfig

TOKENIZERS: dict[str, Any] = {
  "vae": VAEConfig,
  "vq": VQConfig,
  # Published ones, for weights that python -m fluid.convert reads.
  "sd_vae": "fluid.tokenizers.published:SDVAEConfig",
  "kl16": "fluid.tokenizers.published:KL16Config",
  "llamagen_vq": "fluid.tokenizers.published:LlamaGenVQConfig",
  "taming_vq": "fluid.tokenizers.published:TamingVQConfig",
  "maskgit_vq": "fluid.tokenizers.maskgit:MaskGITVQConfig",
  "var_vq": "fluid.tokenizers.multiscale:VARVQConfig",
}

__all__ = [
  "TOKENIZERS",
  "TokenSpec",
  "Tokenizer",
  "TokenizerConfig",
  "check_size",
  "described",
  "in_batches",
  "load",
  "of",
]


def of(run: config_lib.Run) -> Tokenizer | None:
  """The tokenizer that made a run's tokens, and no other; None where none is named."""
  if not run.tokenizer.path:
    return None
  metadata = records.read_metadata(run.data.cache) if run.data.cache else {}
  sha256 = metadata.get("config", {}).get("tokenizer.weights", "")
  return load(run.tokenizer.path, sha256)


def load(path: str, sha256: str = "") -> Tokenizer:
  """Restores PATH/{config.json, weights.safetensors}; else ConfigError says why.

  Args:
    path: folder.
    sha256: of the weights that are wanted ('' for whatever is there).
  """
  content = store.read_config(path)
  if sha256 and content["weights_sha256"] != sha256:
    raise config_lib.ConfigError(
      f"{path} holds another tokenizer (weights {content['weights_sha256'][:12]}) than "
      f"that of this run ({sha256[:12]}): put that back, or name where it is in config "
      "key 'tokenizer.path'"
    )
  config = _config(content)
  untrained = config.make(content["image_size"])
  shapes = jax.eval_shape(untrained.init, jax.random.key(0))
  weights = store.read_weights(path, content["weights_sha256"], shapes)
  return config.make(content["image_size"], weights)


def described(config: TokenizerConfig) -> TokenizerConfig:
  """As the folder that it names says of itself; the section's fields are for training.

  A folder that cannot be read, as on a machine that only plans, leaves the section.
  """
  try:
    found = _config(store.read_config(config.path)) if config.path else config
  except config_lib.ConfigError:
    return config
  return dataclasses.replace(found, path=config.path)


def _config(content: dict[str, Any]) -> TokenizerConfig:
  """Of the config.json of a folder."""
  section = upgrade.tokenizer(content["tokenizer"])
  return config_lib.part_from_dict(section, "tokenizer", "tokenizer.")


def check_size(tokenizer: Tokenizer, image_size: int, path: str) -> None:
  """Raises ConfigError unless the tokenizer of a folder is for images of this size.

  Convolutions take any, and so do trunks whose positions are computed: what is drawn
  would be of another size than the model's, and nothing else would say so.
  """
  if tokenizer.image_size != image_size:
    raise config_lib.ConfigError(
      f"config key 'data.image_size' is {image_size}, but the tokenizer {path} is for "
      f"{tokenizer.image_size}: train or convert another (image_size={image_size})"
    )
