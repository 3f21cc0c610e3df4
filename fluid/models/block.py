"""One transformer block, in the styles that the trunks have.

B batch, L image tokens, T text tokens, D width, H heads, K head width, F MLP width.

Parameters are float32 and cast to the activations' type where they are used; norms and
softmax compute in float32.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid.models import layers, rows
from fluid.models.attention import attend_cached, attention
from fluid.models.dropout import dropouts
from fluid.models.style import MODULATIONS, Given, Style

_HOTTEST = 100.0  # The most that unit queries and keys are multiplied by (VAR).


class Attention(nn.Module):
  """Multi-head attention; keys and values come from x or from another sequence."""

  width: int
  heads: int
  style: Style = Style()
  kernel: str = "xla"

  def setup(self):
    d, h, k, style = self.width, self.heads, self.width // self.heads, self.style
    some, every = style.bias != "none", style.bias == "all"
    self.q = layers.Linear((d,), (h, k), ("embed", "heads", None), some)
    self.kv = layers.Linear((d,), (2, h, k), ("embed", None, "heads", None), every)
    self.out = layers.Linear((h, k), (d,), ("heads", None, "embed"), some)
    if style.bias == "not_keys":
      self.v_bias = layers.Table((h, k), ("heads", None), nn.initializers.zeros)
    if style.match == "layer":
      self.norm_q = layers.Norm(epsilon=style.epsilon)
      self.norm_k = layers.Norm(epsilon=style.epsilon)
    if style.match == "unit":
      start = nn.initializers.constant(math.log(4))
      self.heat = layers.Table((h,), ("heads",), start)

  def project(self, x: jax.Array, turns=None) -> tuple[jax.Array, jax.Array]:
    """[B, T, D] -> keys and values, each [B, T, H, K]."""
    kv = self.kv(x)
    k, v = kv[:, :, 0], kv[:, :, 1]
    if self.style.bias == "not_keys":
      v = v + self.v_bias().astype(v.dtype)
    if self.style.match == "layer":
      k = self.norm_k(k)
    if self.style.match == "unit":
      k = unit(k)
    return turned(k, turns), v

  def queries(self, x: jax.Array, turns=None) -> jax.Array:
    """[B, L, D] -> [B, L, H, K]."""
    q = self.q(x)
    if self.style.match == "layer":
      q = self.norm_q(q)
    if self.style.match == "unit":  # Scores are divided by sqrt(K): not those of these.
      heat = jnp.exp(jnp.minimum(self.heat(), math.log(_HOTTEST)))
      q = unit(q) * (heat * q.shape[-1] ** 0.5)[:, None].astype(q.dtype)
    if self.style.sharpness != 1:
      q = q * self.style.sharpness
    return turned(q, turns)

  def __call__(
    self, x, keys, values, *, mask=None, causal=False, turns=None, drop=None
  ):
    """x [B, L, D], keys and values [B, T, H, K], mask [B|1, T] -> [B, L, D].

    x may have several rows for each of the keys: queries do not see each other, and
    those that read the same keys are one longer row.
    """
    passes = x.shape[0] // keys.shape[0]
    q = rows.join(self.queries(x, turns), passes)
    rate = self.style.attention_dropout if drop is not None else 0.0
    y = attention(
      q,
      keys,
      values,
      mask=mask,
      causal=causal,
      kernel=self.kernel,
      drop=(drop, rate) if rate else None,
    )
    return self.out(rows.part(y, passes))

  def cached(self, x, keys, values, mask, turns=None):
    """x [B, M, D], keys, values [B, H, T, K], mask [B|1, M|1, T] -> [B, M, D].

    With heads first a cache is multiplied as it lies in memory.
    """
    return self.out(attend_cached(self.queries(x, turns), keys, values, mask))


class Mlp(nn.Module):
  """D -> F -> D."""

  width: int
  hidden: int
  style: Style = Style()

  @nn.compact
  def __call__(self, x: jax.Array, drop=None) -> jax.Array:
    d, f, bias = self.width, self.hidden, self.style.bias != "none"
    if self.style.mlp == "swiglu":
      axes = ("embed", None, "mlp")
      h = layers.Linear((d,), (2, f), axes, bias, name="gated")(x)
      h = nn.silu(h[..., 0, :]) * h[..., 1, :]
    else:
      h = layers.Linear((d,), (f,), ("embed", "mlp"), bias, name="up")(x)
      h = nn.gelu(h, approximate=self.style.mlp == "gelu_tanh")
    if drop is not None:
      h = drop(h)
    return layers.Linear((f,), (d,), ("mlp", "embed"), bias, name="down")(h)


class Block(nn.Module):
  """Self-attention, cross-attention to the text (if any), MLP."""

  width: int
  heads: int
  hidden: int
  style: Style = Style()
  kernel: str = "xla"
  causal: bool | tuple[int, ...] = False

  def setup(self):
    style = self.style
    attention = (self.width, self.heads, style, self.kernel)
    self.norm_self = style.norm_layer()
    self.attend = Attention(*attention, name="self")
    if style.cross:
      self.norm_cross = style.norm_layer()
      self.read = Attention(*attention, name="cross")
    self.norm_mlp = style.norm_layer()
    self.mlp = Mlp(self.width, self.hidden, style)
    if style.modulation == "own":
      d, six = self.width, (MODULATIONS, self.width)
      zeros, axes = nn.initializers.zeros, ("embed", None, None)
      self.modulation = layers.Linear((d,), six, axes, init=zeros)
    if style.modulation == "shared":
      self.offset = layers.Table((MODULATIONS, self.width), (None, None))

  def modulations(self, vector):
    """The condition's vector -> [B, L or 1, 6, D]; None without AdaLN."""
    if self.style.modulation == "own":
      return self.modulation(nn.silu(vector))
    if self.style.modulation == "shared":
      return vector + self.offset().astype(vector.dtype)
    return None

  def __call__(self, carry, own, given: Given, *, first=0, at=None):
    """One layer, as a scan runs it.

    Args:
      carry: x [B, L, D], and None or the keys and values [N, B, H, S, K] of all layers
        up to position `first`, where x begins: it sees them and itself.
      own: of this layer, None or the keys and values of the text (None: not known yet),
        [B, T, H, K], with a past [B, H, T, K], and its number.
      given: what all layers read.
      at: positions [B, M] to compute; all of x still gives the keys. Not beside turns,
        nor a vector for each position: causal passes, which have these, want all.

    Returns:
      The carry, with the new positions written to the past, and None.
    """
    (x, past), (text_kv, number) = carry, own or (None, 0)
    style, turns = self.style, given.turns
    six = self.modulations(given.vector)
    drops = dropouts(given.keys, number, style)
    y = self._in(self.norm_self, x, six, 0)
    k, v = self.attend.project(y, turns)
    if past is None:
      if at is not None:
        x, y = (jnp.take_along_axis(a, at[..., None], 1) for a in (x, y))
      given_self = dict(mask=given.mask, causal=self.causal, drop=drops.attention)
      added = self.attend(y, k, v, turns=turns, **given_self)
    else:
      past = tuple(_written(p, n, number, first) for p, n in zip(past, (k, v)))
      slots, new = jnp.arange(past[0].shape[3]), x.shape[1]
      places = first + (jnp.arange(new) if self.causal else jnp.full(new, new - 1))
      seen = (slots <= places[:, None])[None]
      if given.mask is not None:
        seen = seen & given.mask[:, None]
      added = self.attend.cached(y, past[0][number], past[1][number], seen, turns)
    x = self._out(self.norm_self, x, added, six, 0, drops.attended)
    if style.cross:
      y = self._in(self.norm_cross, x, None, 0)
      text_kv = text_kv or self.read.project(given.text)
      if past is None:
        added = self.read(y, *text_kv, mask=given.text_mask)
      else:
        added = self.read.cached(y, *text_kv, given.text_mask[:, None])
      x = self._out(self.norm_cross, x, added, None, 0, drops.read)
    added = self.mlp(self._in(self.norm_mlp, x, six, 3), drops.hidden)
    return (self._out(self.norm_mlp, x, added, six, 3, drops.mlp), past), None

  def _in(self, norm, x, six, part: int):
    """x -> what a layer reads of it."""
    y = x if self.style.post else norm(x)
    if six is None:
      return y
    return y * (1 + six[..., part + 1, :]) + six[..., part, :]

  def _out(self, norm, x, added, six, part: int, drop):
    """x and what a layer adds to it -> x."""
    if six is not None:
      added = added * six[..., part + 2, :]
    if drop is not None:
      added = drop(added)
    return norm(x + added) if self.style.post else x + added


