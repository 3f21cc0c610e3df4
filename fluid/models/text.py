"""Text side of the model: embeddings or frozen features, null text, aligner.

B batch, T text tokens, E text width, D model width.
"""

import jax.numpy as jnp
from flax import linen as nn

from fluid import config
from fluid.models import layers
from fluid.models.stack import Stack
from fluid.parallel.sharding import spec


class TextAligner(nn.Module):
  """Text tokens -> what cross-attention reads, through N trainable blocks.

  A dropped text becomes one learned null vector (as MAR's fake class; Fluid's choice is
  unconfirmed) at the first position, with everything else masked.
  """

  cfg: config.Model
  text: config.Text
  vocab: int

  def setup(self):
    c, t = self.cfg, self.text
    self.table = layers.Table((self.vocab, t.width), ("vocab", "embed"))
    self.null = layers.Table((t.width,), (None,))
    self.proj = layers.Linear((t.width,), (c.width,), (None, "embed"))
    self.pos = layers.Table((t.length, c.width), (None, None))
    self.stack = Stack(
      c.aligner_layers,
      c.width,
      c.heads,
      c.mlp_ratio * c.width,
      cross=False,
      scan=c.scan,
      remat=c.remat,
      kernel=c.attention,
    )

  def __call__(self, text, mask, drop):
    """Ids [B, T] or frozen features [B, T, E], mask [B, T], drop [B].

    Returns:
      Text [B, T, D] and its mask [B, T]; every row keeps at least one token.
    """
    if text.ndim == 2:
      table = self.table()
      text = table.at[text].get(out_sharding=spec("batch", None, None))
    first = jnp.arange(mask.shape[1]) == 0
    drop = drop[:, None]
    mask = jnp.where(drop, first, mask)
    x = jnp.where(drop[..., None], self.null(), text).astype(self.cfg.dtype)
    x = self.proj(x) + self.pos().astype(x.dtype)
    return self.stack(x, mask=mask), mask
