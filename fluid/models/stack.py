"""A stack of blocks: scanned, rematerialised, with an optional cache.

B batch, L positions, T text tokens, D width, H heads, K head width, N layers.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid.models import layers
from fluid.parallel import sharding

_REMAT = {
  "block": None,
  "dots": jax.checkpoint_policies.save_only_these_names(sharding.PRODUCT),
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
        in_axes=nn.broadcast,
        length=self.depth,
        unroll=1 if self.scan else self.depth,
      )(self.width, self.heads, self.hidden, self.causal, self.cross, self.kernel)
    self.norm = layers.Norm()

  def __call__(self, x, *, text=None, text_mask=None, mask=None):
    """x [B, L, D], text [B, T, D], masks [B, T], [B, L] -> [B, L, D]."""
    if self.depth:
      x, _ = self.blocks(x, text, text_mask, mask)
    return self.norm(x)

  def outputs_at(self, x, at, text_kv, text_mask):
    """The outputs at positions `at` [B, M] alone -> [B, M, D].

    All blocks but the last need every position; the last needs them for its keys only.
    `text_kv` as of `project_text`.
    """

    def run(x, layer, at=None):
      params, kv = layer
      block = self._block()
      return block.apply({"params": params}, x, None, text_mask, None, kv, at)[0]

    stacked = (self.variables["params"]["blocks"], text_kv)
    before, last = (jax.tree.map(lambda a: a[i], stacked) for i in (slice(-1), -1))  # noqa: B023
    x, _ = jax.lax.scan(lambda x, layer: (run(x, layer), None), x, before)
    return self.norm(run(x, last, at))

  def decode(self, x, index, cache, text_mask):
    """One position x [B, 1, D] at `index` of a cache -> [B, 1, D], cache.

    The keys and values of all layers are carried whole and written in place: threaded
    through the scan layer by layer, they would be copied at every token.
    """
    past, text_kv = cache

    def run(carry, layer):
      (x, past), (params, kv, i) = carry, layer
      return self._block().apply(
        {"params": params}, x, index, i, past, kv, text_mask, method="decode"
      ), None

    layers_ = (self.variables["params"]["blocks"], text_kv, jnp.arange(self.depth))
    unroll = 1 if self.scan else self.depth
    (x, past), _ = jax.lax.scan(run, (x, past), layers_, unroll=unroll)
    return self.norm(x), (past, text_kv)

  def _block(self):
    return layers.Block(
      self.width, self.heads, self.hidden, self.causal, self.cross, self.kernel,
      parent=None,
    )  # fmt: skip


def project_text(stack_params, text: jax.Array, heads: int) -> tuple:
  """Keys and values of the text [B, T, D] in every layer, each [N, B, T, H, K].

  Sampling reuses these at every step; training projects inside each block instead,
  where rematerialisation keeps them out of memory.
  """
  attention = layers.Attention(text.shape[-1], heads)
  return jax.vmap(lambda p: attention.apply({"params": p}, text, method="project"))(
    stack_params["blocks"]["cross"]
  )


def empty_cache(text_kv: tuple, length: int) -> tuple:
  """What `Stack.decode` threads: keys and values of image and text, heads first.

  Args:
    text_kv: of `project_text`.
    length: L, the most positions that can be decoded.

  Returns:
    ((k, v) [N, B, H, L, K], all zero; (k, v) [N, B, H, T, K] of the text).
  """
  text_kv = tuple(jnp.swapaxes(a, 2, 3) for a in text_kv)
  shape = (*text_kv[0].shape[:3], length, text_kv[0].shape[4])
  return tuple(jnp.zeros(shape, a.dtype) for a in text_kv), text_kv
