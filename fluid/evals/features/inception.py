"""Inception v3 of TensorFlow's graph of 2015-12-05, the network of FID, in plain jax.

It differs from the Inception v3 of today's libraries: average pools leave out the
padding, the pool of the last block takes the maximum, there are 1008 classes, and the
weights are its own. No registry ships them: see FILES for where their authors do.

The names of the graph's nodes were not seen with the real file: they are those that
torch-fidelity's conversion script lists, which follow from TensorFlow's rule for scopes
(see `convs`).

Legend: N images, H, W pixels, K kernel height and width, C channels.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fluid.convert import containers, names
from fluid.errors import ConfigError
from fluid.evals.features import resize as resizes
from fluid.evals.features.base import digest, find

SIZE = 299
CLASSES = 1008
SPATIAL = 7  # Channels that sFID takes of a layer 17 x 17.
BN_EPS = 1e-3

# File -> where its authors publish it; all have the same weights.
FILES = {
  "pt_inception-2015-12-05-6726825d.pth": (
    "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights"
  ),
  "weights-inception-2015-12-05-6726825d.pth": (
    "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0"
  ),
  "classify_image_graph_def.pb": (
    "http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz"
  ),
}


@dataclasses.dataclass(frozen=True)
class Conv:
  """Convolution without a bias, batch norm, relu.

  Attributes:
    name: of torch's module.
    width: C out.
    kernel: K.
    stride: of both axes.
    padding: "SAME" or "VALID".
  """

  name: str
  width: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "SAME"


@dataclasses.dataclass(frozen=True)
class Pool:
  """Maximum or average of 3 x 3 pixels, padding left out."""

  kind: str
  stride: int = 1

  @property
  def padding(self) -> str:
    return "SAME" if self.stride == 1 else "VALID"


# A tuple is run in sequence; a list side by side, its channels concatenated.
Part = Conv | Pool | tuple | list
AVERAGE, MAXIMUM, HALVE = Pool("average"), Pool("maximum"), Pool("maximum", 2)


def _block_5(name: str, pool: int) -> list:
  return [
    Conv(f"{name}.branch1x1", 64),
    (Conv(f"{name}.branch5x5_1", 48), Conv(f"{name}.branch5x5_2", 64, (5, 5))),
    (
      Conv(f"{name}.branch3x3dbl_1", 64),
      Conv(f"{name}.branch3x3dbl_2", 96, (3, 3)),
      Conv(f"{name}.branch3x3dbl_3", 96, (3, 3)),
    ),
    (AVERAGE, Conv(f"{name}.branch_pool", pool)),
  ]


def _block_6(name: str, mid: int) -> list:
  return [
    Conv(f"{name}.branch1x1", 192),
    (
      Conv(f"{name}.branch7x7_1", mid),
      Conv(f"{name}.branch7x7_2", mid, (1, 7)),
      Conv(f"{name}.branch7x7_3", 192, (7, 1)),
    ),
    (
      Conv(f"{name}.branch7x7dbl_1", mid),
      Conv(f"{name}.branch7x7dbl_2", mid, (7, 1)),
      Conv(f"{name}.branch7x7dbl_3", mid, (1, 7)),
      Conv(f"{name}.branch7x7dbl_4", mid, (7, 1)),
      Conv(f"{name}.branch7x7dbl_5", 192, (1, 7)),
    ),
    (AVERAGE, Conv(f"{name}.branch_pool", 192)),
  ]


def _block_7(name: str, pool: Pool) -> list:
  split = lambda a, b: [
    Conv(f"{name}.{a}", 384, (1, 3)),
    Conv(f"{name}.{b}", 384, (3, 1)),
  ]
  return [
    Conv(f"{name}.branch1x1", 320),
    (Conv(f"{name}.branch3x3_1", 384), split("branch3x3_2a", "branch3x3_2b")),
    (
      Conv(f"{name}.branch3x3dbl_1", 448),
      Conv(f"{name}.branch3x3dbl_2", 384, (3, 3)),
      split("branch3x3dbl_3a", "branch3x3dbl_3b"),
    ),
    (pool, Conv(f"{name}.branch_pool", 192)),
  ]


# The output that is the mean over a stage's pixels -> the stage.
NETWORK: dict[str, tuple[Part, ...]] = {
  "64": (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    HALVE,
  ),
  "192": (
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    HALVE,
  ),
  "768": (
    _block_5("Mixed_5b", 32),
    _block_5("Mixed_5c", 64),
    _block_5("Mixed_5d", 64),
    [
      Conv("Mixed_6a.branch3x3", 384, (3, 3), 2, "VALID"),
      (
        Conv("Mixed_6a.branch3x3dbl_1", 64),
        Conv("Mixed_6a.branch3x3dbl_2", 96, (3, 3)),
        Conv("Mixed_6a.branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
      ),
      HALVE,
    ],
    _block_6("Mixed_6b", 128),
    _block_6("Mixed_6c", 160),
    _block_6("Mixed_6d", 160),
    _block_6("Mixed_6e", 192),
  ),
  "pool": (
    [
      (
        Conv("Mixed_7a.branch3x3_1", 192),
        Conv("Mixed_7a.branch3x3_2", 320, (3, 3), 2, "VALID"),
      ),
      (
        Conv("Mixed_7a.branch7x7x3_1", 192),
        Conv("Mixed_7a.branch7x7x3_2", 192, (1, 7)),
        Conv("Mixed_7a.branch7x7x3_3", 192, (7, 1)),
        Conv("Mixed_7a.branch7x7x3_4", 192, (3, 3), 2, "VALID"),
      ),
      HALVE,
    ],
    _block_7("Mixed_7b", AVERAGE),
    _block_7("Mixed_7c", MAXIMUM),
  ),
}

# Skipped: counters of training, and the classifier that only training uses.
_TORCH = names.Spelling(
  (
    (r"fc/(.*)", r"fc.\1"),
    (r"(.*)/(kernel)", r"\1.conv.\2"),
    (r"(.*)/(.*)", r"\1.bn.\2"),
  ),
  words=names.TORCH | {"mean": "running_mean", "var": "running_var"},
  skip=(r".*\.num_batches_tracked", r"AuxLogits\..*"),
)
_GRAPH = names.Spelling(
  (
    (r"fc/kernel", "softmax/weights"),
    (r"fc/bias", "softmax/biases"),
    (r"(.*)/kernel", lambda scope, name: f"{scope[name]}/conv2d_params"),
    (r"(.*)/(.*)", lambda scope, name, part: f"{scope[name]}/batchnorm/{part}"),
  ),
  words={
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
  },
  layout=names.same,
)


class Inception:
  """Feature network with several outputs, after a named resize.

  Attributes:
    name: "Inception-" and the resize; printed with every number made from its features.
    digest: of the weights.
    outputs: output -> its width. "pool" [2048] is that of FID and KID; "logits" [1008]
      leave out the bias of the last layer, as Inception Score does; "spatial" [2023] is
      that of sFID: Mixed_6d.branch1x1 (mixed_6/conv in TensorFlow's graph) after its
      relu, 17 rows of 17 pixels of the first 7 channels; "64", "192" and "768" are the
      means over the pixels of lower layers.
    params: arrays that `apply` takes.
    bias: float32 [1008], of the last layer.
  """

  outputs = {
    "pool": 2048,
    "64": 64,
    "192": 192,
    "768": 768,
    "spatial": 17 * 17 * SPATIAL,
    "logits": CLASSES,
  }

  def __init__(self, path="", resize: str = "torch_fidelity"):
    """Loads the weights of a file in the layout of torch-fidelity, pytorch-fid or TF.

    Args:
      path: of the file (default: what the folder FLUID_WEIGHTS has of FILES).
      resize: key of fluid.evals.features.resize.RESIZES.

    Raises:
      ConfigError: there is no such resize or file, or the file does not fit.
    """
    if resize not in resizes.RESIZES:
      known = ", ".join(resizes.RESIZES)
      raise ConfigError(f"unknown resize '{resize}' for Inception; choose from {known}")
    self.name = f"Inception-{resize}"
    self._resize = resizes.RESIZES[resize]
    file = find("Inception", tuple(FILES), next(iter(FILES.values())), path)
    self.digest, raw = digest(file), read(file)
    self.params, self.bias = fold(raw), raw["fc/bias"]

  def preprocess(self, images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> float32 [N, 299, 299, 3], resized, about -1..1."""
    return self._resize(images, SIZE)

  def apply(self, params: dict, x: jax.Array) -> dict[str, jax.Array]:
    """Pure: preprocessed images -> output -> float32 [N, its width]."""
    return forward(params, x)


def convs() -> tuple[list[tuple[Conv, int, str]], int]:
  """The network's convolutions: ([(convolution, C in, scope in TF's graph)], C out).

  TensorFlow gives a scope the first free of x, x_1, x_2, ... inside the one around it.
  A block is a 'mixed' and a branch of several layers a 'tower'; two side by side at the
  end of a tower are a 'mixed' again.
  """
  found = []

  def scopes(around: str) -> Callable[[str], str]:
    taken: Counter = Counter()

    def new(kind: str) -> str:
      taken[kind] += 1
      return around + kind + (f"_{taken[kind] - 1}" if taken[kind] > 1 else "")

    return new

  def walk(part: Part, width: int, new: Callable[[str], str]) -> int:
    """-> C out of a part with so many channels in."""
    if isinstance(part, Conv):
      found.append((part, width, new("conv")))
      return part.width
    if isinstance(part, list):
      inner = scopes(new("mixed") + "/")
      return sum(walk(branch, width, inner) for branch in part)
    if isinstance(part, tuple):
      inner = scopes(new("tower") + "/")
      for layer in part:
        width = walk(layer, width, inner)
    return width

  top, width = scopes(""), 3
  for stage in NETWORK.values():
    for part in stage:
      width = walk(part, width, top)
  return found, width


def read(path) -> dict[str, np.ndarray]:
  """The weights of a file, whatever its layout.

  Returns:
    Of each convolution NAME/kernel [*K, C_in, C_out], NAME/scale, /bias, /mean and /var
    [C_out], and fc/kernel [2048, 1008] and fc/bias [1008]; float32.

  Raises:
    ConfigError: the file cannot be read, or tensors are missing, left over or of other
      shapes, naming them.
  """
  found, width = convs()
  shapes: dict[str, tuple[int, ...]] = {}
  for conv, channels, _ in found:
    shapes[f"{conv.name}/kernel"] = (*conv.kernel, channels, conv.width)
    for part in ("scale", "bias", "mean", "var"):
      shapes[f"{conv.name}/{part}"] = (conv.width,)
  shapes |= {"fc/kernel": (width, CLASSES), "fc/bias": (CLASSES,)}
  wanted = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in shapes.items()}
  scope = {conv.name: where for conv, _, where in found}
  weights = containers.read(path)
  try:
    return names.fill(wanted, weights, (_TORCH, _GRAPH), config=scope)
  except ConfigError as e:
    raise ConfigError(f"{path} is not the Inception v3 of FID; {e}") from e


