"""Object detectors for GenEval, by name.

A detector is made for one image size and called with images [N, H, W, 3] uint8 (or one
image [H, W, 3]). It gives, per image, class -> detections [x1, y1, x2, y2, score,
colour]: corners in pixels, a score in [0, 1] that GenEval's thresholds apply to (0.9
when counting, 0.3 else), and a colour name, or None to leave it to a ColorClassifier
(fluid.evals.geneval). A new detector is one file here and one entry below.
"""

from fluid.evals.detectors.shapes import ShapesDetector


def _mask2former(image_size):
  # Only who asks for the network pays for its import.
  from fluid.evals.detectors.mask2former import Mask2Former

  return Mask2Former(image_size)


DETECTORS = {"shapes": ShapesDetector, "mask2former": _mask2former}
