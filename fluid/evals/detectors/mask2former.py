"""GenEval's detector: Mask2Former with a Swin-S (Cheng et al., arXiv 2112.01527).

The reference evaluator runs the network in mmdet 2, whose image pipeline and instance
post-processing are followed here (fluid.evals.detectors.mmdet).

The weights are those of the paper's authors, as transformers stores them (MODEL). The
reference evaluator has mmdet's, of another training of the same network: what lies near
a threshold may be judged differently.

Legend: N images, H, W pixels.
"""

import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from fluid.convert import containers, names
from fluid.convert.weights import AGAIN, FileError
from fluid.errors import ConfigError
from fluid.evals.detectors import mmdet, swin
from fluid.evals.detectors.mask2former_net import Network
from fluid.evals.features import base
from fluid.evals.geneval import Objects
from fluid.evals.prompts import COCO
from fluid.parallel import sharding

MODEL = "facebook/mask2former-swin-small-coco-instance"
CLASSES = COCO  # Their order is the classifier's.

# What a config may not say otherwise: the rest is in the sizes.
_FIXED: dict[str, Any] = {
  "pre_norm": False,
  "activation_function": "relu",
  "common_stride": 4,
  "feature_strides": [4, 8, 16, 32],
}
_FIXED_BACKBONE: dict[str, Any] = {
  "model_type": "swin",
  "hidden_act": "gelu",
  "layer_norm_eps": swin.EPSILON,
  "patch_size": 4,
}
# Of the loss, recomputed, and a norm that a backbone has no use for.
_SKIP = (
  r"criterion\.empty_weight",
  r".*\.relative_position_index",
  r"model\.pixel_level_module\.encoder\.(swin\.)?layernorm\.(weight|bias)",
)


class Mask2Former:
  """Detector of COCO's classes (protocol: fluid.evals.detectors).

  Args:
    image_size: of the images that it will be called with: their side, or (H, W).
    path: folder with model.safetensors and config.json of MODEL (default: the folder
      of that name in the folder that the environment variable FLUID_WEIGHTS names).

  Raises:
    ConfigError: files that are missing, damaged or of another network.
  """

  def __init__(self, image_size: int | tuple[int, int], path: str = ""):
    square = (image_size, image_size) if isinstance(image_size, int) else image_size
    self.image_size: tuple[int, int] = square
    self.network, self._weights = load(path)
    self._mesh: Any = None
    self._params: Any = None

  def __call__(self, images: np.ndarray):
    """Detections; their colours are left to a ColorClassifier."""
    if images.ndim == 3:
      return self(images[None])[0]
    return [objects for objects, _ in self._found(images, masks=False)]

  def detect_with_masks(
    self, images: np.ndarray
  ) -> Iterator[tuple[Objects, dict[str, np.ndarray]]]:
    """Yields the detections and the masks of each image of [N, H, W, 3] uint8.

    Masks are class -> bool [detections, H, W], in the order of the class's detections;
    those of one batch are in memory at a time.
    """
    return self._found(images, masks=True)

  def _found(self, images, masks):
    # Many images are in files, and have no shape but their own.
    shape = (len(images), *images[0].shape)
    if shape[1:] != (*self.image_size, 3):
      h, w = self.image_size
      raise ValueError(f"detector made for images of {h} x {w}, got {shape}")
    mesh = jax.sharding.get_mesh()
    self._place(mesh)
    # One shape for all calls, so that each size is compiled once.
    each = 1 if jax.default_backend() == "cpu" else 4
    batch = each * (1 if mesh.empty else sharding.batch_parts(mesh))
    for i in range(0, len(images), batch):
      chunk = images[i : i + batch]
      padded = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), 0)])
      found = _detect(self._params, padded, network=self.network)
      every = found.pop("masks")
      found = {k: sharding.to_host(v) for k, v in found.items()}
      shown = sharding.to_host(every) if masks else None
      for j in range(len(chunk)):
        row = {k: v[j] for k, v in found.items()}
        yield _objects(row), {} if shown is None else _by_class(row, shown[j])

  def _place(self, mesh):
    """Puts the weights on every device, where they are not yet."""
    if self._params is not None and mesh == self._mesh:
      return
    put = jnp.asarray
    if not mesh.empty:
      everywhere = NamedSharding(mesh, PartitionSpec())
      put = lambda a: jax.make_array_from_callback(a.shape, everywhere, lambda i: a[i])
    self._params = {k: put(v) for k, v in self._weights.items()}
    self._mesh = mesh


