"""CLIP in plain jax (Radford et al., arXiv 2103.00020): features of images and prompts.

ViT-B/32, L/14 and L/14 at 336 pixels, and others of that kind such as OpenCLIP's; read
from transformers' files, from OpenCLIP's, and from OpenAI's. CMMD, the CLIP score and
GenEval's colours are made of these features.

Legend: N images, H, W pixels, S pixels a side, B prompts, T text tokens, E width, D
features.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluid.config import ConfigError
from fluid.convert.names import Spelling
from fluid.evals.features import base, published, vit
from fluid.parallel import sharding
from fluid.text.bpe import BPE

FAMILY = "CLIP"
# Model -> where its authors' weights are.
MODELS = {
  "CLIP-B32": "https://huggingface.co/openai/clip-vit-base-patch32",
  "CLIP-L14": "https://huggingface.co/openai/clip-vit-large-patch14",
  "CLIP-L14-336": "https://huggingface.co/openai/clip-vit-large-patch14-336",
}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 32  # Prompts per call.


def _layout(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """OpenAI's arrays as ours: Linears and the convolution are turned."""
  if not name.endswith("/w") or array.ndim < 2:
    return array
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _layout_transformers(name: str, array: np.ndarray, shape) -> np.ndarray:
  """As OpenAI's, but the projections are Linears as well."""
  return array.T if name.endswith("projection") else _layout(name, array, shape)


_TOWER, _STACK = "(vision|text)", r"\1_model.encoder.layers.*"
TRANSFORMERS = Spelling(
  (
    ("vision/patch/w", "vision_model.embeddings.patch_embedding.weight"),
    ("vision/class", "vision_model.embeddings.class_embedding"),
    ("text/token", "text_model.embeddings.token_embedding.weight"),
    (f"{_TOWER}/position", r"\1_model.embeddings.position_embedding.weight"),
    (
      f"{_TOWER}/blocks/qkv/(.*)",
      " + ".join(rf"{_STACK}.self_attn.{n}_proj.\2" for n in "qkv"),
    ),
    (f"{_TOWER}/blocks/(.*)", rf"{_STACK}.\2"),
    ("vision/norm_in/(.*)", r"vision_model.pre_layrnorm.\1"),
    ("vision/norm_out/(.*)", r"vision_model.post_layernorm.\1"),
    ("text/norm_out/(.*)", r"text_model.final_layer_norm.\1"),
    ("vision/projection", "visual_projection.weight"),
    ("text/projection", "text_projection.weight"),
  ),
  {
    "w": "weight",
    "b": "bias",
    "out": "self_attn.out_proj",
    "norm_self": "layer_norm1",
    "norm_mlp": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
  },
  _layout_transformers,
  skip=(r"logit_scale", r"\w+_model\.embeddings\.position_ids"),
)
OPENAI = Spelling(
  (
    ("vision/patch/w", "visual.conv1.weight"),
    ("vision/class", "visual.class_embedding"),
    ("text/token", "token_embedding.weight"),
    ("text/position", "positional_embedding"),
    ("vision/position", "visual.positional_embedding"),
    ("text/blocks/qkv/(.*)", r"transformer.resblocks.*.attn.in_proj_\1"),
    ("vision/blocks/qkv/(.*)", r"visual.transformer.resblocks.*.attn.in_proj_\1"),
    ("text/blocks/(.*)", r"transformer.resblocks.*.\1"),
    ("vision/blocks/(.*)", r"visual.transformer.resblocks.*.\1"),
    ("vision/norm_in/(.*)", r"visual.ln_pre.\1"),
    ("vision/norm_out/(.*)", r"visual.ln_post.\1"),
    ("text/norm_out/(.*)", r"ln_final.\1"),
    ("vision/projection", "visual.proj"),
    ("text/projection", "text_projection"),
  ),
  {
    "w": "weight",
    "b": "bias",
    "out": "attn.out_proj",
    "norm_self": "ln_1",
    "norm_mlp": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
  },
  _layout,
  sections=("state_dict.module", "state_dict", ""),
  skip=(
    r"logit_scale",
    r"(.*\.)?attn_mask",
    r"input_resolution",
    r"context_length",
    r"vocab_size",
  ),
)


