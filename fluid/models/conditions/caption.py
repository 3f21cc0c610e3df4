"""A caption's features as a prefix, as LlamaGen's text-conditional models take them.

B batch, T text tokens, E width of features, D model width.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from fluid import config
from fluid.models import layers
from fluid.models.conditions.base import Cond, Condition


@dataclasses.dataclass(frozen=True)
class CaptionConfig(Condition):
  """Frozen features through an MLP; padding goes before the text."""

  kind = "caption"
  texts = ("t5", "minilm")
  PARAMETERS = (
    (r"caption/(up|down)/w", True, "aligner"),
    (r"caption/null/w", False, "embeddings"),
  )

  def module(self, model: config.Model, text: config.Part, vocab: int) -> nn.Module:
    """See fluid.models.conditions."""
    del vocab
    return CaptionCondition(model, text)


class _Caption(nn.Module):
  model: config.Model
  text: config.Part

  def setup(self):
    d, e = self.model.trunk.width, self.text.feature_width
    self.null = layers.Table((self.text.length, e), (None, None))
    self.up = layers.Linear((e,), (d,), (None, "embed"), bias=False)
    self.down = layers.Linear((d,), (d,), (None, "embed"), bias=False)

  def __call__(self, x, drop):
    x = jnp.where(drop[:, None, None], self.null(), x).astype(self.model.dtype)
    return self.down(nn.gelu(self.up(x)))


class CaptionCondition(nn.Module):
  """The null caption is a learned one; it is as long as the one it stands for."""

  model: config.Model
  text: config.Part

  def setup(self):
    self.caption = _Caption(self.model, self.text)

  def __call__(self, features, mask, drop):
    """Features [B, T, E], mask [B, T], drop [B] -> Cond."""
    t = mask.shape[1]
    # Of a text of n tokens the first comes to t - n; what padding gets is not read.
    index = (jnp.arange(t) + mask.sum(1, keepdims=True)) % t
    features = jnp.take_along_axis(features, index[..., None], 1)
    mask = jnp.take_along_axis(mask, index, 1)
    return Cond(self.caption(features, drop), mask)
