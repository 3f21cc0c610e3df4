"""Feature networks behind one protocol, and how features are extracted and kept.

Legend: N images, H, W pixels, D features.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np

from fluid import config, files
from fluid.console import progress
from fluid.evals.features.efficientnet import EfficientNetLite0
from fluid.parallel import distributed, sharding


class FeatureNet(Protocol):
  """A frozen network that turns images into vectors.

  Attributes:
    name: printed with every number made from its features.
    dim: D.
    params: arrays that `apply` takes.
  """

  name: str
  dim: int
  params: Any

  def preprocess(self, images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> what `apply` takes, on the host (resizing)."""

  def apply(self, params: Any, x: jax.Array) -> jax.Array:
    """Pure: preprocessed images -> float32 [N, D]."""


FEATURES: dict[str, Callable[[], FeatureNet]] = {"EffNet": EfficientNetLite0}


@functools.cache
def load(name: str) -> FeatureNet:
  """The network called `name`; ConfigError for an unknown one or missing weights."""
  if name not in FEATURES:
    raise config.ConfigError(
      f"unknown feature network '{name}'; choose from {', '.join(FEATURES)}"
    )
  return FEATURES[name]()


@functools.partial(jax.jit, static_argnames="net")
def _apply(params, x, *, net):
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return net.apply(params, x)
  # The compiler lays out the network; only its input and result are pinned.
  x = jax.sharding.reshard(x, sharding.batch_spec())
  run = jax.sharding.auto_axes(
    net.apply, axes=mesh.axis_names, out_sharding=sharding.batch_spec()
  )
  return run(params, x)


def extract(
  net: FeatureNet, images: np.ndarray, *, batch: int = 0, track=progress.silent
) -> np.ndarray:
  """Features of images.

  Args:
    net: feature network.
    images: uint8 [N, H, W, 3].
    batch: images per call (0: 4 a device on CPU, where more falls out of the cache,
      else 64). The last batch is padded; a row's features do not depend on the others.
    track: (batches, name, how many) -> the same batches, see progress.track.

  Returns:
    float32 [N, D].
  """
  each = 4 if jax.default_backend() == "cpu" else 64
  batch = batch or each * max(1, jax.sharding.get_abstract_mesh().size)
  out = []
  starts = range(0, len(images), batch)
  for i in track(starts, f"{net.name} features", len(starts)):
    chunk = images[i : i + batch]
    padded = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), 0)])
    y = _apply(net.params, net.preprocess(padded), net=net)
    out.append(sharding.to_host(y)[: len(chunk)])
  return np.concatenate(out)


def cached(path, compute: Callable[[], np.ndarray]) -> np.ndarray:
  """The array stored at `path` (.npy), computed and stored if it is not there.

  All processes call it; process 0 writes.
  """
  path = pathlib.Path(path)
  if distributed.everyone(path.exists()):
    return np.load(path)
  value = compute()
  if jax.process_index():
    return value
  # A run beside this one never reads half a file.
  with files.replacing(path) as scratch, scratch.open("wb") as f:
    np.save(f, value)
  return value
