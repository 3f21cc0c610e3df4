"""Head of models that read latents and predict tokens (VAR).

B batch, L tokens, C latent channels, D trunk width.
"""

import dataclasses
from typing import ClassVar

import jax
from flax import linen as nn

from fluid import config
from fluid.models import layers
from fluid.models.heads.categorical import CategoricalConfig, CategoricalHead


@dataclasses.dataclass(frozen=True)
class ScalesConfig(CategoricalConfig):
  """A projection embeds latents, logits predict tokens.

  Attributes:
    tie_embeddings: there is no table to share.
  """

  kind = "scales"
  scaled = True
  PARAMETERS: ClassVar[tuple] = (
    (r"head/tokens/w", True, "embeddings"),
    (r"head/tokens/b", False, "embeddings"),
    *CategoricalConfig.PARAMETERS[1:],
  )

  tie_embeddings: bool = False

  def check(self, name):
    super().check(name)
    if self.tie_embeddings:
      raise config.ConfigError(f"config key '{name}tie_embeddings' must be False")

  def module(self, model, spec):
    """See fluid.models.heads."""
    return ScalesHead(self, model, spec)


class ScalesHead(CategoricalHead):
  """See ScalesConfig."""

  def setup(self):
    d, vocab = self.model.trunk.width, self.spec.vocab
    self.tokens = layers.Linear((self.spec.channels,), (d,), (None, "embed"))
    self.output = layers.Table((vocab, d), ("vocab", "embed"))
    if self.cfg.bias:
      self.bias = layers.Table((vocab,), ("vocab",), nn.initializers.zeros)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Latents [B, L, C] -> [B, L, D]."""
    return self.tokens(tokens.astype(self.model.dtype))
