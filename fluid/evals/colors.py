"""Colours of detected objects by CLIP, as GenEval's evaluator finds them.

Legend: N images, H, W pixels, D features, C colours.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from fluid.evals.features.base import TextNet
from fluid.evals.geneval import COLORS
from fluid.parallel import sharding

# {0}: colour, {1}: class.
TEMPLATES = (
  "a photo of a {0} {1}",
  "a photo of a {0}-colored {1}",
  "a photo of a {0} object",
)
BACKGROUND = 0x99  # Of all three channels, where a mask says that the object is not.


class ClipColors:
  """Zero-shot classifier of colours (fluid.evals.geneval.ColorClassifier).

  GenEval's numbers are made with OpenAI's ViT-L/14 at 224 pixels ('CLIP-L14').
  """

  def __init__(self, net: TextNet):
    self.net = net
    self._apply = jax.jit(net.apply)
    self._colors = functools.cache(self._embed)

  def __call__(
    self,
    image: np.ndarray,
    boxes: Sequence[Sequence[float]],
    name: str,
    masks: Sequence[np.ndarray | None] | None = None,
  ) -> list[str]:
    """Colour of each object.

    Args:
      image: uint8 [H, W, 3].
      boxes: [x1, y1, x2, y2] in pixels.
      name: class of all of them.
      masks: bool [H, W] for each box, True where the object is; what is not becomes
        grey. None: the background stays.
    """
    if not len(boxes):
      return []
    masks = [None] * len(boxes) if masks is None else masks
    crops = [crop(image, box, mask) for box, mask in zip(boxes, masks, strict=True)]
    x = np.concatenate([self.net.preprocess(c[None]) for c in crops])
    # Few sizes, so that few programs are compiled.
    fill = (1 << (len(x) - 1).bit_length()) - len(x)
    x = np.concatenate([x, np.repeat(x[-1:], fill, 0)])
    found = sharding.to_host(self._apply(self.net.params, x)["pool"])[: len(boxes)]
    return [COLORS[i] for i in (found @ self._colors(name).T).argmax(1)]

  def _embed(self, name: str) -> np.ndarray:
    """Class -> [C, D]: the mean over the templates, of unit norm."""
    prompts = [t.format(c, name) for c in COLORS for t in TEMPLATES]
    features = _unit(self.net.texts(prompts)).reshape(len(COLORS), len(TEMPLATES), -1)
    return _unit(features.mean(1))


def crop(
  image: np.ndarray, box: Sequence[float], mask: np.ndarray | None = None
) -> np.ndarray:
  """uint8 [H, W, 3] -> the box, rounded to pixels of which it keeps at least one."""
  if mask is not None:
    image = np.where(np.asarray(mask, bool)[..., None], image, np.uint8(BACKGROUND))
  height, width = image.shape[:2]
  left, top, right, bottom = (round(float(edge)) for edge in box[:4])
  left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
  return image[top : max(bottom, top + 1), left : max(right, left + 1)]


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=-1, keepdims=True)
