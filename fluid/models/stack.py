"""A stack of blocks: scanned, rematerialised, with an optional cache.

B batch, L positions, T text tokens, D width, H heads, K head width, N layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid.models import layers
from fluid.parallel import sharding

# Parameters of a stack: names of the weights that decay, and of the others.
WEIGHTS = r"blocks/(self|cross|mlp)/\w+/w"
OTHERS = r"(blocks/.*/(b|bias|scale)|norm/(bias|scale))"
# Matrices among the weights: axes of their inputs and outputs; keys and values are two.
MATRICES = (
  (r"blocks/(self|cross)/q/w", (1,), (2, 3)),
  (r"blocks/(self|cross)/kv/w", (1,), (3, 4)),
  (r"blocks/(self|cross)/out/w", (1, 2), (3,)),
  (r"blocks/mlp/(up|down)/w", (1,), (2,)),
)

_REMAT = {
  "block": None,
  "dots": jax.checkpoint_policies.save_only_these_names(sharding.PRODUCT),
}


class Stack(nn.Module):
  """N blocks and a final norm; parameters carry a leading layer axis.

  Attributes:
    cross: blocks have cross-attention.
    scan: one compiled block in a loop; False unrolls the loop (same parameters).
    remat: 'none', 'block' or 'dots', see trunks.fluid.FluidConfig.
  """

  depth: int
  width: int
  heads: int
  hidden: int
  cross: bool = True
  scan: bool = True
  remat: str = "block"
  kernel: str = "xla"

  def setup(self):
    if self.depth:
      self.blocks = nn.scan(
        layers.Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=self.depth,
      )(*self._shape())
    self.norm = layers.Norm()

  def _shape(self):
    return self.width, self.heads, self.hidden, self.cross, self.kernel

  def start(self, text: jax.Array | None, length: int = 0) -> dict[str, Any]:
    """What passes over one text share.

    The text's keys and values in every layer: sampling reuses them at every step, while
    training projects inside each block, where rematerialisation keeps them out of
    memory. With a length, zeros for the keys and values of so many positions as well;
    these and then also the text's lie heads first, as one query reads them.

    Args:
      text: [B, T, D].
      length: the most positions that can be kept.

    Returns:
      'text': (k, v) [N, B, T, H, K], or heads first [N, B, H, T, K]; with a length
      'past': (k, v) [N, B, H, length, K].
    """
    attention = layers.Attention(self.width, self.heads, parent=None)
    text_kv: Any = jax.vmap(
      lambda p: attention.apply({"params": p}, text, method="project")
    )(self.variables["params"]["blocks"]["cross"])
    if not length:
      return {"text": text_kv}
    text_kv = tuple(jnp.swapaxes(a, 2, 3) for a in text_kv)
    shape = (*text_kv[0].shape[:3], length, text_kv[0].shape[4])
    return {"text": text_kv, "past": tuple(jnp.zeros(shape, a.dtype) for a in text_kv)}

  def __call__(
    self,
    x,
    *,
    text=None,
    text_mask=None,
    mask=None,
    causal=False,
    kept=None,
    first=0,
    at=None,
  ):
    """One pass, in training and in sampling.

    Args:
      x: [B, L, D].
      text, text_mask: [B, T, D], [B, T]: what cross-attention reads.
      mask: [B, L], keys of self-attention that may be attended (padded sequences).
      causal: position i sees those up to i.
      kept: of `start`. With a past, x are the positions from `first` on, and see those
        before: their keys and values are written in place, all layers carried whole;
        threaded through the scan layer by layer they would be copied at every token.
      at: positions [B, M] to compute. All blocks but the last need every position; the
        last needs them for its keys only.

    Returns:
      [B, L or M, D], and kept.
    """
    kept = kept or {}
    if not self.depth:
      return self.norm(x), kept
    if self.is_initializing():
      self.blocks((x, None), None, text, text_mask, mask)
      return self.norm(x), kept

    def run(carry, layer, at=None):
      params, *own = layer
      # Its parameters as an argument: a block of this stack, on any of its layers.
      block = layers.Block(*self._shape(), causal=causal, parent=None)
      return block.apply(
        {"params": params}, carry, own, text, text_mask, mask, first=first, at=at
      )

    if self.remat != "none" and not kept:
      policy = _REMAT[self.remat]
      run = jax.checkpoint(run, prevent_cse=not self.scan, policy=policy)
    blocks = self.variables["params"]["blocks"]
    stacked = (blocks, kept.get("text"), jnp.arange(self.depth))
    carry, unroll = (x, kept.get("past")), 1 if self.scan else self.depth
    if at is None:
      (x, past), _ = jax.lax.scan(run, carry, stacked, unroll=unroll)
    else:
      before, last = (
        jax.tree.map(lambda a, i=i: a[i], stacked) for i in (slice(-1), -1)
      )
      carry, _ = jax.lax.scan(run, carry, before, unroll=unroll)
      (x, past), _ = run(carry, last, at)
    return self.norm(x), kept | ({} if past is None else {"past": past})
