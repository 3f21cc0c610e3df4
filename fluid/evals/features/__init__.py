"""Feature networks behind one protocol, and how features are extracted and kept.

Legend: N images, H, W pixels, D features.
"""

import concurrent.futures
import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from fluid import config
from fluid.console import progress
from fluid.evals import parts
from fluid.evals.features import clip, dinov2
from fluid.evals.features.base import FOLDER, FeatureNet, MissingWeights, TextNet
from fluid.evals.features.clip import CLIP
from fluid.evals.features.dinov2 import DINOv2
from fluid.evals.features.efficientnet import EfficientNetLite0
from fluid.evals.features.inception import Inception
from fluid.parallel import sharding

__all__ = [
  "FEATURES",
  "FOLDER",
  "FeatureNet",
  "MissingWeights",
  "TextNet",
  "cached",
  "extract",
  "load",
]

FEATURES: dict[str, Callable[..., FeatureNet]] = {
  "EffNet": EfficientNetLite0,
  "Inception": Inception,
  **{model: functools.partial(CLIP, model=model) for model in clip.MODELS},
  **{model: functools.partial(DINOv2, model=model) for model in dinov2.MODELS},
}


@functools.cache
def load(name: str, **options) -> FeatureNet:
  """The network called `name`; ConfigError for an unknown one or missing weights."""
  if name not in FEATURES:
    raise config.ConfigError(
      f"unknown feature network '{name}'; choose from {', '.join(FEATURES)}"
    )
  return FEATURES[name](**options)


@functools.partial(jax.jit, static_argnames=("net", "outputs"))
def _apply(params, x, *, net, outputs):
  def run(params, x):
    found = net.apply(params, x)
    return {name: found[name] for name in outputs}

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return run(params, x)
  # The compiler lays out the network; only its input and result are pinned.
  x = jax.sharding.reshard(x, sharding.batch_spec())
  run = jax.sharding.auto_axes(
    run, axes=mesh.axis_names, out_sharding=sharding.batch_spec()
  )
  return run(params, x)


def extract(
  net: FeatureNet,
  images: Sequence[np.ndarray] | np.ndarray,
  outputs: Sequence[str] = (),
  *,
  batch: int = 0,
  track=progress.silent,
) -> dict[str, np.ndarray]:
  """Features of images, read and resized one batch ahead of the network.

  Args:
    net: feature network.
    images: N of uint8 [H, W, 3], an array or anything that gives slices of it.
    outputs: which of the network's (none: the first).
    batch: images per call (0: 4 a device on CPU, where more falls out of the cache,
      else 64). The last batch is padded; a row's features do not depend on the others.
    track: (batches, name, how many) -> the same batches, see progress.track.

  Returns:
    Output -> float32 [N, D].
  """
  outputs = tuple(outputs) or tuple(net.outputs)[:1]
  each = 4 if jax.default_backend() == "cpu" else 64
  batch = batch or each * max(1, jax.sharding.get_abstract_mesh().size)
  out: dict[str, list] = {name: [] for name in outputs}
  starts = range(0, len(images), batch)

  def collect(found, rows):
    for name, y in found.items():
      out[name].append(sharding.to_host(y)[:rows])

  with concurrent.futures.ThreadPoolExecutor(1) as reader:
    read = lambda i: _prepared(net, images[i : i + batch], batch)
    ahead, before = reader.submit(read, 0), None
    for i in track(starts, f"{net.name} features", len(starts)):
      x = ahead.result()
      if i + batch < len(images):
        ahead = reader.submit(read, i + batch)
      found = _apply(net.params, x, net=net, outputs=outputs)
      if before is not None:
        collect(*before)
      before = found, min(batch, len(images) - i)
    if before is not None:
      collect(*before)
  return {name: np.concatenate(rows) for name, rows in out.items()}


def _prepared(net, images, batch: int) -> np.ndarray:
  """What the network takes of images of any sizes, filled up to a batch."""
  chunk = list(images)
  if len({x.shape for x in chunk}) == 1:
    x = net.preprocess(np.stack(chunk))
  else:
    x = np.concatenate([net.preprocess(image[None]) for image in chunk])
  return np.concatenate([x, np.repeat(x[-1:], batch - len(x), 0)])


def cached(path, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """The arrays stored at `path` (.npz), computed and stored if they are not there."""

  def read(path):
    with np.load(path) as found:
      return dict(found)

  write = lambda file, arrays: np.savez(file, **arrays)
  return parts.kept(pathlib.Path(path), compute, read=read, write=write)
