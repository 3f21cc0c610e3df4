"""A stack of blocks: scanned, rematerialised, with an optional cache.

B batch, L positions, T text tokens, D width, H heads, K head width, N layers.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid.models import layers

_REMAT = {
  "block": None,
  "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


class Stack(nn.Module):
  """N blocks and a final norm; parameters carry a leading layer axis.

  Attributes:
    scan: one compiled block in a loop; False unrolls the loop (same parameters).
    remat: 'none', 'block' or 'dots', see config.Model.
  """

  depth: int
  width: int
  heads: int
  hidden: int
  causal: bool = False
  cross: bool = True
  scan: bool = True
  remat: str = "block"
  kernel: str = "xla"

  def setup(self):
    if self.depth:
      block = layers.Block
      if self.remat != "none":
        block = nn.remat(block, prevent_cse=not self.scan, policy=_REMAT[self.remat])
      self.blocks = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=self.depth,
        unroll=1 if self.scan else self.depth,
      )(self.width, self.heads, self.hidden, self.causal, self.cross, self.kernel)
    self.norm = layers.Norm()

  def __call__(self, x, *, cache=None, text=None, text_mask=None, mask=None):
    """x [B, L, D], text [B, T, D], masks [B, T], [B, L] -> [B, L, D], cache."""
    if self.depth:
      x, cache = self.blocks(x, cache, text, text_mask, mask)
    return self.norm(x), cache

  def outputs_at(self, x, at, cache, text_mask):
    """The outputs at positions `at` [B, M] alone -> [B, M, D].

    All blocks but the last need every position; the last needs them for its keys only.
    """
    block = layers.Block(
      self.width, self.heads, self.hidden, self.causal, self.cross, self.kernel,
      parent=None,
    )  # fmt: skip

    def run(x, layer, at=None):
      params, cache = layer
      return block.apply({"params": params}, x, cache, None, text_mask, None, at)[0]

    stacked = (self.variables["params"]["blocks"], cache)
    before, last = (jax.tree.map(lambda a: a[i], stacked) for i in (slice(-1), -1))  # noqa: B023
    x, _ = jax.lax.scan(lambda x, layer: (run(x, layer), None), x, before)
    return self.norm(run(x, last, at))


def text_cache(stack_params, text: jax.Array, heads: int) -> dict:
  """Projects the text [B, T, D] for every layer once: text_k, text_v [N, B, T, H, K].

  Sampling reuses these at every step; training projects inside each block instead,
  where rematerialisation keeps them out of memory.
  """
  attention = layers.Attention(text.shape[-1], heads)
  k, v = jax.vmap(lambda p: attention.apply({"params": p}, text, method="project"))(
    stack_params["blocks"]["cross"]
  )
  return {"text_k": k, "text_v": v}


def empty_cache(depth, batch, length, heads, width, dtype) -> dict:
  """Self-attention cache of a stack: k, v [N, B, L, H, K] and index [N], at zero."""
  kv = jnp.zeros((depth, batch, length, heads, width // heads), dtype)
  return {"k": kv, "v": kv, "index": jnp.zeros((depth,), jnp.int32)}
