"""What mmdet 2 does with images before Mask2Former, and after it with what it found.

transformers' post_process_instance_segmentation is another: it enlarges masks to 384 x
384 first, scores them there and takes the nearest pixel for the image, draws a pixel
into one instance only, keeps as many pairs as there are queries, and drops low scores.

Legend: N images, H, W pixels, h, w tokens, Q queries, K classes, D detections.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fluid.evals.detectors.swin import resize

DETECTIONS = 100  # The best pairs of query and class of an image.
# Images as the network sees them.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PAD, MULTIPLE = 128, 32


def inner(size: tuple[int, int], edges: tuple[int, int]) -> tuple[int, int]:
  """Height and width that an image is resized to, before padding.

  Args:
    size: H, W, whose ratio is kept.
    edges: the longest and the shortest, in pixels, that it is made to fit.
  """
  scale = min(edges[0] / max(size), edges[1] / min(size))
  return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def preprocess(images: jax.Array, inner: tuple[int, int]) -> jax.Array:
  """uint8 [N, H, W, 3] -> normalised, resized to `inner` and padded [N, H', W', 3].

  They stay uint8 when they are resized (bilinear, not antialiased) and padded (grey,
  below and to the right).
  """
  x = resize(images.astype(jnp.float32), (len(images), *inner, 3))
  padding = ((0, 0), *((0, -k % MULTIPLE) for k in inner), (0, 0))
  x = jnp.pad(jnp.floor(x + 0.5), padding, constant_values=PAD)
  return (x - jnp.asarray(MEAN)) / jnp.asarray(STD)


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


def _enlarging(rows: int, inner: int, size: int) -> jax.Array:
  """[size, rows]: masks to padded images, whose padding is cut, then to images.

  Both steps in one matrix: images as the network sees them are much larger than masks.
  """
  padded = inner + -inner % MULTIPLE
  matrix = resize(jnp.eye(rows), (padded, rows))[:inner]
  return resize(matrix, (size, rows))


def _span(seen: jax.Array) -> tuple[jax.Array, jax.Array]:
  """First True along the last axis, and one past the last; where there is one."""
  return jnp.argmax(seen, -1), seen.shape[-1] - jnp.argmax(seen[..., ::-1], -1)
