"""A stack of blocks: scanned, rematerialised, with an optional cache.

B batch, L positions, T text tokens, D width, H heads, K head width, N layers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid.models import block
from fluid.models.style import Given, Style
from fluid.parallel import sharding

# Parameters of a stack: names of the weights that decay, and of the others.
WEIGHTS = r"blocks/((self|cross|mlp)/(q|kv|out|up|gated|down)|modulation)/w"
OTHERS = (
  r"(blocks/.*/(b|bias|scale)|blocks/(self/(heat|v_bias)|offset)/w|norm/(bias|scale))"
)
# Matrices among the weights: axes of their inputs and outputs; keys and values are two.
_MATRICES = (
  (r"blocks/(self|cross)/q/w", (1,), (2, 3)),
  (r"blocks/(self|cross)/kv/w", (1,), (3, 4)),
  (r"blocks/(self|cross)/out/w", (1, 2), (3,)),
  (r"blocks/mlp/(up|down)/w", (1,), (2,)),
  (r"blocks/mlp/gated/w", (1,), (3,)),
)


def parameters(*stacks: str, component: str = "core") -> tuple[tuple, ...]:
  """Rows of PARAMETERS for stacks of these names."""
  return tuple(
    (f"{stack}/{names}", decays, component)
    for stack in stacks
    for names, decays in ((WEIGHTS, True), (OTHERS, False))
  )


def matrices(*stacks: str) -> tuple[tuple, ...]:
  """Rows of MATRICES for stacks of these names."""
  return tuple(
    (f"{stack}/{name}", *axes) for stack in stacks for name, *axes in _MATRICES
  )


_NOTHING = Given()
_REMAT = {
  "block": None,
  "dots": jax.checkpoint_policies.save_only_these_names(sharding.PRODUCT),
}


class Stack(nn.Module):
  """N blocks and a final norm; parameters carry a leading layer axis.

  Attributes:
    style: of the blocks.
    scan: one compiled block in a loop; False unrolls the loop (same parameters).
    remat: 'none', 'block' or 'dots', see trunks.base.Blocks.
    final: with the final norm.
  """

  depth: int
  width: int
  heads: int
  hidden: int
  style: Style = Style()
  scan: bool = True
  remat: str = "block"
  kernel: str = "xla"
  final: bool = True

  def setup(self):
    if self.depth:
      self.blocks = nn.scan(
        block.Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=self.depth,
      )(*self._shape())
    if self.final:
      self.norm = self.style.norm_layer()

  def _shape(self):
    return self.width, self.heads, self.hidden, self.style, self.kernel

  def _end(self, x):
    return self.norm(x) if self.final else x

  def start(self, like: jax.Array, length: int = 0) -> dict[str, Any]:
    """What passes over one condition share.

    With cross-attention, the text's keys and values in every layer: sampling reuses
    them at every step, while training projects inside each block, where
    rematerialisation keeps them out of memory. With a length, zeros for the keys and
    values of so many positions as well; these and then also the text's lie heads first,
    as one query reads them.

    Args:
      like: [B, T, D]: the text, where there is cross-attention; else an array of the
        batch and the type that passes will have.
      length: the most positions that can be kept.

    Returns:
      'text': (k, v) [N, B, T, H, K], or heads first [N, B, H, T, K]; with a length
      'past': (k, v) [N, B, H, length, K].
    """
    kept: dict[str, Any] = {}
    if self.style.cross:
      attention = block.Attention(self.width, self.heads, self.style, parent=None)
      kept["text"] = jax.vmap(
        lambda p: attention.apply({"params": p}, like, method="project")
      )(self.variables["params"]["blocks"]["cross"])
    if length:
      if "text" in kept:
        kept["text"] = tuple(jnp.swapaxes(a, 2, 3) for a in kept["text"])
      width = self.width // self.heads
      shape = (self.depth, like.shape[0], self.heads, length, width)
      kept["past"] = tuple(jnp.zeros(shape, like.dtype) for _ in range(2))
    # The compiler would have all rows on every device: weights stay where they are.
    return sharding.by_rows(kept, axis=1)

  def __call__(
    self, x, given: Given = _NOTHING, *, causal=False, kept=None, first=0, at=None
  ):
    """One pass, in training and in sampling.

    Args:
      x: [B, L, D].
      given: what all blocks read.
      causal: position i sees those up to i; or sizes of blocks, each of which sees
        itself and those before.
      kept: of `start`. With a past, x are the positions from `first` on, and see those
        before (and, unless causal, each other): their keys and values are written in
        place, all layers carried whole; threaded through the scan layer by layer they
        would be copied at every token.
      at: positions [B, M] to compute. All blocks but the last need every position; the
        last needs them for its keys only.

    Returns:
      [B, L or M, D], and kept.
    """
    kept = kept or {}
    if not self.depth:
      return self._end(x), kept
    if self.is_initializing():
      self.blocks((x, None), None, given)
      return self._end(x), kept

    def run(carry, layer, at=None):
      params, *own = layer
      # Its parameters as an argument: a block of this stack, on any of its layers.
      one = block.Block(*self._shape(), causal=causal, parent=None)
      return one.apply({"params": params}, carry, own, given, first=first, at=at)

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
    return self._end(x), kept | ({} if past is None else {"past": past})
