"""Layers of the trunk, aware of explicit sharding.

B batch, L image tokens, T text tokens, D width, H heads, K head width, F MLP width.

Parameters are float32 and cast to the activations' type where they are used; norms and
softmax compute in float32.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid.models.attention import attend_one, attention
from fluid.parallel import sharding
from fluid.parallel.sharding import spec

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

  def one(self, x, keys, values, mask):
    """One query x [B, 1, D], keys and values [B, H, T, K], mask [B|1, T] -> [B, 1, D].

    With heads first a cache is multiplied as it lies in memory.
    """
    return self.out(attend_one(self.q(x), keys, values, mask))


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
  """Pre-norm block: self-attention, cross-attention to the text (if any), MLP."""

  width: int
  heads: int
  hidden: int
  causal: bool = False
  cross: bool = True
  kernel: str = "xla"

  def setup(self):
    attention = (self.width, self.heads, self.kernel)
    self.norm_self = Norm()
    self.attend = Attention(*attention, name="self")
    if self.cross:
      self.norm_cross = Norm()
      self.read = Attention(*attention, name="cross")
    self.norm_mlp = Norm()
    self.mlp = Mlp(self.width, self.hidden)

  def __call__(self, x, text, text_mask, mask, text_kv=None, at=None):
    """x [B, L, D], text [B, T, D], text_mask [B, T], mask [B, L] -> [B, L, D], None.

    The None is what nn.scan wants to stack.
    `mask` (True: attend) is over the keys of self-attention, for padded sequences.
    `text_kv` are the text's keys and values [B, T, H, K], if they are known. With
    positions `at` [B, M] only these are computed; all of x still gives the keys.
    """
    y = self.norm_self(x)
    k, v = self.attend.project(y)
    if at is not None:
      x, y = (jnp.take_along_axis(a, at[..., None], 1) for a in (x, y))
    x = x + self.attend(y, k, v, mask=mask, causal=self.causal)
    if self.cross:
      k, v = text_kv or self.read.project(text)
      x = x + self.read(self.norm_cross(x), k, v, mask=text_mask)
    return x + self.mlp(self.norm_mlp(x)), None

  def decode(self, x, index, layer, past, text_kv, text_mask):
    """One position x [B, 1, D] at `index`, which sees those before it and itself.

    `past` are keys and values [N, B, H, S, K] of all layers, of which this one is
    number `layer`; they come back with the new position written. `text_kv` are those
    of the text [B, H, T, K].
    """
    y = self.norm_self(x)
    new = self.attend.project(y)
    past = tuple(
      p.at[layer, :, :, index].set(n[:, 0].astype(p.dtype)) for p, n in zip(past, new)
    )
    seen = (jnp.arange(past[0].shape[3]) <= index)[None]
    x = x + self.attend.one(y, past[0][layer], past[1][layer], seen)
    x = x + self.read.one(self.norm_cross(x), *text_kv, text_mask)
    return x + self.mlp(self.norm_mlp(x)), past
