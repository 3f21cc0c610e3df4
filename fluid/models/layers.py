"""Layers of the trunk, aware of explicit sharding.

B batch, L image tokens, T text tokens, D width, H heads, K head width, F MLP width.

Parameters are float32 and cast to the activations' type where they are used; norms and
softmax compute in float32.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid import sharding
from fluid.models.attention import attention
from fluid.sharding import spec

EMBED_INIT = nn.initializers.normal(0.02)


def _param(module, name, init, shape, axes):
  return module.param(
    name, lambda key: init(key, shape, jnp.float32, out_sharding=spec(*axes))
  )


class Table(nn.Module):
  """A learned array: embeddings, positions, single vectors."""

  shape: Sequence[int]
  axes: Sequence[str | None]
  init: Callable = EMBED_INIT

  @nn.compact
  def __call__(self) -> jax.Array:
    return _param(self, "w", self.init, tuple(self.shape), self.axes)


class Linear(nn.Module):
  """Contracts the last `n_in` axes of x with a kernel of shape (*inputs, *outputs).

  Attributes:
    inputs, outputs: sizes of the contracted and of the new axes.
    axes: logical names of the kernel's axes.
    init: of the kernel; default Xavier uniform over the flattened fans (as MAR).
  """

  inputs: Sequence[int]
  outputs: Sequence[int]
  axes: Sequence[str | None]
  bias: bool = True
  init: Callable | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    n, m = len(self.inputs), len(self.outputs)
    shape = (*self.inputs, *self.outputs)
    init = self.init or nn.initializers.variance_scaling(
      1.0, "fan_avg", "uniform", in_axis=range(n), out_axis=range(n, n + m)
    )
    w = _param(self, "w", init, shape, self.axes)
    lead, i, o = "abcde"[: x.ndim - n], "uvw"[:n], "xyz"[:m]
    # Outputs over fsdp would collide with the batch, which is sharded there already.
    free = [None if a == "embed" else a for a in self.axes]
    b = None
    if self.bias:
      b = _param(self, "b", nn.initializers.zeros, tuple(self.outputs), free[n:])
    return sharding.product(
      f"{lead}{i},{i}{o}->{lead}{o}",
      x,
      w.astype(x.dtype),
      b,
      x_axes=("batch", *[None] * (len(lead) - 1), *free[:n]),
      w_axes=self.axes,
    )


class Norm(nn.Module):
  """LayerNorm, epsilon 1e-6 (as MAR), computed in float32."""

  affine: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-6)
    if self.affine:
      d = x.shape[-1]
      y = y * _param(self, "scale", nn.initializers.ones, (d,), (None,))
      y = y + _param(self, "bias", nn.initializers.zeros, (d,), (None,))
    return y.astype(x.dtype)


class Attention(nn.Module):
  """Multi-head attention; keys and values come from x or from another sequence."""

  width: int
  heads: int
  kernel: str = "xla"

  def setup(self):
    d, h, k = self.width, self.heads, self.width // self.heads
    self.q = Linear((d,), (h, k), ("embed", "heads", None))
    self.kv = Linear((d,), (2, h, k), ("embed", None, "heads", None))
    self.out = Linear((h, k), (d,), ("heads", None, "embed"))

  def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, T, D] -> keys and values, each [B, T, H, K]."""
    kv = self.kv(x)
    return kv[:, :, 0], kv[:, :, 1]

  def __call__(self, x, keys, values, *, mask=None, causal=False):
    """x [B, L, D], keys and values [B, T, H, K], mask [B|1, T] -> [B, L, D]."""
    y = attention(self.q(x), keys, values, mask=mask, causal=causal, kernel=self.kernel)
    return self.out(y)


class Mlp(nn.Module):
  """D -> F -> D with GELU (tanh form)."""

  width: int
  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    d, f = self.width, self.hidden
    h = nn.gelu(Linear((d,), (f,), ("embed", "mlp"), name="up")(x))
    return Linear((f,), (d,), ("mlp", "embed"), name="down")(h)


class Block(nn.Module):
  """Pre-norm block: self-attention, cross-attention to the text (if any), MLP.

  `cache` is None or a dict: 'k', 'v' [B, S, H, K] and 'index' (self-attention keys so
  far; the ones of x are written at index), 'text_k', 'text_v' (projected text). It is
  returned with what changed, so that nn.scan can thread it.
  """

  width: int
  heads: int
  hidden: int
  causal: bool = False
  cross: bool = True
  kernel: str = "xla"

  @nn.compact
  def __call__(self, x, cache, text, text_mask, mask, at=None):
    """x [B, L, D], text [B, T, D], text_mask and mask [B, T] -> x, cache.

    `mask` (True: attend) is over the keys of self-attention, for padded sequences. With
    positions `at` [B, M], only these are computed; all of x still gives the keys.
    """
    cache = dict(cache or {})
    attend = Attention(self.width, self.heads, self.kernel, name="self")
    y = Norm(name="norm_self")(x)
    k, v = attend.project(y)
    causal = self.causal
    if "k" in cache:
      # One new position: it may see the positions written so far, itself included.
      index = cache["index"]
      k = jax.lax.dynamic_update_slice_in_dim(cache["k"], k, index, 1)
      v = jax.lax.dynamic_update_slice_in_dim(cache["v"], v, index, 1)
      mask = (jnp.arange(k.shape[1]) <= index)[None]
      causal = False
      cache |= {"k": k, "v": v, "index": index + x.shape[1]}
    if at is not None:
      x, y = (jnp.take_along_axis(a, at[..., None], 1) for a in (x, y))
    x = x + attend(y, k, v, mask=mask, causal=causal)
    if self.cross:
      attend = Attention(self.width, self.heads, self.kernel, name="cross")
      k, v = (
        (cache["text_k"], cache["text_v"])
        if "text_k" in cache
        else attend.project(text)
      )
      y = Norm(name="norm_cross")(x)
      x = x + attend(y, k, v, mask=text_mask)
    x = x + Mlp(self.width, self.hidden, name="mlp")(Norm(name="norm_mlp")(x))
    return x, cache or None
