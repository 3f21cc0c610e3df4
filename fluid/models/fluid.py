"""Fluid(head, order): one transformer, four cells (arXiv 2410.13863).

B batch, L image tokens, T text tokens, D width, C token channels.

The trunk knows neither head nor order. One learned vector, `fill`, is the start token
(raster) or the mask token (random), so both orders have the same parameters.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid import config
from fluid.models import layers
from fluid.models.heads import HEADS
from fluid.models.orders import ORDERS
from fluid.models.stack import Stack
from fluid.models.text import TextAligner
from fluid.tokenizers.base import TokenSpec


class Fluid(nn.Module):
  """Text-to-image transformer over tokens.

  Attributes:
    cfg: cell and size.
    spec: token space; its kind must be the head's.
    text, vocab: text encoder settings and vocabulary size.
  """

  cfg: config.Model
  spec: TokenSpec
  text: config.Text
  vocab: int

  def setup(self):
    c, n = self.cfg, self.spec.length
    self.order = ORDERS[c.order](c)
    self.head = HEADS[c.head](c, self.spec)
    self.aligner = TextAligner(c, self.text, self.vocab)
    self.fill = layers.Table((c.width,), (None,))
    self.pos = layers.Table((n, c.width), (None, None))
    # Positions once more where the trunk meets the head (MAR's second embedding).
    self.pos_out = layers.Table((n, c.width), (None, None))
    self.norm_in = layers.Norm()
    self.trunk = Stack(
      c.layers,
      c.width,
      c.heads,
      c.mlp_ratio * c.width,
      causal=self.order.causal,
      scan=c.scan,
      remat=c.remat,
      kernel=c.attention,
    )

  def losses(self, tokens, text, text_mask, keys, train: bool):
    """Per-token losses; see Net.loss."""
    k_order, k_head, k_drop = jax.vmap(lambda k: jax.random.split(k, 3))(keys).T
    rate = self.cfg.text_drop if train else 0.0
    drop = jax.vmap(lambda k: jax.random.uniform(k) < rate)(k_drop)
    text, text_mask = self.aligner(text, text_mask, drop)
    x, mask = self.order.corrupt(k_order, self.head.embed(tokens), self.fill())
    z = self.through(x, text, text_mask)
    return {**self.head.loss(z, tokens, k_head), "mask": mask}

  def through(self, x, text, text_mask):
    """Embedded inputs x [B, L, D] -> z [B, L, D]."""
    x = self.norm_in(x + self.pos().astype(x.dtype))
    z = self.trunk(x, text=text, text_mask=text_mask)
    return z + self.pos_out().astype(x.dtype)

  # What sampling calls, each a pure function of the parameters through `apply`.

  def encode_text(self, text, text_mask, drop):
    """-> text [B, T, D], mask [B, T]."""
    return self.aligner(text, text_mask, drop)

  def fill_in(self, tokens, unknown, at, text_kv, text_mask):
    """Tokens [B, L(, C)], unknown [B, L], positions `at` [B, M] -> z [B, M, D]."""
    x = self.head.embed(tokens)
    x = jnp.where(unknown[..., None], self.fill().astype(x.dtype), x)
    x = self.norm_in(x + self.pos().astype(x.dtype))
    z = self.trunk.outputs_at(x, at, text_kv, text_mask)
    return z + self.pos_out().astype(x.dtype)[at]

  def start(self, batch: int):
    """The first raster input [B, 1, D]."""
    fill = self.fill().astype(self.cfg.dtype)
    return jnp.broadcast_to(fill, (batch, 1, self.cfg.width))

  def embed(self, tokens):
    """[B, M(, C)] -> [B, M, D]."""
    return self.head.embed(tokens)

  def decode(self, x, position, cache, text_mask):
    """Raster input [B, 1, D] at `position` -> z [B, 1, D], cache."""
    pos, pos_out = (p()[position].astype(x.dtype) for p in (self.pos, self.pos_out))
    z, cache = self.trunk.decode(self.norm_in(x + pos), position, cache, text_mask)
    return z + pos_out, cache

  def draw(self, z, keys, z_uncond, guidance, sample: config.Sample):
    """z [B, M, D], keys [B, M] -> tokens [B, M(, C)]; `guidance` of this step."""
    return self.head.sample(
      z,
      keys,
      z_uncond=z_uncond,
      guidance=guidance,
      temperature=sample.temperature,
      steps=sample.diffusion_steps,
      clip=sample.clip,
      solver=sample.solver,
    )
