"""Object detectors for GenEval, by name.

A detector is made for one image size and called with images [N, H, W, 3] uint8 (or one
image [H, W, 3]). It gives, per image, class -> detections [x1, y1, x2, y2, score,
colour]: corners in pixels, a score in [0, 1] that GenEval's thresholds apply to (0.9
when counting, 0.3 else), and a colour name, or None to leave it to a ColorClassifier
(fluid.evals.geneval). A new detector is one file here and one entry below.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from fluid.evals import features, geneval
from fluid.evals.colors import ClipColors
from fluid.evals.detectors.shapes import ShapesDetector
from fluid.evals.features import TextNet


def _mask2former(image_size):
  # Only who asks for the network pays for its import.
  from fluid.evals.detectors.mask2former import Mask2Former

  return Mask2Former(image_size)


DETECTORS: dict[str, Callable[[Any], Any]] = {
  "shapes": ShapesDetector,
  "mask2former": _mask2former,
}


def finder(
  lines: Sequence[dict],
  image_size: int | tuple[int, int],
  *,
  detector: str,
  detections: str = "",
  colors: str = "CLIP-L14",
) -> tuple[geneval.Detector, geneval.ColorClassifier | None]:
  """Who finds the objects of images and their colours, as geneval.detect takes them.

  Args:
    lines: metadata of each image.
    image_size: of all images, their side or (H, W); of no account to `detections`.
    detector: entry of DETECTORS.
    detections: a file with the objects of these images in their order
      (geneval.read_detections), in place of a detector.
    colors: feature network that names the colours left open; loaded where a detector
      leaves them open, or a file one of those that are asked for.

  Raises:
    ConfigError: a file that cannot be used, or weights that are missing.
  """
  if detections:
    found = geneval.read_detections(detections, len(lines))
    find, left = (lambda images: found), geneval.colors_missing(found, lines)
  else:
    find, left = DETECTORS[detector](image_size), detector != "shapes"
  return find, ClipColors(cast(TextNet, features.load(colors))) if left else None
