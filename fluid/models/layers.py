"""Layers of the trunk, aware of explicit sharding.

B batch, L image tokens, T text tokens, D width, H heads, K head width, F MLP width.

Parameters are float32 and cast to the activations' type where they are used; norms and
softmax compute in float32.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid.models import rows
from fluid.models.attention import attend_cached, attention
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
  init: Callable | None = None  # type: ignore[assignment]

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
    """x [B, L, D], keys and values [B, T, H, K], mask [B|1, T] -> [B, L, D].

    x may have several rows for each of the keys: queries do not see each other, and
    those that read the same keys are one longer row.
    """
    passes = x.shape[0] // keys.shape[0]
    q = rows.join(self.q(x), passes)
    y = attention(q, keys, values, mask=mask, causal=causal, kernel=self.kernel)
    return self.out(rows.part(y, passes))

  def cached(self, x, keys, values, mask):
    """x [B, M, D], keys, values [B, H, T, K], mask [B|1, M|1, T] -> [B, M, D].

    With heads first a cache is multiplied as it lies in memory.
    """
    return self.out(attend_cached(self.q(x), keys, values, mask))


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
  cross: bool = True
  kernel: str = "xla"
  causal: bool = False

  def setup(self):
    attention = (self.width, self.heads, self.kernel)
    self.norm_self = Norm()
    self.attend = Attention(*attention, name="self")
    if self.cross:
      self.norm_cross = Norm()
      self.read = Attention(*attention, name="cross")
    self.norm_mlp = Norm()
    self.mlp = Mlp(self.width, self.hidden)

  def __call__(self, carry, own, text, text_mask, mask, *, first=0, at=None):
    """One layer, as a scan runs it.

    Args:
      carry: x [B, L, D], and None or the keys and values [N, B, H, S, K] of all layers
        up to position `first`, where x begins: it sees them and itself.
      own: None, or of this layer the keys and values of the text (None: not known yet),
        [B, T, H, K], with a past [B, H, T, K], and its number.
      text, text_mask: [B, T, D], [B, T]; x may have several rows for each of theirs.
      mask: [B, L], True to attend: keys of self-attention, for padded sequences.
      at: positions [B, M] to compute; all of x still gives the keys.

    Returns:
      The carry, with the new positions written to the past, and None.
    """
    (x, past), (text_kv, number) = carry, own or (None, None)
    y = self.norm_self(x)
    k, v = self.attend.project(y)
    if past is None:
      if at is not None:
        x, y = (jnp.take_along_axis(a, at[..., None], 1) for a in (x, y))
      x = x + self.attend(y, k, v, mask=mask, causal=self.causal)
    else:
      past = tuple(_written(p, n, number, first) for p, n in zip(past, (k, v)))
      places = first + jnp.arange(x.shape[1])[:, None]
      seen = (jnp.arange(past[0].shape[3]) <= places)[None]
      x = x + self.attend.cached(y, past[0][number], past[1][number], seen)
    if self.cross:
      y = self.norm_cross(x)
      text_kv = text_kv or self.read.project(text)
      if past is None:
        x = x + self.read(y, *text_kv, mask=text_mask)
      else:
        x = x + self.read.cached(y, *text_kv, text_mask[:, None])
    return (x + self.mlp(self.norm_mlp(x)), past), None


def _written(past, new, layer, first):
  """Past [N, B, H, S, K] with new [B, M, H, K] at positions from `first` on."""
  new = jnp.swapaxes(new, 1, 2).astype(past.dtype)
  return jax.lax.dynamic_update_slice(past, new[None], (layer, 0, 0, first, 0))
