"""MAR's trunk (Li et al. 2024, arXiv 2406.11838): a masked autoencoder.

The encoder reads the tokens that are known, the decoder all positions; both read the
class in a buffer of tokens before the image's.

B batch, L image tokens, F buffer tokens, N tokens that the encoder reads, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid.config import rules
from fluid.models import layers
from fluid.models import rows as passes_of
from fluid.models.plan import Plan, rows
from fluid.models.stack import matrices, parameters
from fluid.models.style import Given, Style
from fluid.models.trunks.base import Dropping
from fluid.parallel import sharding
from fluid.tokenizers.base import TokenSpec


@dataclasses.dataclass(frozen=True)
class MARConfig(Dropping):
  """Pre-norm blocks in an encoder and a decoder of one width.

  Attributes:
    decoder_layers: of the decoder; `layers` are the encoder's.
    buffer: copies of the class before the image's tokens.
  """

  kind = "mar"
  follows = ("masked",)
  reads = "vector"
  skips = True
  PARAMETERS = (
    *parameters("encoder", "decoder"),
    (r"join/w", True, "core"),
    (r"join/b", False, "core"),
    (r"(fill|pos|pos_decoder|pos_out)/w", True, "embeddings"),
    (r"norm_in/(bias|scale)", False, "embeddings"),
  )
  DECAYS = r"label/w"
  MATRICES = matrices("encoder", "decoder")

  decoder_layers: int = 12
  buffer: int = 64

  def check(self, name):
    super().check(name)
    rules.positive(self, name, "decoder_layers", "buffer")

  @property
  def style(self):
    """See Blocks."""
    return Style(
      mlp="gelu",
      dropout=self.dropout,
      hidden_dropout=self.dropout,
      attention_dropout=self.attention_dropout,
    )

  def module(self, model, spec):
    """See fluid.models.trunks."""
    del model
    return MARTrunk(self, spec)


class MARTrunk(nn.Module):
  """See MARConfig."""

  cfg: MARConfig
  spec: TokenSpec

  def setup(self):
    n, d, c = self.spec.length, self.cfg.width, self.cfg
    self.fill = layers.Table((d,), (None,))
    self.pos = layers.Table((c.buffer + n, d), (None, None))
    self.pos_decoder = layers.Table((c.buffer + n, d), (None, None))
    self.pos_out = layers.Table((n, d), (None, None))
    self.norm_in = layers.Norm()
    self.encoder = c.stack(c.layers, c.style)
    self.join = layers.Linear((d,), (d,), (None, "embed"))
    self.decoder = c.stack(c.decoder_layers, c.style)

  def start(self, cond, length: int = 0):
    """See fluid.models.trunks: nothing is kept, as all positions change."""
    del cond, length
    return {}

  def __call__(self, x, plan: Plan, cond, kept=None, at=None, keys=None):
    """See fluid.models.trunks.

    Tokens that are not known do not reach the encoder: of each row those that are come
    first, and no more than the plan's most are read.
    """
    front, n = self.cfg.buffer, x.shape[1]
    known = jnp.ones(x.shape[:2], bool) if plan.known is None else plan.known
    vector = passes_of.like(cond.vector, x)
    buffer = jnp.repeat(vector[:, None].astype(x.dtype), front, 1)
    pos = self.pos().astype(x.dtype)
    x = x + pos[front:]
    there, most = known, n if plan.most is None else plan.most
    if most < n:
      index = jnp.argsort(~known, axis=1, stable=True)[:, :most]  # [B, N]
      x, there = _at(x, index), jnp.take_along_axis(known, index, 1)
    x = self.norm_in(jnp.concatenate([buffer + pos[:front], x], 1))
    seen = sharding.by_rows(jnp.ones((len(there), front), bool))
    mask = jnp.concatenate([seen, there], 1)
    x, _ = self.encoder(x, Given(mask=mask, keys=keys))
    x = self.join(x)
    buffer, x = x[:, :front], x[:, front:]
    if most < n:
      x = _at(x, jnp.maximum(jnp.cumsum(known, 1) - 1, 0))
    x = jnp.where(known[..., None], x, self.fill().astype(x.dtype))
    x = jnp.concatenate([buffer, x], 1) + self.pos_decoder().astype(x.dtype)
    if keys is not None:
      keys = jax.vmap(jax.random.fold_in, (0, None))(keys, self.cfg.layers)
    # Of a few slots, the last block computes these alone.
    slots = None if at is None else front + at
    z, _ = self.decoder(x, Given(keys=keys), at=slots)
    targets = plan.targets
    if at is None:
      z = z[:, front:]
    else:
      targets = jnp.asarray(targets)[at]
    return z + rows(self.pos_out(), targets, z.dtype), kept


def _at(x, index):
  return jnp.take_along_axis(x, index[..., None], 1)