class ModulatedNorm(nn.Module):
  """The norm after the last block of models with AdaLN: scale and shift by a vector."""

  width: int

  def setup(self):
    zeros, axes = nn.initializers.zeros, ("embed", None, None)
    self.modulation = layers.Linear((self.width,), (2, self.width), axes, init=zeros)
    self.norm = layers.Norm(affine=False)

  def __call__(self, x: jax.Array, vector: jax.Array) -> jax.Array:
    """x [B, L, D], vector [B, L or 1, D] -> [B, L, D]."""
    scale, shift = jnp.moveaxis(self.modulation(nn.silu(vector)), -2, 0)
    return self.norm(x) * (1 + scale) + shift


def unit(x: jax.Array) -> jax.Array:
  """[..., K] of length one."""
  y = x.astype(jnp.float32)
  y = y / jnp.maximum(jnp.linalg.norm(y, axis=-1, keepdims=True), 1e-12)
  return y.astype(x.dtype)


def turned(x: jax.Array, turns) -> jax.Array:
  """Pairs of neighbouring channels of x [B, L, H, K], turned; see Given."""
  if turns is None:
    return x
  cos, sin = (a[:, None] for a in turns)  # [L, 1, K/2]
  pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  a, b = pairs[..., 0], pairs[..., 1]
  y = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1)
  return y.reshape(x.shape).astype(x.dtype)


def _written(past, new, layer, first):
  """Past [N, B, H, S, K] with new [B, M, H, K] at positions from `first` on."""
  new = jnp.swapaxes(new, 1, 2).astype(past.dtype)
  return jax.lax.dynamic_update_slice(past, new[None], (layer, 0, 0, first, 0))
