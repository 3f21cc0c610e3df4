"""Swin Transformer (Liu et al., arXiv 2103.14030) as a backbone, in plain jax.

Parameters are a flat dict, in the names and layouts of transformers' SwinBackbone, so a
published file needs no translation; `shapes` lists them. The layers at the top also
serve the networks that are built on this one.

Legend: N images, H, W pixels, h, w tokens, C channels, M side of a window, T = M * M,
V windows, A heads.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Params = Mapping[str, jax.Array]
Shapes = dict[str, tuple[int, ...]]

EPSILON = 1e-5  # Of every norm.
_BLOCKED = -100.0  # Added to scores across the seam of a shifted map.


def under(tree: Mapping, head: str) -> dict:
  """What lies below `head.`, without it."""
  return {k[len(head) + 1 :]: v for k, v in tree.items() if k.startswith(f"{head}.")}


def above(head: str, tree: Mapping) -> dict:
  """The same names below `head.`."""
  return {f"{head}.{k}": v for k, v in tree.items()}


def linear_shapes(name: str, inputs: int, outputs: int) -> Shapes:
  """Of `dense`."""
  return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name: str, channels: int) -> Shapes:
  """Of `layer_norm` and of group norms."""
  return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def dense(p: Params, name: str, x: jax.Array) -> jax.Array:
  """[..., inputs] -> [..., outputs]; the bias may be absent."""
  y = x @ p[f"{name}.weight"].T
  return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


def layer_norm(p: Params, name: str, x: jax.Array) -> jax.Array:
  """Mean 0 and variance 1 over the last axis, then scale and bias."""
  x = x - x.mean(-1, keepdims=True)
  x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON)
  return x * p[f"{name}.weight"] + p[f"{name}.bias"]


def resize(x: jax.Array, shape) -> jax.Array:
  """Bilinear at half-pixel positions, not antialiased, as torch's and OpenCV's."""
  return jax.image.resize(x, shape, "linear", antialias=False)


def convolve(p: Params, name: str, x: jax.Array, stride: int = 1) -> jax.Array:
  """Convolution of [N, h, w, C]: odd kernels keep the size, others are not padded."""
  kernel = p[f"{name}.weight"]
  side = kernel.shape[-1]
  pad = ((side // 2, side // 2),) * 2 if side % 2 else "VALID"
  dims = ("NHWC", "OIHW", "NHWC")
  y = lax.conv_general_dilated(x, kernel, (stride,) * 2, pad, dimension_numbers=dims)
  return y + p[f"{name}.bias"] if f"{name}.bias" in p else y


@dataclasses.dataclass(frozen=True)
class Swin:
  """The backbone's sizes, and the network.

  Attributes:
    width: C of the first stage; each further stage has twice as many.
    depths, heads: blocks and A, by stage.
    window: M.
    ratio: hidden units of an MLP, in C.
    patch: pixels to a side of a token of the first stage.
  """

  width: int = 96
  depths: tuple[int, ...] = (2, 2, 18, 2)
  heads: tuple[int, ...] = (3, 6, 12, 24)
  window: int = 7
  ratio: float = 4.0
  patch: int = 4

  @property
  def channels(self) -> tuple[int, ...]:
    """C, by stage."""
    return tuple(self.width << i for i in range(len(self.depths)))

  def shapes(self) -> Shapes:
    """Of every parameter."""
    kernel = (self.width, 3, self.patch, self.patch)
    out: Shapes = {"embeddings.patch_embeddings.projection.weight": kernel}
    out["embeddings.patch_embeddings.projection.bias"] = (self.width,)
    out |= norm_shapes("embeddings.norm", self.width)
    for i, (c, depth, heads) in enumerate(zip(self.channels, self.depths, self.heads)):
      for j in range(depth):
        block = self._block_shapes(c, heads)
        out |= above(f"encoder.layers.{i}.blocks.{j}", block)
      if i + 1 < len(self.depths):
        merge = f"encoder.layers.{i}.downsample"
        out |= norm_shapes(f"{merge}.norm", 4 * c)
        out[f"{merge}.reduction.weight"] = (2 * c, 4 * c)
      out |= norm_shapes(f"hidden_states_norms.stage{i + 1}", c)
    return out

  def _block_shapes(self, c: int, heads: int) -> Shapes:
    hidden = int(self.ratio * c)
    out: Shapes = {}
    for name in ("query", "key", "value"):
      out |= linear_shapes(f"attention.self.{name}", c, c)
    positions = (2 * self.window - 1) ** 2
    out["attention.self.relative_position_bias_table"] = (positions, heads)
    out |= linear_shapes("attention.output.dense", c, c)
    out |= linear_shapes("intermediate.dense", c, hidden)
    out |= linear_shapes("output.dense", hidden, c)
    return out | norm_shapes("layernorm_before", c) | norm_shapes("layernorm_after", c)

  def __call__(self, p: Params, x: jax.Array) -> list[jax.Array]:
    """Feature map of each stage, finest first.

    Args:
      p: parameters.
      x: normalised images [N, H, W, 3] float32; zeros fill up the last patches.

    Returns:
      [N, h, w, C] by stage, h = H / patch rounded up, and half of that at each next.
    """
    x = _fill(x, self.patch)
    x = convolve(p, "embeddings.patch_embeddings.projection", x, self.patch)
    x = layer_norm(p, "embeddings.norm", x)
    out = []
    for i, (depth, heads) in enumerate(zip(self.depths, self.heads)):
      stage = under(p, f"encoder.layers.{i}")
      for j in range(depth):
        shift = self.window // 2 if j % 2 else 0
        x = self._block(under(stage, f"blocks.{j}"), x, heads, shift)
      out.append(layer_norm(p, f"hidden_states_norms.stage{i + 1}", x))
      if i + 1 < len(self.depths):
        x = _merge(under(stage, "downsample"), x)
    return out

  def _block(self, p: Params, x: jax.Array, heads: int, shift: int) -> jax.Array:
    """Attention within windows of a map [N, h, w, C], then an MLP.

    A map is filled up with zeros to whole windows, which are attended to as any token.
    """
    _, h, w, _ = x.shape
    y = _fill(layer_norm(p, "layernorm_before", x), self.window)
    whole = y.shape
    y = jnp.roll(y, (-shift, -shift), (1, 2))
    table = p["attention.self.relative_position_bias_table"]
    bias = jnp.moveaxis(table[relative_positions(self.window)], -1, 0)  # [A, T, T]
    if shift:
      bias = bias + seams(whole[1], whole[2], self.window, shift)[:, None]
    y = _attend(under(p, "attention"), _windows(y, self.window), heads, bias)
    y = jnp.roll(_unwindow(y, whole), (shift, shift), (1, 2))
    x = x + y[:, :h, :w]
    y = dense(p, "intermediate.dense", layer_norm(p, "layernorm_after", x))
    return x + dense(p, "output.dense", jax.nn.gelu(y, approximate=False))


def relative_positions(window: int) -> np.ndarray:
  """Row of the bias table for each query and key of a window [T, T]."""
  places = np.indices((window, window)).reshape(2, -1)
  y, x = places[:, :, None] - places[:, None, :] + window - 1
  return y * (2 * window - 1) + x


def seams(h: int, w: int, window: int, shift: int) -> np.ndarray:
  """[V, T, T]: 0 between tokens that were neighbours before the shift, else -100.

  Rolling a map brings its first rows below its last: windows there hold tokens from
  both ends, which must not see each other.
  """

  def part(n):
    place = np.arange(n)
    return (place >= n - window).astype(int) + (place >= n - shift)

  of = 3 * part(h)[:, None] + part(w)
  of = _windows(of[None, :, :, None], window)[0, :, :, 0]
  return np.where(of[:, :, None] == of[:, None, :], 0, _BLOCKED).astype(np.float32)


def _attend(p: Params, x: jax.Array, heads: int, bias: jax.Array) -> jax.Array:
  """Self-attention in windows [N, V, T, C]; bias [A, T, T] or [V, A, T, T]."""
  split = lambda y: y.reshape(*y.shape[:-1], heads, -1)
  q, k, v = (split(dense(p, f"self.{name}", x)) for name in ("query", "key", "value"))
  scores = jnp.einsum("nvtak,nvsak->nvats", q, k) * q.shape[-1] ** -0.5
  share = jax.nn.softmax(scores + bias)
  y = jnp.einsum("nvats,nvsak->nvtak", share, v)
  return dense(p, "output.dense", y.reshape(x.shape))


def _merge(p: Params, x: jax.Array) -> jax.Array:
  """Patch merging: [N, h, w, C] -> [N, h / 2, w / 2, 2 C], rounded up."""
  x = _fill(x, 2)
  parts = [x[:, row::2, column::2] for column in range(2) for row in range(2)]
  return dense(p, "reduction", layer_norm(p, "norm", jnp.concatenate(parts, -1)))


def _fill(x: jax.Array, multiple: int) -> jax.Array:
  """[N, h, w, C] with zeros below and to the right, up to multiples."""
  return jnp.pad(x, ((0, 0), *((0, -n % multiple) for n in x.shape[1:3]), (0, 0)))


def _windows(x, m: int):
  """[N, h, w, C] -> [N, V, T, C]."""
  n, h, w, c = x.shape
  x = x.reshape(n, h // m, m, w // m, m, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(n, -1, m * m, c)


def _unwindow(x, shape):
  """[N, V, T, C] -> [N, h, w, C], which is `shape`."""
  n, h, w, c = shape
  m = round(x.shape[2] ** 0.5)
  x = x.reshape(n, h // m, w // m, m, m, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(shape)
