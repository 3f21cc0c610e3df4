"""What every tokenizer is: images in [-1, 1] to tokens and back.

B batch, H W image, h w latent grid, C latent channels, p patch, L tokens per image.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from fluid import config
from fluid.parallel import sharding


@dataclasses.dataclass(frozen=True)
class TokenSpec:
  """The token space that heads, orders and caches are built for.

  Attributes:
    kind: 'discrete' (ids below `vocab`) or 'continuous' (vectors of `channels`).
    length: tokens per image.
    channels: of continuous tokens, or of the latents of several scales.
    grid: (rows, columns) of the tokens; raster order is row by row. Where there are
      scales it is (1, length).
    scales: sides of the grids that follow one another, coarse to fine; () for one grid.
  """

  kind: str
  length: int
  grid: tuple[int, int]
  vocab: int = 0
  channels: int = 0
  scales: tuple[int, ...] = ()

  def to_dict(self) -> dict[str, Any]:
    out = dataclasses.asdict(self) | {"grid": list(self.grid)}
    # What is stored of one grid looks as it did before there were scales.
    scales = out.pop("scales")
    return out | ({"scales": list(scales)} if scales else {})

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> "TokenSpec":
    tuples: dict[str, Any] = {
      k: tuple(values[k]) for k in ("grid", "scales") if k in values
    }
    return cls(**(values | tuples))


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(config.Part):
  """What every tokenizer's config has.

  Attributes:
    path: folder with config.json and weights.safetensors.
    steps, batch, lr, warmup: training; AdamW, linear warm-up, cosine decay to 0.
    ema: decay of the averaged weights, which are the ones kept.
    l2_weight, edge_weight: of squared error and edge error; absolute error has 1.
  """

  path: str = config.place()
  steps: int = 2000
  batch: int = 64
  lr: float = 1e-3
  warmup: int = 100
  ema: float = 0.998
  l2_weight: float = 1.0
  edge_weight: float = 0.5

  def make(self, image_size: int, variables: Any = None) -> "Tokenizer":
    """The tokenizer of images of this size; without variables it is untrained.

    Raises:
      ConfigError: the size does not divide into tokens.
    """
    raise NotImplementedError


class Tokenizer:
  """Weights bound to the pure functions of one kind.

  Subclasses define the pure functions `encode_with`, `decode_with` (and
  `moments_with`), whose first argument is `variables`, and `init`, `training_state`,
  `loss`, `finish`, which train them. `decode_with` does not clip. The bound methods are
  jitted, compile once per batch size, and may be called inside another jit. On a mesh
  each device computes its rows of a batch that divides, and the result is whole
  everywhere.

  Attributes:
    config, image_size: what the functions are made from.
    variables: nested dict of arrays; uncommitted, so valid under any mesh and none.
  """

  config: Any  # Of the subclass.

  def __init__(self, config: TokenizerConfig, image_size: int, variables: Any = None):
    self.config = config
    self.image_size = image_size
    self.variables = jax.device_put(variables)
    bound = lambda name: functools.partial(by_rows, getattr(self, name))
    self._jit = functools.cache(lambda name: jax.jit(bound(name)))

  @property
  def spec(self) -> TokenSpec:
    raise NotImplementedError

  def init(self, key) -> dict[str, Any]:
    """Variables to train from."""
    raise NotImplementedError

  def training_state(self, variables) -> Any:
    """What training carries beside the parameters."""
    raise NotImplementedError

  def loss(self, params, state, images, key) -> tuple[jax.Array, tuple[Any, dict]]:
    """-> (loss, (state, metrics)); images [B, H, W, 3] in [-1, 1]."""
    raise NotImplementedError

  def finish(self, params, state, images: np.ndarray, batch: int) -> dict[str, Any]:
    """Variables of trained parameters; images [N, H, W, 3] to measure them over."""
    raise NotImplementedError

  def to_latents(self) -> Any:
    """Of one of several scales: what makes inputs of its tokens (latents.Latents)."""
    raise NotImplementedError

  def encode(self, images: jax.Array) -> jax.Array:
    """[B, H, W, 3] in [-1, 1] -> tokens ([B, L] int32 or [B, L, C] float32)."""
    return self._jit("encode_with")(self.variables, images)

  def decode(self, tokens: jax.Array) -> jax.Array:
    """Tokens -> [B, H, W, 3] float32 in [-1, 1]."""
    return self._jit("clipped_with")(self.variables, tokens)

  def unclipped(self, tokens: jax.Array) -> jax.Array:
    """As `decode`, as the network gives them: what is resized is clipped after that."""
    return self._jit("decode_with")(self.variables, tokens)

  def clipped_with(self, variables, tokens):
    return jnp.clip(self.decode_with(variables, tokens), -1.0, 1.0)

  def moments(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, H, W, 3] -> posterior mean and std of the tokens, [B, L, C] each."""
    if self.spec.kind != "continuous":
      raise config.ConfigError(
        f"a '{self.config.kind}' tokenizer has no moments; use encode"
      )
    return self._jit("moments_with")(self.variables, images)


def by_rows(fn, variables, x):
  """fn(variables, x) of rows x [B, ...], which do not know of each other."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = tuple(a for a in sharding.RULES["batch"] if a in mesh.shape)
  parts = math.prod(mesh.shape[a] for a in axes)
  if not sharding.explicit() or parts == 1 or len(x) % parts:
    return fn(variables, x)
  run = jax.shard_map(fn, in_specs=(P(), P(axes)), out_specs=P(axes), check_vma=False)
  return jax.reshard(run(jax.reshard(variables, P()), jax.reshard(x, P(axes))), P())


def patchify(latents, patch: int):
  """[B, h, w, C] -> tokens [B, (h/p)(w/p), C p p], channel-major as MAR's patchify."""
  b, h, w, c = latents.shape
  x = latents.reshape(b, h // patch, patch, w // patch, patch, c)
  x = x.transpose(0, 1, 3, 5, 2, 4)  # [B, h/p, w/p, C, p, p]
  return x.reshape(b, (h // patch) * (w // patch), c * patch * patch)


def unpatchify(tokens, patch: int, grid: tuple[int, int]):
  """Inverse of `patchify`; grid: (h/p, w/p)."""
  b, _, c = tokens.shape
  h, w = grid
  x = tokens.reshape(b, h, w, c // patch**2, patch, patch)
  x = x.transpose(0, 1, 4, 2, 5, 3)  # [B, h/p, p, w/p, p, C]
  return x.reshape(b, h * patch, w * patch, c // patch**2)


def in_batches(fn, inputs: np.ndarray, batch: int):
  """Applies `fn` to fixed batches of [N, ...], the last padded: one compilation.

  Returns what `fn` returns (an array or a tree of arrays), as numpy, N rows.
  """
  outs = []
  for start in range(0, len(inputs), batch):
    part = inputs[start : start + batch]
    pad = [(0, batch - len(part))] + [(0, 0)] * (inputs.ndim - 1)
    outs.append(jax.tree.map(np.asarray, fn(np.pad(part, pad))))
  return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(inputs)], *outs)
