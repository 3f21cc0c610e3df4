"""GenEval's detector: Mask2Former with a Swin-S (Cheng et al., arXiv 2112.01527).

The reference evaluator runs the network in mmdet 2, whose image pipeline and instance
post-processing are followed here. transformers' post_process_instance_segmentation is
another: it enlarges masks to 384 x 384 first, scores them there and takes the nearest
pixel for the image, draws a pixel into one instance only, keeps as many pairs as there
are queries, and drops low scores.

The weights are those of the paper's authors, as transformers stores them (MODEL). The
reference evaluator has mmdet's, of another training of the same network: what lies near
a threshold may be judged differently.

Legend: N images, H, W pixels, h, w tokens, E channels, L levels, S tokens of all
levels, Q queries, A heads, K classes, D detections.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from fluid.convert import containers, names
from fluid.convert.weights import AGAIN, FileError
from fluid.errors import ConfigError
from fluid.evals.detectors import swin
from fluid.evals.detectors.swin import (
  Params,
  Shapes,
  above,
  convolve,
  dense,
  layer_norm,
  linear_shapes,
  norm_shapes,
  under,
)
from fluid.evals.features import base
from fluid.evals.geneval import Objects
from fluid.evals.prompts import COCO
from fluid.parallel import sharding

MODEL = "facebook/mask2former-swin-small-coco-instance"
CLASSES = COCO  # Their order is the classifier's.
LEVELS = 3  # All but the finest map attend and are attended to.
POINTS = 4  # That a head looks at in each level.
GROUPS = 32  # Of a group norm.
DETECTIONS = 100  # The best pairs of query and class of an image.
# Images as the network sees them.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PAD, MULTIPLE = 128, 32

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


@dataclasses.dataclass(frozen=True)
class Network:
  """The sizes, and the network.

  Attributes:
    backbone: its maps have 4, 8, 16 and 32 pixels to a token.
    width, heads: E and A of pixel decoder and transformer decoder.
    mask_width: channels that masks are a product over.
    encoder_layers, encoder_hidden: of the pixel decoder, and units of its MLPs.
    decoder_layers, decoder_hidden: of the transformer decoder.
    queries, classes: Q, K.
    edges: longest and shortest edge, in pixels, that images are enlarged or reduced to
      fit.
  """

  backbone: swin.Swin = swin.Swin()
  width: int = 256
  heads: int = 8
  mask_width: int = 256
  encoder_layers: int = 6
  encoder_hidden: int = 1024
  decoder_layers: int = 9
  decoder_hidden: int = 2048
  queries: int = 100
  classes: int = len(CLASSES)
  edges: tuple[int, int] = (1333, 800)

  def shapes(self) -> Shapes:
    """Of every parameter, in transformers' names."""
    e = self.width
    transformer = norm_shapes("decoder.layernorm", e)
    for i in range(self.decoder_layers):
      transformer |= above(f"decoder.layers.{i}", self._decoder_shapes())
    for i, outputs in enumerate((e, e, self.mask_width)):
      name = f"decoder.mask_predictor.mask_embedder.{i}.0"
      transformer |= linear_shapes(name, e, outputs)
    for name in ("queries_embedder", "queries_features"):
      transformer[f"{name}.weight"] = (self.queries, e)
    transformer["level_embed.weight"] = (LEVELS, e)
    return {
      **above("model.pixel_level_module.encoder", self.backbone.shapes()),
      **above("model.pixel_level_module.decoder", self._pixel_shapes()),
      **above("model.transformer_module", transformer),
      **linear_shapes("class_predictor", e, self.classes + 1),
    }

  def _pixel_shapes(self) -> Shapes:
    e, points = self.width, self.heads * LEVELS * POINTS
    out: Shapes = {"level_embed": (LEVELS, e)}
    for i, c in enumerate(self.backbone.channels[:0:-1]):
      out[f"input_projections.{i}.0.weight"] = (e, c, 1, 1)
      out[f"input_projections.{i}.0.bias"] = (e,)
      out |= norm_shapes(f"input_projections.{i}.1", e)
    layer = {
      **linear_shapes("self_attn.sampling_offsets", e, 2 * points),
      **linear_shapes("self_attn.attention_weights", e, points),
      **linear_shapes("self_attn.value_proj", e, e),
      **linear_shapes("self_attn.output_proj", e, e),
      **norm_shapes("self_attn_layer_norm", e),
      **_mlp_shapes(e, self.encoder_hidden),
    }
    for i in range(self.encoder_layers):
      out |= above(f"encoder.layers.{i}", layer)
    out["adapter_1.0.weight"] = (e, self.backbone.width, 1, 1)
    out["layer_1.0.weight"] = (e, e, 3, 3)
    out |= norm_shapes("adapter_1.1", e) | norm_shapes("layer_1.1", e)
    out["mask_projection.weight"] = (self.mask_width, e, 1, 1)
    return out | {"mask_projection.bias": (self.mask_width,)}

  def _decoder_shapes(self) -> Shapes:
    e = self.width
    out: Shapes = {"cross_attn.in_proj_weight": (3 * e, e)}
    out["cross_attn.in_proj_bias"] = (3 * e,)
    out |= linear_shapes("cross_attn.out_proj", e, e)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
      out |= linear_shapes(f"self_attn.{name}", e, e)
    for name in ("cross_attn_layer_norm", "self_attn_layer_norm"):
      out |= norm_shapes(name, e)
    return out | _mlp_shapes(e, self.decoder_hidden)

  def __call__(self, p: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Normalised images [N, H, W, 3] -> logits of classes, logits of masks.

    Returns:
      [N, Q, K + 1], the last for no object, and [N, Q, H / 4, W / 4].
    """
    maps = self.backbone(under(p, "model.pixel_level_module.encoder"), x)
    return self.decode(p, *self.pixels(p, maps))

  def pixels(
    self, p: Params, maps: list[jax.Array]
  ) -> tuple[list[jax.Array], jax.Array]:
    """Pixel decoder.

    Padding is not masked, here or later: neither is it in the reference.

    Args:
      p: parameters.
      maps: of the backbone, finest first.

    Returns:
      LEVELS maps [N, h, w, E], coarsest first, and features [N, H / 4, W / 4, channels]
      that masks are made of.
    """
    p = under(p, "model.pixel_level_module.decoder")
    levels, places = [], []
    for i, x in enumerate(maps[:0:-1]):
      x = convolve(p, f"input_projections.{i}.0", x)
      levels.append(group_norm(p, f"input_projections.{i}.1", x))
      places.append(_flat(positions(x.shape[1:3], self.width)) + p["level_embed"][i])
    sizes = tuple(x.shape[1:3] for x in levels)
    x, place = jnp.concatenate([_flat(x) for x in levels], 1), jnp.concatenate(places)
    for i in range(self.encoder_layers):
      layer = under(p, f"encoder.layers.{i}")
      y = _deform(under(layer, "self_attn"), x + place, x, sizes, self.heads)
      x = layer_norm(layer, "self_attn_layer_norm", x + y)
      x = _mlp(layer, x)
    ends = np.cumsum([h * w for h, w in sizes])[:-1].tolist()
    parts = jnp.split(x, ends, axis=1)
    out = [y.reshape(like.shape) for y, like in zip(parts, levels)]
    fine = group_norm(p, "adapter_1.1", convolve(p, "adapter_1.0", maps[0]))
    fine += _resize(out[-1], fine.shape)
    fine = jax.nn.relu(group_norm(p, "layer_1.1", convolve(p, "layer_1.0", fine)))
    return out, convolve(p, "mask_projection", fine)

  def decode(
    self, p: Params, levels: list[jax.Array], features: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Transformer decoder: what `pixels` returns -> what the network returns.

    A layer's queries see one level, and there only where the masks of the layer before
    are positive; a query whose mask is nowhere positive sees all.
    """
    t = under(p, "model.transformer_module")
    memory = [_flat(x) + t["level_embed.weight"][i] for i, x in enumerate(levels)]
    grids = [x.shape[1:3] for x in levels]
    places = [_flat(positions(size, self.width)) for size in grids]
    place = t["queries_embedder.weight"]
    x = jnp.broadcast_to(t["queries_features.weight"], (len(features), *place.shape))
    masks = self._masks(t, x, features)
    for i in range(self.decoder_layers):
      layer, level = under(t, f"decoder.layers.{i}"), i % LEVELS
      value, key = memory[level], memory[level] + places[level]
      blocked = _resize(masks, (*masks.shape[:2], *grids[level])) < 0
      blocked = blocked.reshape(*masks.shape[:2], -1)
      blocked &= ~blocked.all(-1, keepdims=True)
      cross = _split_projection(under(layer, "cross_attn"))
      y = _attend(cross, x + place, key, value, self.heads, blocked)
      x = layer_norm(layer, "cross_attn_layer_norm", x + y)
      y = _attend(under(layer, "self_attn"), x + place, x + place, x, self.heads)
      x = layer_norm(layer, "self_attn_layer_norm", x + y)
      x = _mlp(layer, x)
      masks = self._masks(t, x, features)
    return dense(p, "class_predictor", layer_norm(t, "decoder.layernorm", x)), masks

  def _masks(self, t: Params, x: jax.Array, features: jax.Array) -> jax.Array:
    """Queries [N, Q, E] -> logits [N, Q, h, w]."""
    x = layer_norm(t, "decoder.layernorm", x)
    for i in range(3):
      x = dense(t, f"decoder.mask_predictor.mask_embedder.{i}.0", x)
      x = jax.nn.relu(x) if i < 2 else x
    return jnp.einsum("nqe,nhwe->nqhw", x, features)

  def inner(self, height: int, width: int) -> tuple[int, int]:
    """Height and width that an image is resized to, its ratio kept, before padding."""
    long, short = self.edges
    scale = min(long / max(height, width), short / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)

  def preprocess(self, images: jax.Array) -> jax.Array:
    """uint8 [N, H, W, 3] -> normalised, padded [N, H', W', 3], as mmdet's pipeline.

    Its images stay uint8 when they are resized (bilinear, not antialiased) and padded
    (grey, below and to the right).
    """
    n, h, w, _ = images.shape
    inner = self.inner(h, w)
    x = jnp.floor(_resize(images.astype(jnp.float32), (n, *inner, 3)) + 0.5)
    padding = ((0, 0), *((0, -k % MULTIPLE) for k in inner), (0, 0))
    x = jnp.pad(x, padding, constant_values=PAD)
    return (x - jnp.asarray(MEAN)) / jnp.asarray(STD)

  def detect(self, p: Params, images: jax.Array) -> dict[str, jax.Array]:
    """uint8 [N, H, W, 3] -> what `instances` finds in them."""
    with jax.default_matmul_precision("highest"):
      classes, masks = self(p, self.preprocess(images))
      _, h, w, _ = images.shape
      return instances(classes, masks, self.inner(h, w), (h, w))


def instances(
  classes: jax.Array,
  masks: jax.Array,
  inner: tuple[int, int],
  size: tuple[int, int],
) -> dict[str, jax.Array]:
  """Post-processing: the best DETECTIONS pairs of a query and a class.

  A score is the class's probability times the mean probability of the mask's pixels,
  its positive ones; a box fits the mask. Nothing is suppressed: a query may come under
  several classes.

  Args:
    classes: logits [N, Q, K + 1].
    masks: logits [N, Q, h, w], of padded images.
    inner: height and width of the resized images in the padded ones.
    size: H, W of the images.

  Returns:
    scores, labels, queries [N, D]; boxes [N, D, 4], in pixels of the images, x1, y1 the
    first pixel and x2, y2 one past the last (zeros, with a score of zero, where a mask
    is empty); masks [N, Q, H, W] bool.
  """
  y, x = (_enlarging(*sizes) for sizes in zip(masks.shape[2:], inner, size))
  logits = jnp.einsum("yh,nqhw,xw->nqyx", y, masks, x)
  inside = logits > 0
  area = inside.sum((2, 3))
  quality = (jax.nn.sigmoid(logits) * inside).sum((2, 3)) / (area + 1e-6)
  spans = [_span(inside.any(axis)) for axis in (2, 3)]
  boxes = jnp.stack([ends[i] for i in range(2) for ends in spans], -1)
  boxes = jnp.where(area[..., None] > 0, boxes, 0).astype(jnp.float32)

  probability = jax.nn.softmax(classes)[..., :-1]
  kinds = probability.shape[-1]
  probability = probability.reshape(len(probability), -1)
  best, pairs = lax.top_k(probability, min(DETECTIONS, probability.shape[1]))
  queries, labels = pairs // kinds, pairs % kinds
  return {
    "scores": best * jnp.take_along_axis(quality, queries, 1),
    "labels": labels,
    "queries": queries,
    "boxes": jnp.take_along_axis(boxes, queries[..., None], 1),
    "masks": inside,
  }


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
    if images.shape[1:] != (*self.image_size, 3):
      h, w = self.image_size
      raise ValueError(f"detector made for images of {h} x {w}, got {images.shape}")
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
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return network.detect(p, images)
  # The compiler lays out the network; only images and results are pinned.
  rows = sharding.batch_spec()
  images = jax.sharding.reshard(images, rows)
  run = jax.sharding.auto_axes(network.detect, axes=mesh.axis_names, out_sharding=rows)
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


def _mlp_shapes(width: int, hidden: int) -> Shapes:
  return {
    **linear_shapes("fc1", width, hidden),
    **linear_shapes("fc2", hidden, width),
    **norm_shapes("final_layer_norm", width),
  }


def _mlp(p: Params, x: jax.Array) -> jax.Array:
  """The MLP of a layer, with its sum and norm."""
  y = dense(p, "fc2", jax.nn.relu(dense(p, "fc1", x)))
  return layer_norm(p, "final_layer_norm", x + y)


def group_norm(p: Params, name: str, x: jax.Array) -> jax.Array:
  """Mean 0 and variance 1 over pixels and each of GROUPS, then scale and bias."""
  y = x.reshape(len(x), -1, GROUPS, x.shape[-1] // GROUPS)
  y = y - y.mean((1, 3), keepdims=True)
  y = y * lax.rsqrt(jnp.square(y).mean((1, 3), keepdims=True) + swin.EPSILON)
  return y.reshape(x.shape) * p[f"{name}.weight"] + p[f"{name}.bias"]


def positions(size: tuple[int, ...], channels: int) -> np.ndarray:
  """Sines and cosines of the rows, then of the columns: (h, w) -> [h, w, channels]."""

  def waves(n):
    angle = 2 * np.pi * np.arange(1, n + 1) / (n + 1e-6)
    rate = 10_000.0 ** (-np.arange(0, channels // 2, 2) / (channels // 2))
    angle = angle[:, None] * rate
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(n, -1)

  shape = (*size, channels // 2)
  rows = np.broadcast_to(waves(size[0])[:, None], shape)
  columns = np.broadcast_to(waves(size[1])[None], shape)
  return np.concatenate([rows, columns], -1).astype(np.float32)


def _deform(p: Params, query, value, sizes, heads: int) -> jax.Array:
  """Multi-scale deformable attention (Zhu et al., arXiv 2010.04159).

  Each head of a query looks at POINTS of every level, at offsets from its own place.

  Args:
    p: parameters.
    query, value: [N, S, E].
    sizes: (h, w) of each level.
    heads: A.
  """
  n, s, _ = query.shape
  value = dense(p, "value_proj", value).reshape(n, s, heads, -1)
  split = (n, s, heads, LEVELS, POINTS)
  offsets = dense(p, "sampling_offsets", query).reshape(*split, 2)
  share = dense(p, "attention_weights", query).reshape(n, s, heads, -1)
  share = jax.nn.softmax(share).reshape(split)
  # Where each token is, (x, y) in shares of the image.
  grids = [(np.indices(hw)[::-1].reshape(2, -1).T + 0.5) / hw[::-1] for hw in sizes]
  centers = np.concatenate(grids).astype(np.float32)
  out, start = jnp.zeros(()), 0
  for i, (h, w) in enumerate(sizes):
    at = centers * np.array((w, h), np.float32) - 0.5
    at = at[:, None, None] + offsets[:, :, :, i]
    part = value[:, start : start + h * w]
    out = out + _sample(part, (h, w), at, share[:, :, :, i])
    start += h * w
  return dense(p, "output_proj", out.reshape(query.shape))


def _sample(value, size: tuple[int, int], at, share) -> jax.Array:
  """Weighted sums of a map at points between its pixels; it is zero outside.

  Args:
    value: [N, h * w, A, E / A].
    size: h, w.
    at: (x, y) of points, in pixels from the middle of the first [N, S, A, POINTS, 2].
    share: their weights [N, S, A, POINTS].

  Returns:
    [N, S, A, E / A].
  """
  h, w = size
  corner = np.array([(0, 0), (1, 0), (0, 1), (1, 1)])
  first = jnp.floor(at)[..., None, :]
  after = at[..., None, :] - first
  pixels = first.astype(jnp.int32) + corner  # [N, S, A, POINTS, 4, 2]
  inside = ((pixels >= 0) & (pixels < np.array((w, h)))).all(-1)
  weight = jnp.where(corner, after, 1 - after).prod(-1) * inside * share[..., None]
  # A pixel outside has no weight, whatever is taken in its place.
  take = lambda pixels, where: pixels.at[where].get(mode="clip")
  take = jax.vmap(jax.vmap(take, (1, 1), 1))  # Over images, and over heads.
  found = take(value, pixels[..., 1] * w + pixels[..., 0])
  return jnp.einsum("nsapc,nsapck->nsak", weight, found)


def _attend(p: Params, query, key, value, heads: int, blocked=None) -> jax.Array:
  """Attention [N, Q, E], [N, S, E] -> [N, Q, E]; none where blocked [N, Q, S]."""
  split = lambda x: x.reshape(*x.shape[:-1], heads, -1)
  q = split(dense(p, "q_proj", query))
  k, v = split(dense(p, "k_proj", key)), split(dense(p, "v_proj", value))
  scores = jnp.einsum("nqak,nsak->naqs", q, k) * q.shape[-1] ** -0.5
  if blocked is not None:
    scores = jnp.where(blocked[:, None], -jnp.inf, scores)
  y = jnp.einsum("naqs,nsak->nqak", jax.nn.softmax(scores), v)
  return dense(p, "out_proj", y.reshape(query.shape))


def _split_projection(p: Params) -> dict[str, jax.Array]:
  """torch's fused projection of queries, keys and values, as three."""
  out = dict(p)
  for kind in ("weight", "bias"):
    parts = jnp.split(out.pop(f"in_proj_{kind}"), 3)
    out |= {f"{name}_proj.{kind}": part for name, part in zip("qkv", parts)}
  return out


def _flat(x):
  """[..., h, w, E] -> [..., h * w, E]."""
  return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _resize(x: jax.Array, shape) -> jax.Array:
  """Bilinear at half-pixel positions, not antialiased, as torch's and OpenCV's."""
  return jax.image.resize(x, shape, "linear", antialias=False)


def _enlarging(rows: int, inner: int, size: int) -> jax.Array:
  """[size, rows]: masks to padded images, whose padding is cut, then to images.

  Both steps in one matrix: images as the network sees them are much larger than masks.
  """
  padded = inner + -inner % MULTIPLE
  matrix = _resize(jnp.eye(rows), (padded, rows))[:inner]
  return _resize(matrix, (size, rows))


def _span(seen: jax.Array) -> tuple[jax.Array, jax.Array]:
  """First True along the last axis, and one past the last; where there is one."""
  return jnp.argmax(seen, -1), seen.shape[-1] - jnp.argmax(seen[..., ::-1], -1)