@dataclasses.dataclass(frozen=True)
class Described:
  """What the shapes of the weights do not say; 0 and '' where nothing does."""

  activation: str = ""
  heads: int = 0
  text_heads: int = 0
  epsilon: float = 1e-5
  mean: tuple[float, ...] = MEAN
  std: tuple[float, ...] = STD


class CLIP:
  """Feature network: images, and prompts, to the space they share.

  Attributes:
    name: such as CLIP-L14-336, by the sizes of the weights.
    outputs: 'pool': D, the projected class token, not of unit norm.
    digest: of its files.
    params: of the images' network.
    size: S.
    context: T of the longest prompt.
  """

  def __init__(self, path="", *, model: str = "CLIP-L14-336", activation: str = ""):
    """Loads weights; the vocabulary is read when `texts` is first called.

    Args:
      path: folder or file of weights, with its config (config.json of transformers or
        open_clip_config.json) and its vocabulary (files of fluid.text.bpe) beside it;
        default: the folder of `model` in the folder FLUID_WEIGHTS.
      model: key of MODELS.
      activation: 'quick_gelu' (OpenAI's) or 'gelu' (most of OpenCLIP's), for files
        without a config.

    Raises:
      ConfigError: weights that are missing, or do not fit.
    """
    where = published.find(path, model, MODELS)
    source = published.Source.open(
      where, FAMILY, "vision/patch/w", TRANSFORMERS, OPENAI
    )
    self.digest = base.digest(where)
    self._folder = where if where.is_dir() else where.parent
    told = _described(self._folder, source)
    activation = activation or told.activation
    if activation not in vit.ACTIVATIONS:
      raise ConfigError(
        f"{where} does not say which GELU it was trained with (found '{activation}'): "
        "put its config.json or open_clip_config.json beside it, or give activation "
        f"as {' or '.join(sorted(vit.ACTIVATIONS))}"
      )
    kwargs = {"activation": activation, "epsilon": told.epsilon}
    self._vision = vit.Blocks.of(source, "vision/", heads=told.heads, **kwargs)
    self._text = vit.Blocks.of(source, "text/", heads=told.text_heads, **kwargs)
    tree = source.read(_shapes(source, self._vision, self._text))
    self.params, text = published.place(tree["vision"]), published.place(tree["text"])
    patch, positions = len(self.params["patch"]["w"]), len(self.params["position"])
    self.size = round((positions - 1) ** 0.5) * patch
    self.context, self._vocab = len(text["position"]), len(text["token"])
    self._text_params, self._mean, self._std = text, told.mean, told.std
    self.outputs = {"pool": self.params["projection"].shape[1]}
    letter = vit.LETTERS.get(self._vision.width, f"{self._vision.width}x")
    self.name = f"{FAMILY}-{letter}{patch}" + f"-{self.size}" * (self.size != 224)
    self._encode = jax.jit(functools.partial(_encode, self._text))

  def preprocess(self, images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> uint8 [N, S, S, 3].

    The shorter side becomes S by PIL's bicubic filter (antialiased); of the longer one
    the middle is kept.
    """
    return np.stack([_fit(image, self.size) for image in images])

  def apply(self, params: dict, x: jax.Array) -> dict[str, jax.Array]:
    """Pure: preprocessed images [N, S, S, 3] -> {'pool': float32 [N, D]}."""
    with vit.float32():
      x = vit.pixels(x, self._mean, self._std)
      return {"pool": vit.encode(self._vision, params, x) @ params["projection"]}

  @functools.cached_property
  def vocabulary(self) -> BPE:
    """Of the folder of the weights; ConfigError where there is none."""
    return BPE(self._folder, self._vocab)

  def texts(self, prompts: Sequence[str], *, on_long: str = "cut") -> np.ndarray:
    """Features of prompts, which fit those of images.

    Args:
      prompts: B texts.
      on_long: 'cut' what is longer than `context`, which is said once, or 'error'.

    Returns:
      float32 [B, D], not of unit norm.

    Raises:
      PromptError: one that is too long.
    """
    ids = self.vocabulary.encode(prompts, self.context, on_long=on_long)
    counts = [len(self.vocabulary.pieces(prompt)) + 2 for prompt in prompts]
    if long := sum(n > self.context for n in counts):
      print(
        f"warning: {long} of {len(prompts)} prompts have more than the {self.context} "
        f"text tokens that {self.name} reads; the rest of them is left out",
        file=sys.stderr,
        flush=True,
      )
    out = []
    for i in range(0, len(ids), BATCH):
      chunk = ids[i : i + BATCH]
      padded = np.concatenate([chunk, np.repeat(chunk[-1:], BATCH - len(chunk), 0)])
      ends = (padded == self.vocabulary.last).argmax(1)
      features = self._encode(self._text_params, padded, ends)
      out.append(sharding.to_host(features)[: len(chunk)])
    return np.concatenate(out) if out else np.zeros((0, self.outputs["pool"]), "f")


def _encode(blocks: vit.Blocks, params: dict, ids, ends) -> jax.Array:
  """Ids [B, T], places of their ends [B] -> [B, D]."""
  with vit.float32():
    x = blocks(params["blocks"], params["token"][ids] + params["position"], causal=True)
    x = jnp.take_along_axis(x, ends[:, None, None], 1)[:, 0]
    return blocks.norm(x, params["norm_out"]) @ params["projection"]


def _shapes(source: published.Source, vision: vit.Blocks, text: vit.Blocks) -> dict:
  """Every parameter -> its shape."""
  e, f = vision.width, text.width
  kernel = source.shape("vision/patch/w")
  features = source.shape("vision/projection")
  d = features[0] if source.spelling is TRANSFORMERS else features[1]
  shapes: dict[str, tuple[int, ...]] = {
    "vision/patch/w": (*kernel[2:], 3, e),
    "vision/class": (e,),
    "vision/position": (source.shape("vision/position")[0], e),
    "vision/projection": (e, d),
    "text/token": (source.shape("text/token")[0], f),
    "text/position": (source.shape("text/position")[0], f),
    "text/projection": (f, d),
  }
  for norm, width in (
    ("vision/norm_in", e),
    ("vision/norm_out", e),
    ("text/norm_out", f),
  ):
    shapes |= {f"{norm}/w": (width,), f"{norm}/b": (width,)}
  for tower, blocks in (("vision", vision), ("text", text)):
    shapes |= {f"{tower}/{k}": v for k, v in blocks.shapes().items()}
  return shapes


def _described(folder: pathlib.Path, source: published.Source) -> Described:
  """What the config beside the weights says; of OpenAI's own files, what is known."""
  theirs = source.spelling is OPENAI
  path = folder / ("open_clip_config.json" if theirs else "config.json")
  content = published.described(path)
  try:
    if theirs:
      return _open_clip(content, source)
    return _transformers(
      content, published.described(folder / "preprocessor_config.json")
    )
  except (KeyError, TypeError, AttributeError) as e:
    raise ConfigError(f"{path} is no config of a {FAMILY} ({e!r:.80})") from e


def _transformers(content: dict[str, Any], pixels: dict[str, Any]) -> Described:
  """config.json, which may leave out what ViT-B/32 has; preprocessor_config.json."""
  mean = tuple(pixels.get("image_mean", MEAN)), tuple(pixels.get("image_std", STD))
  if "vision_config" not in content:
    return Described("", 0, 0, 1e-5, *mean)
  vision, text = content["vision_config"] or {}, content.get("text_config") or {}
  return Described(
    vision.get("hidden_act", "quick_gelu"),
    vision.get("num_attention_heads", 0),
    text.get("num_attention_heads", 0),
    vision.get("layer_norm_eps", 1e-5),
    *mean,
  )


def _open_clip(content: dict[str, Any], source: published.Source) -> Described:
  """open_clip_config.json; a file of OpenAI's own tells itself by three numbers."""
  if not content:
    own = "input_resolution" in source.weights
    return Described("quick_gelu" if own else "")
  model, pixels = content["model_cfg"], content.get("preprocess_cfg", {})
  width = source.shape("vision/class")[0]
  return Described(
    "quick_gelu" if model.get("quick_gelu") else "gelu",
    width // model["vision_cfg"].get("head_width", vit.HEAD),
    model["text_cfg"].get("heads", 8),
    mean=tuple(pixels.get("mean", MEAN)),
    std=tuple(pixels.get("std", STD)),
  )


def _fit(image: np.ndarray, size: int) -> np.ndarray:
  """[H, W, 3] -> [S, S, 3]; sizes and offsets are rounded as torchvision does."""
  height, width = image.shape[:2]
  short = min(height, width)
  height, width = (size * side // short for side in (height, width))
  top, left = (round((side - size) / 2) for side in (height, width))
  return vit.resize(image, height, width)[top : top + size, left : left + size]
