"""DINOv2 in plain jax: the features of FD-DINOv2 (Oquab et al., arXiv 2304.07193).

ViT-S/14, B/14 and L/14, with registers or without; read from transformers' files and
from the authors'. FD-DINOv2 (Stein et al., arXiv 2306.04675; dgm-eval) takes the class
token of ViT-L/14 without registers, after the last norm.

Legend: N images, H, W pixels, S pixels a side, G patches a side, R registers, E width.
"""

import jax
import numpy as np

from fluid.config import ConfigError
from fluid.convert.names import Spelling
from fluid.evals.features import base, published, vit

FAMILY = "DINOv2"
# Model -> where its authors' weights are.
MODELS = {
  "DINOv2-S14": "https://huggingface.co/facebook/dinov2-small",
  "DINOv2-B14": "https://huggingface.co/facebook/dinov2-base",
  "DINOv2-L14": "https://huggingface.co/facebook/dinov2-large",
}
SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _layout(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """torch's arrays as ours: Linears and the convolution are turned, tokens are rows."""
  if name.endswith("/w") and array.ndim > 1:
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
  return array.reshape(shape) if array.shape[:1] == (1,) else array


TRANSFORMERS = Spelling(
  (
    ("class", "embeddings.cls_token"),
    ("registers", "embeddings.register_tokens"),
    ("position", "embeddings.position_embeddings"),
    ("patch/(.*)", r"embeddings.patch_embeddings.projection.\1"),
    (
      "blocks/qkv/(.*)",
      " + ".join(
        rf"encoder.layer.*.attention.attention.{n}.\1"
        for n in ("query", "key", "value")
      ),
    ),
    ("blocks/scale_self", "encoder.layer.*.layer_scale1.lambda1"),
    ("blocks/scale_mlp", "encoder.layer.*.layer_scale2.lambda1"),
    ("blocks/(.*)", r"encoder.layer.*.\1"),
    ("norm_out/(.*)", r"layernorm.\1"),
  ),
  {
    "w": "weight",
    "b": "bias",
    "out": "attention.output.dense",
    "norm_self": "norm1",
    "norm_mlp": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
  },
  _layout,
  skip=(r"embeddings\.mask_token",),
)
AUTHORS = Spelling(
  (
    ("class", "cls_token"),
    ("registers", "register_tokens"),
    ("position", "pos_embed"),
    ("patch/(.*)", r"patch_embed.proj.\1"),
    ("blocks/scale_self", "blocks.*.ls1.gamma"),
    ("blocks/scale_mlp", "blocks.*.ls2.gamma"),
    ("blocks/(.*)", r"blocks.*.\1"),
    ("norm_out/(.*)", r"norm.\1"),
  ),
  {
    "w": "weight",
    "b": "bias",
    "qkv": "attn.qkv",
    "out": "attn.proj",
    "norm_self": "norm1",
    "norm_mlp": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
  },
  _layout,
  skip=("mask_token",),
)


class DINOv2:
  """Feature network: images to the class token of a self-supervised ViT.

  Attributes:
    name: such as DINOv2-L14, by the sizes of the weights.
    outputs: 'pool': E.
    digest: of its files.
    params: of the network, with positions for SIZE.
  """

  def __init__(self, path="", *, model: str = "DINOv2-L14"):
    """Loads weights.

    Args:
      path: folder or file of weights, with transformers' config.json beside it where
        heads are not 64 wide; default: the folder of `model` in the folder
        FLUID_WEIGHTS.
      model: key of MODELS.

    Raises:
      ConfigError: weights that are missing, or do not fit.
    """
    where = published.find(path, model, MODELS)
    source = published.Source.open(where, FAMILY, "patch/w", TRANSFORMERS, AUTHORS)
    self.digest = base.digest(where)
    if not source.has("blocks/up/w"):
      raise ConfigError(
        f"{where} has no plain MLPs (ViT-g has SwiGLU, which is not here): take a "
        f"{FAMILY} of size S, B or L"
      )
    self._blocks = vit.Blocks.of(source, "", heads=_heads(where))
    self._registers = source.has("registers")
    params = source.read(_shapes(source, self._blocks))
    patch = len(params["patch"]["w"])
    # As the authors run it: those with registers were trained with a filter, and the
    # others with a tenth of a patch more, which was to keep a quotient from rounding
    # down. transformers leaves that out; the features are not the same.
    how = {"antialias": True} if self._registers else {"offset": 0.1}
    params["position"] = vit.interpolate(params["position"], SIZE // patch, **how)
    self.params = published.place(_fold(params))
    self.outputs = {"pool": self._blocks.width}
    letter = vit.LETTERS.get(self._blocks.width, f"{self._blocks.width}x")
    self.name = f"{FAMILY}-{letter}{patch}" + "-reg" * self._registers

  def preprocess(self, images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> uint8 [N, 224, 224, 3].

    The whole image, squeezed to a square by PIL's bicubic filter (antialiased), as
    dgm-eval does; not the middle that DINOv2's own evaluations cut out.
    """
    return np.stack([vit.resize(image, SIZE, SIZE) for image in images])

  def apply(self, params: dict, x: jax.Array) -> dict[str, jax.Array]:
    """Pure: preprocessed images [N, 224, 224, 3] -> {'pool': float32 [N, E]}."""
    with vit.float32():
      return {"pool": vit.encode(self._blocks, params, vit.pixels(x, MEAN, STD))}


def _heads(where) -> int:
  """As transformers' config.json says; 0 without one."""
  folder = where if where.is_dir() else where.parent
  return published.described(folder / "config.json").get("num_attention_heads", 0)


def _shapes(source: published.Source, blocks: vit.Blocks) -> dict:
  """Every parameter -> its shape."""
  e, kernel = blocks.width, source.shape("patch/w")
  shapes: dict[str, tuple[int, ...]] = {
    "patch/w": (*kernel[2:], 3, e),
    "patch/b": (e,),
    "class": (e,),
    "position": (source.shape("position")[-2], e),
    "norm_out/w": (e,),
    "norm_out/b": (e,),
    **blocks.shapes(),
  }
  if source.has("registers"):
    shapes["registers"] = (source.shape("registers")[-2], e)
  for part in ("self", "mlp"):
    shapes[f"blocks/scale_{part}"] = (blocks.layers, e)
  return shapes


def _fold(params: dict) -> dict:
  """LayerScale becomes a part of the Linear before it."""
  blocks = params["blocks"]
  for scale, last in (("scale_self", "out"), ("scale_mlp", "down")):
    gamma = blocks.pop(scale)
    p = blocks[last]
    blocks[last] = {"w": p["w"] * gamma[:, None], "b": p["b"] * gamma}
  return params
