"""Text: embeddings or frozen features, null text, aligner.

B batch, T text tokens, E width of embeddings or features, D model width.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from fluid import config
from fluid.models import layers
from fluid.models.conditions.base import Cond, Condition
from fluid.models.stack import matrices, parameters
from fluid.models.style import Given
from fluid.parallel.sharding import spec


@dataclasses.dataclass(frozen=True)
class TextConfig(Condition):
  """Text tokens -> what cross-attention reads, through trainable blocks.

  Attributes:
    layers: trainable transformer blocks over the text (0 to N; paper: 6).
    width: of learned text embeddings; features of a frozen encoder have their own.
  """

  kind = "text"
  texts = ("learned", "t5", "minilm")
  PARAMETERS = (
    *parameters("aligner/stack", component="aligner"),
    (r"aligner/proj/w", True, "aligner"),
    (r"aligner/proj/b", False, "aligner"),
    (r"aligner/(table|null|pos)/w", False, "embeddings"),
  )

  MATRICES = matrices("aligner/stack")

  layers: int = 6
  width: int = 256

  def module(self, model: config.Model, text: config.Part, vocab: int) -> nn.Module:
    """See fluid.models.conditions."""
    return TextCondition(self, model, text, vocab)


class Aligner(nn.Module):
  """See TextConfig."""

  cfg: TextConfig
  model: config.Model
  text: Any
  vocab: int

  def setup(self):
    c, d = self.cfg, self.model.trunk.width
    e = self.text.feature_width or c.width
    self.table = layers.Table((self.vocab, e), ("vocab", "embed"))
    self.null = layers.Table((e,), (None,))
    self.proj = layers.Linear((e,), (d,), (None, "embed"))
    self.pos = layers.Table((self.text.length, d), (None, None))
    self.stack = self.model.trunk.stack(c.layers)

  def __call__(self, text, mask, drop):
    if text.ndim == 2:  # Ids; features need no table, and get none.
      table = self.table()
      text = table.at[text].get(out_sharding=spec("batch", None, None))
    x = jnp.where(drop[..., None], self.null(), text).astype(self.model.dtype)
    x = self.proj(x) + self.pos().astype(x.dtype)
    return self.stack(x, Given(mask=mask))[0]


class TextCondition(nn.Module):
  """A dropped text becomes one learned null vector at the first position, with
  everything else masked (as MAR's fake class; Fluid's choice is unconfirmed)."""

  cfg: TextConfig
  model: config.Model
  text: config.Part
  vocab: int

  def setup(self):
    self.aligner = Aligner(self.cfg, self.model, self.text, self.vocab)

  def __call__(self, text, mask, drop):
    """Ids [B, T] or frozen features [B, T, E], mask [B, T], drop [B] -> Cond."""
    first = jnp.arange(mask.shape[1]) == 0
    drop = drop[:, None]
    mask = jnp.where(drop, first, mask)
    return Cond(self.aligner(text, mask, drop), mask)