@functools.partial(jax.jit, static_argnames="network")
def _detect(p, images, *, network):
  size = images.shape[1:3]
  inner = mmdet.inner(size, network.edges)

  def run(p, images):
    with jax.default_matmul_precision("highest"):
      classes, masks = network(p, mmdet.preprocess(images, inner))
      return mmdet.instances(classes, masks, inner, size)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return run(p, images)
  # The compiler lays out the network; only images and results are pinned.
  rows = sharding.batch_spec()
  images = jax.sharding.reshard(images, rows)
  run = jax.sharding.auto_axes(run, axes=mesh.axis_names, out_sharding=rows)
  return run(p, images)


def _listed(row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Class -> its detections, by number; those with an empty mask are left out."""
  seen = row["boxes"][:, 2] > 0
  labels = row["labels"]
  return {
    CLASSES[k]: np.flatnonzero(seen & (labels == k)) for k in sorted({*labels[seen]})
  }


def _objects(row: Mapping[str, np.ndarray]) -> Objects:
  table = np.column_stack([row["boxes"], row["scores"]])
  return {k: [[*table[i].tolist(), None] for i in at] for k, at in _listed(row).items()}


def _by_class(row: Mapping[str, np.ndarray], masks: np.ndarray):
  return {k: masks[row["queries"][at]] for k, at in _listed(row).items()}


def load(path: str = "") -> tuple[Network, dict[str, np.ndarray]]:
  """Sizes and float32 parameters of a folder; see Mask2Former."""
  source = f"{MODEL} on the Hugging Face hub"
  folder = base.find("mask2former", (MODEL.partition("/")[2],), source, path)
  config, file = folder / "config.json", folder / "model.safetensors"
  for needed in (config, file):
    base.find("mask2former", (needed.name,), source, needed)
  network = read_config(config)
  weights = containers.read(file)
  like = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in network.shapes().items()}
  # Names and layouts are those of the file.
  spelling = names.Spelling(((r"(.*)", r"\1"),), {}, names.same, skip=_SKIP)
  try:
    return network, names.fill(like, weights, [spelling], config=None)
  except ConfigError as e:
    raise ConfigError(
      f"{file} is not the network of its config.json; {e}; take both from {MODEL}"
    ) from e


def read_config(path: pathlib.Path) -> Network:
  """The sizes in a config.json of transformers.

  Raises:
    ConfigError: it is damaged, or describes another network.
  """
  try:
    content = json.loads(path.read_text("utf-8"))
    backbone = content["backbone_config"]
    for where, fixed in ((content, _FIXED), (backbone, _FIXED_BACKBONE)):
      for key, value in fixed.items():
        if (found := where.get(key, value)) != value:
          raise ConfigError(
            f"{path} has {key} {found!r}, but only {value!r} is known here: take the "
            f"files of {MODEL}"
          )
    # The published number counts the predictions, one of which is before any layer.
    layers = content["decoder_layers"] - 1
    network = Network(
      backbone=swin.Swin(
        width=backbone["embed_dim"],
        depths=tuple(backbone["depths"]),
        heads=tuple(backbone["num_heads"]),
        window=backbone["window_size"],
        ratio=backbone["mlp_ratio"],
      ),
      width=content["hidden_dim"],
      heads=content["num_attention_heads"],
      mask_width=content["mask_feature_size"],
      encoder_layers=content["encoder_layers"],
      encoder_hidden=content["encoder_feedforward_dim"],
      decoder_layers=layers,
      decoder_hidden=content["dim_feedforward"],
      queries=content["num_queries"],
      classes=len(content["id2label"]),
    )
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    if isinstance(e, ConfigError):
      raise
    raise FileError(
      path, f"is damaged or no config of Mask2Former ({e!r})", AGAIN
    ) from e
  if network.classes != len(CLASSES):
    raise ConfigError(
      f"{path} has {network.classes} classes, but GenEval's are COCO's {len(CLASSES)}: "
      f"take the files of {MODEL}"
    )
  return network
