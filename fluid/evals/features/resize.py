"""How published evaluations resize images for a feature network, by name.

They disagree: with the same weights, the two bilinear resizes alone move Inception's
features by about a percent for images of 64 pixels. So a number that was made with a
network goes with the name of its resize.

Legend: N images, H, W pixels before, S = size pixels after.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image


def bilinear(images: np.ndarray, size: int, centre: float) -> np.ndarray:
  """Bilinear, without antialiasing: between the two nearest pixels of each axis.

  Args:
    images: uint8 [N, H, W, 3].
    size: S.
    centre: where a pixel's value lies between its edges: pixel i of the result is at
      (i + centre) * H / S - centre, at least 0.

  Returns:
    float32 [N, S, S, 3] in 0..255. Places are computed in float32 and rows are
    interpolated after columns, as TensorFlow and torch do.
  """
  x = images.astype(np.float32)
  for axis in (2, 1):
    side = x.shape[axis]
    places = np.arange(size, dtype=np.float32) + np.float32(centre)
    places = np.maximum(places * np.float32(side / size) - np.float32(centre), 0)
    low = places.astype(int)
    high = np.minimum(low + 1, side - 1)
    weight = (places - low.astype(np.float32)).reshape((-1,) + (1,) * (3 - axis))
    a, b = x.take(low, axis), x.take(high, axis)
    x = a + (b - a) * weight
  return x


def tf1(images: np.ndarray, size: int) -> np.ndarray:
  """TensorFlow 1's ResizeBilinear, neither align_corners nor half_pixel_centers.

  Pixel i of the result is at i * H / S. Source: TensorFlow's kernel
  resize_bilinear_op.cc with its LegacyScaler; torch-fidelity's
  interpolate_compat_tensorflow.py does the same.

  Args, returns: see `bilinear`.
  """
  return bilinear(images, size, 0)


def half_pixel(images: np.ndarray, size: int) -> np.ndarray:
  """torch's interpolate, mode 'bilinear', align_corners False, antialias False.

  Pixel i of the result is at (i + 1/2) * H / S - 1/2. Source: pytorch-fid's
  inception.py; aten/src/ATen/native/UpSample.h.

  Args, returns: see `bilinear`.
  """
  return bilinear(images, size, 0.5)


def clean(images: np.ndarray, size: int) -> np.ndarray:
  """PIL's bicubic (a = -1/2) with antialiasing, of each channel as a float image.

  No rounding to bytes; what overshoots is clipped. Source: clean-fid's resize.py, mode
  'clean', by Parmar et al. (arXiv 2104.11222).

  Args, returns: see `bilinear`.
  """
  out = np.empty((len(images), size, size, 3), np.float32)
  for image, target in zip(images.astype(np.float32), out):
    for i in range(3):
      channel = Image.fromarray(image[:, :, i])
      channel = channel.resize((size, size), Image.Resampling.BICUBIC)
      target[:, :, i] = np.asarray(channel)
  return out.clip(0, 255)


@dataclasses.dataclass(frozen=True)
class Resize:
  """What comes before a network.

  Attributes:
    resize: (uint8 [N, H, W, 3], S) -> float32 [N, S, S, 3] in 0..255.
    mean, scale: the network is given (x - mean) / scale.
  """

  resize: Callable[[np.ndarray, int], np.ndarray]
  mean: float = 128
  scale: float = 128

  def __call__(self, images: np.ndarray, size: int) -> np.ndarray:
    """uint8 [N, H, W, 3] -> float32 [N, S, S, 3], about -1..1."""
    return (self.resize(images, size) - np.float32(self.mean)) / np.float32(self.scale)


# TensorFlow's graph and what follows it: (x - 128) / 128 after the resize (its nodes
# Sub and Mul). pytorch-fid: 2x - 1 of x in 0..1.
RESIZES = {
  # torch-fidelity, feature_extractor_inceptionv3.py.
  "torch_fidelity": Resize(tf1),
  # pytorch-fid, inception.py.
  "pytorch_fid": Resize(half_pixel, 127.5, 127.5),
  # clean-fid, resize.py and inception_torchscript.py.
  "clean": Resize(clean),
  # guided-diffusion, evaluations/evaluator.py: it gives images in 0..255 to the graph's
  # node ExpandDims:0, and what follows is ResizeBilinear, Sub and Mul.
  "adm": Resize(tf1),
}
