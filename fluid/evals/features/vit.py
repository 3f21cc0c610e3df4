"""Vision transformers with a class token: what CLIP and DINOv2 share, in plain jax.

Blocks are pre-norm (Dosovitskiy et al., arXiv 2010.11929). Everything is float32, also
where a device would round the inputs of its products: published numbers are.

Legend: N images or prompts, S pixels a side, P pixels a side of a patch, G patches a
side, T tokens, E width, H heads, F MLP width, L layers.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fluid.evals.features.published import Source

ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
HEAD = 64  # Width of a head in all models that do not say.
LETTERS = {384: "S", 768: "B", 1024: "L", 1280: "H"}

float32 = functools.partial(jax.default_matmul_precision, "float32")


@dataclasses.dataclass(frozen=True)
class Blocks:
  """A stack of L blocks: attention and MLP, each behind a norm.

  Attributes:
    width, hidden, layers, heads: E, F, L, H.
    activation: key of ACTIVATIONS.
    epsilon: of all norms.
  """

  width: int
  hidden: int
  layers: int
  heads: int
  activation: str = "gelu"
  epsilon: float = 1e-6

  @classmethod
  def of(cls, source: Source, part: str, *, heads: int = 0, **kwargs) -> "Blocks":
    """With the sizes of a file's tensors `part`blocks/...; heads: 0 where unknown."""
    hidden, width = source.shape(f"{part}blocks/up/w")
    layers = source.layers(f"{part}blocks/up/w")
    return cls(width, hidden, layers, heads or max(1, width // HEAD), **kwargs)

  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Of the parameters, which are stacked along L; q, k and v stand side by side."""
    e, f = self.width, self.hidden
    linear = {"qkv": (e, 3 * e), "out": (e, e), "up": (e, f), "down": (f, e)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in linear.items():
      shapes |= {f"{name}/w": shape, f"{name}/b": shape[1:]}
    for name in ("norm_self", "norm_mlp"):
      shapes |= {f"{name}/w": (e,), f"{name}/b": (e,)}
    return {f"blocks/{k}": (self.layers, *v) for k, v in shapes.items()}

  def __call__(self, params: dict, x: jax.Array, causal: bool = False) -> jax.Array:
    """Tokens [N, T, E] -> [N, T, E], before any last norm."""
    activation = ACTIVATIONS[self.activation]
    split = (*x.shape[:2], 3, self.heads, self.width // self.heads)

    def block(x, p):
      y = linear(self.norm(x, p["norm_self"]), p["qkv"]).reshape(split)
      q, k, v = y[:, :, 0], y[:, :, 1], y[:, :, 2]
      y = jax.nn.dot_product_attention(q, k, v, is_causal=causal)
      x = x + linear(y.reshape(x.shape), p["out"])
      y = activation(linear(self.norm(x, p["norm_mlp"]), p["up"]))
      return x + linear(y, p["down"]), None

    return jax.lax.scan(block, x, params)[0]

  def norm(self, x: jax.Array, p: dict) -> jax.Array:
    """LayerNorm over the last axis."""
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
    return x * p["w"] + p["b"]


def linear(x: jax.Array, p: dict) -> jax.Array:
  """x w + b."""
  return x @ p["w"] + p["b"]


def encode(blocks: Blocks, params: dict, x: jax.Array) -> jax.Array:
  """Images [N, S, S, 3], normalised -> the class token after the last norm [N, E].

  Params: patch/w [P, P, 3, E] and perhaps patch/b; class [E]; position [1 + G G, E];
  perhaps registers [R, E], which have no positions; perhaps norm_in; blocks; norm_out.
  """
  kernel = params["patch"]["w"]
  n, side, patch = len(x), x.shape[1], kernel.shape[0]
  grid = side // patch
  x = x.reshape(n, grid, patch, grid, patch, 3).swapaxes(2, 3)
  x = x.reshape(n, grid * grid, -1) @ kernel.reshape(-1, blocks.width)
  x = x + params["patch"].get("b", 0)
  each = lambda tokens: jnp.broadcast_to(tokens, (n, *tokens.shape))
  x = jnp.concatenate([each(params["class"][None]), x], 1) + params["position"]
  if "registers" in params:
    x = jnp.concatenate([x[:, :1], each(params["registers"]), x[:, 1:]], 1)
  if "norm_in" in params:
    x = blocks.norm(x, params["norm_in"])
  return blocks.norm(blocks(params["blocks"], x)[:, 0], params["norm_out"])


def pixels(x: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """uint8 [N, S, S, 3] -> float32, normalised; mean and std are of values in 0..1."""
  return (x.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8 [H, W, 3] -> [height, width, 3] by PIL's bicubic filter, antialiased."""
  if image.shape[:2] == (height, width):
    return image
  resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
  return np.asarray(resized)


def interpolate(
  table: np.ndarray, side: int, *, offset: float = 0.0, antialias: bool = False
) -> np.ndarray:
  """Positions [1 + G G, E] -> [1 + side side, E]: the grid's bicubically, as torch's.

  Args:
    table: the class token's position, then the grid's rows.
    side: patches a side, of the images.
    offset: the step between positions is G / (side + offset).
    antialias: whether a filter for a smaller grid is as wide as that step.
  """
  grid = round((len(table) - 1) ** 0.5)
  if grid == side:
    return table
  matrix = _bicubic(grid, (side + offset) / grid, side, antialias)
  rows = table[1:].reshape(grid, grid, -1).astype(np.float64)
  rows = np.einsum("ig,jh,ghe->ije", matrix, matrix, rows, optimize=True)
  rows = rows.reshape(side * side, -1).astype(table.dtype)
  return np.concatenate([table[:1], rows])


def _bicubic(grid: int, scale: float, side: int, antialias: bool) -> np.ndarray:
  """Weights [side, G] of a row's points in its interpolated row."""
  places = (np.arange(side)[:, None] + 0.5) / scale
  # Two points beyond each edge, half a point from where they are counted.
  away = np.abs(np.arange(-2, grid + 2) + 0.5 - places)
  # Keys' kernel; torch takes another parameter where it does not antialias.
  a = -0.5 if antialias else -0.75
  x = away * min(scale, 1) if antialias else away
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  weights = np.where(x < 1, near, np.where(x < 2, far, 0))
  inside = weights[:, 2:-2].copy()
  if antialias:  # What lies beyond is left out; else it is the edge once more.
    return inside / inside.sum(1, keepdims=True)
  inside[:, 0] += weights[:, :2].sum(1)
  inside[:, -1] += weights[:, -2:].sum(1)
  return inside