def fold(raw: Mapping[str, np.ndarray]) -> dict:
  """Weights of `read` -> what `apply` takes.

  Returns:
    Convolution -> (kernel [*K, C_in, C_out], bias [C_out]) with its batch norm folded
    in, and "fc" -> kernel [2048, 1008].
  """
  out: dict = {"fc": raw["fc/kernel"]}
  for conv, _, _ in convs()[0]:
    kernel, gamma, beta, mean, var = (
      raw[f"{conv.name}/{part}"].astype(np.float64)
      for part in ("kernel", "scale", "bias", "mean", "var")
    )
    scale = gamma / np.sqrt(var + BN_EPS)
    bias = beta - mean * scale
    out[conv.name] = (kernel * scale).astype(np.float32), bias.astype(np.float32)
  return out


def forward(params: dict, x: jax.Array) -> dict[str, jax.Array]:
  """Images [N, 299, 299, 3], about -1..1 -> output -> float32 [N, its width]."""
  seen = {}

  def run(part: Part, x: jax.Array) -> jax.Array:
    if isinstance(part, Conv):
      kernel, bias = params[part.name]
      seen[part.name] = y = jax.nn.relu(_conv(part, x, kernel) + bias)
      return y
    if isinstance(part, Pool):
      return _pool(part, x)
    if isinstance(part, list):
      return jnp.concatenate([run(branch, x) for branch in part], -1)
    for layer in part:
      x = run(layer, x)
    return x

  out = {}
  for name, stage in NETWORK.items():
    x = run(stage, x)
    out[name] = x.mean((1, 2))
  out["spatial"] = seen["Mixed_6d.branch1x1"][..., :SPATIAL].reshape(len(x), -1)
  out["logits"] = jnp.dot(out["pool"], params["fc"], precision=lax.Precision.HIGHEST)
  return out


def _conv(conv: Conv, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """In full float32, also where a chip's default is less, as the published numbers."""
  return lax.conv_general_dilated(
    x,
    kernel,
    (conv.stride,) * 2,
    conv.padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=lax.Precision.HIGHEST,
  )


def _pool(pool: Pool, x: jax.Array) -> jax.Array:
  reduce = lambda x, start, operation: lax.reduce_window(
    x, start, operation, (1, 3, 3, 1), (1, pool.stride, pool.stride, 1), pool.padding
  )
  if pool.kind == "maximum":
    return reduce(x, -jnp.inf, lax.max)
  return reduce(x, 0.0, lax.add) / reduce(jnp.ones((1, *x.shape[1:3], 1)), 0.0, lax.add)
