"""Published tokenizers: their sizes, and how their authors spell the parameters.

Our names are those of fluid.tokenizers.autoencoder (and maskgit, multiscale): see
fluid.convert.names for how a table is read.
"""

import os
from collections.abc import Mapping
from typing import Any

from fluid import files, tokenizers
from fluid.convert.family import Family, shapes_of
from fluid.convert.names import TORCH, Row, Spelling, same
from fluid.tokenizers import maskgit, multiscale, published, store

HALF = "params/(encoder|decoder)"
CODES = "quantize.embedding.weight"


def _from_low(config: Any, level: str) -> int:
  """Levels are ours from high to low resolution, and there the other way."""
  return len(config.multipliers) - 1 - int(level)


# latent-diffusion and taming-transformers, whose names ours are made from.
LDM: tuple[Row, ...] = (
  ("codebook", CODES),
  (rf"{HALF}/(down|up)_(\d+)_(block|attn)_(\d+)/(.*)", r"\1.\2.\3.\4.\5.\6"),
  (rf"{HALF}/(down|up)_(\d+)_(\w+sample)_conv/(.*)", r"\1.\2.\3.\4.conv.\5"),
  (rf"{HALF}/mid_(.*)", r"\1.mid.\2"),
  ("params/(.*)", r"\1"),
)

DIFFUSERS: tuple[Row, ...] = (
  (
    r"params/encoder/down_(\d+)_block_(\d+)/(.*)",
    r"encoder.down_blocks.\1.resnets.\2.\3",
  ),
  (
    r"params/encoder/down_(\d+)_downsample_conv/(.*)",
    r"encoder.down_blocks.\1.downsamplers.0.conv.\2",
  ),
  (
    r"params/decoder/up_(\d+)_block_(\d+)/(.*)",
    lambda c, i, j, x: f"decoder.up_blocks.{_from_low(c, i)}.resnets.{j}.{x}",
  ),
  (
    r"params/decoder/up_(\d+)_upsample_conv/(.*)",
    lambda c, i, x: f"decoder.up_blocks.{_from_low(c, i)}.upsamplers.0.conv.{x}",
  ),
  (rf"{HALF}/mid_attn_1/(.*)", r"\1.mid_block.attentions.0.\2"),
  (
    rf"{HALF}/mid_block_(\d)/(.*)",
    lambda c, half, j, x: f"{half}.mid_block.resnets.{int(j) - 1}.{x}",
  ),
  ("params/(.*)", r"\1"),
)
_DIFFUSERS = TORCH | {
  "nin_shortcut": "conv_shortcut",
  "norm_out": "conv_norm_out",
  "norm": "group_norm",
}
DIFFUSERS_WORDS = _DIFFUSERS | {"q": "to_q", "k": "to_k", "v": "to_v"}
DIFFUSERS_WORDS |= {"proj_out": "to_out.0"}
# Files of before 2023.
OLD_WORDS = _DIFFUSERS | {"q": "query", "k": "key", "v": "value"}
OLD_WORDS |= {"proj_out": "proj_attn"}

LLAMAGEN: tuple[Row, ...] = (
  ("codebook", CODES),
  (rf"{HALF}/mid_block_1/(.*)", r"\1.mid.0.\2"),
  (rf"{HALF}/mid_attn_1/(.*)", r"\1.mid.1.\2"),
  (rf"{HALF}/mid_block_2/(.*)", r"\1.mid.2.\2"),
  (
    r"params/encoder/down_(\d+)_downsample_conv/(.*)",
    r"encoder.conv_blocks.\1.downsample.conv.\2",
  ),
  (
    r"params/encoder/down_(\d+)_(block|attn)_(\d+)/(.*)",
    r"encoder.conv_blocks.\1.\2.\3.\4",
  ),
  (
    r"params/decoder/up_(\d+)_upsample_conv/(.*)",
    lambda c, i, x: f"decoder.conv_blocks.{_from_low(c, i)}.upsample.conv.{x}",
  ),
  (
    r"params/decoder/up_(\d+)_(block|attn)_(\d+)/(.*)",
    lambda c, i, w, j, x: f"decoder.conv_blocks.{_from_low(c, i)}.{w}.{j}.{x}",
  ),
  ("params/(.*)", r"\1"),
)


def _third(which: str) -> str:
  """The part of a fused projection of q, k and v."""
  return f"[{'qkv'.index(which)}/3]"


VAR: tuple[Row, ...] = (
  ("params/codebook", CODES),
  (r"params/smooth_(\d+)/(.*)", r"quantize.quant_resi.qresi_ls.\1.\2"),
  (
    rf"{HALF}/(down|up)_(\d+)_attn_(\d+)/([qkv])/(\w+)",
    lambda c, h, d, i, j, q, x: f"{h}.{d}.{i}.attn.{j}.qkv.{x}{_third(q)}",
  ),
  (
    rf"{HALF}/mid_attn_1/([qkv])/(\w+)",
    lambda c, h, q, x: f"{h}.mid.attn_1.qkv.{x}{_third(q)}",
  ),
  *LDM[1:],
)

# The torch port of MaskGIT's VQGAN that RAR comes with.
MASKGIT_TORCH: tuple[Row, ...] = (
  ("codebook", CODES),
  (rf"{HALF}/(down|up)_(\d+)_block_(\d+)/(.*)", r"\1.\2.\3.block.\4.\5"),
  (r"params/decoder/up_(\d+)_upsample_conv/(.*)", r"decoder.up.\1.upsample_conv.\2"),
  (rf"{HALF}/mid_(\d+)/(.*)", r"\1.mid.\2.\3"),
  ("params/(.*)", r"\1"),
)

# flax numbers modules in the order in which they run.
MASKGIT: tuple[Row, ...] = (
  ("codebook", "quantizer.codebook"),
  (
    r"params/encoder/down_(\d+)_block_(\d+)/(.*)",
    lambda c, i, j, x: f"encoder.ResBlock_{int(i) * c.blocks + int(j)}.{x}",
  ),
  (
    r"params/encoder/mid_(\d+)/(.*)",
    lambda c, j, x: f"encoder.ResBlock_{len(c.multipliers) * c.blocks + int(j)}.{x}",
  ),
  (r"params/encoder/conv_out/(.*)", r"encoder.Conv_1.\1"),
  (r"params/decoder/mid_(\d+)/(.*)", r"decoder.ResBlock_\1.\2"),
  (
    r"params/decoder/up_(\d+)_block_(\d+)/(.*)",
    lambda c, i, j, x: (
      f"decoder.ResBlock_{(_from_low(c, i) + 1) * c.blocks + int(j)}.{x}"
    ),
  ),
  (
    r"params/decoder/up_(\d+)_upsample_conv/(.*)",
    lambda c, i, x: f"decoder.Conv_{_from_low(c, i) + 1}.{x}",
  ),
  (
    r"params/decoder/conv_out/(.*)",
    lambda c, x: f"decoder.Conv_{len(c.multipliers)}.{x}",
  ),
  (rf"{HALF}/conv_in/(.*)", r"\1.Conv_0.\2"),
  (rf"{HALF}/norm_out/(.*)", r"\1.GroupNorm_0.\2"),
)
MASKGIT_WORDS = {
  "norm1": "GroupNorm_0",
  "conv1": "Conv_0",
  "norm2": "GroupNorm_1",
  "conv2": "Conv_1",
  "nin_shortcut": "Conv_2",
}

# What training leaves in a checkpoint beside the model: discriminator, LPIPS, averages.
_TRAINING = (r"loss\..*", r"model_ema\..*")
_LIGHTNING = ("state_dict", "model", "")


def _abstract(config, options: Mapping[str, Any]) -> Any:
  return shapes_of(config.make(options["image_size"]).init)


def _save(path: str, config, options: Mapping[str, Any], weights: Any) -> None:
  store.save(path, config.make(options["image_size"], weights), {})
  # The training command leaves a folder alone that is done.
  files.write_json(
    os.path.join(path, "done.json"), {"step": 0, "converted": config.kind}
  )


def _read(path: str) -> tuple[Any, Any, int]:
  tokenizer = tokenizers.load(path)
  return tokenizer.config, tokenizer.variables, 0


def _latent(config) -> dict[str, float]:
  return {"latent/shift": 0.0, "latent/scale": config.latent_scale}


def _family(config, *spellings: Spelling, image_size: int = 256, **kwargs) -> Family:
  return Family(
    config,
    "tokenizer",
    spellings,
    _abstract,
    _save,
    _read,
    options={"image_size": image_size},
    **kwargs,
  )


_SD = (
  Spelling(DIFFUSERS, DIFFUSERS_WORDS),
  Spelling(DIFFUSERS, OLD_WORDS),
  Spelling(
    LDM,
    sections=("state_dict.first_stage_model", "first_stage_model", *_LIGHTNING),
    skip=_TRAINING,
  ),
)
_LLAMAGEN = Spelling(
  LLAMAGEN,
  TORCH | {"block": "res"},
  sections=("model", "module", "state_dict", ""),
  skip=("quantize.codebook_used", *_TRAINING),
)
_TAMING = Spelling(LDM, sections=_LIGHTNING, skip=_TRAINING)
_MASKGIT = (
  Spelling(MASKGIT, MASKGIT_WORDS, same, sections=("params", "")),
  Spelling(MASKGIT_TORCH, sections=("state_dict", "")),
)
_VAR = Spelling(
  VAR, sections=("vae", "state_dict", ""), skip=("quantize.ema_vocab_hit_SV",)
)

FAMILIES: dict[str, Family] = {
  "sd_vae": _family(published.SDVAEConfig(), *_SD, given=_latent),
  "kl16": _family(
    published.KL16Config(),
    Spelling(LDM, sections=_LIGHTNING, skip=_TRAINING),
    given=_latent,
  ),
  "llamagen_vq": _family(published.LlamaGenVQConfig(), _LLAMAGEN),
  "llamagen_vq8": _family(published.LLAMAGEN_VQ8, _LLAMAGEN),
  "taming_vq": _family(published.TamingVQConfig(), _TAMING),
  "taming_vq1024": _family(published.TAMING_VQ1024, _TAMING),
  "maskgit_vq": _family(maskgit.MaskGITVQConfig(), *_MASKGIT),
  "maskgit_vq512": _family(maskgit.MaskGITVQConfig(), *_MASKGIT, image_size=512),
  "var_vq": _family(multiscale.VARVQConfig(), _VAR),
  "var_vq512": _family(
    multiscale.VARVQConfig(scales=multiscale.SCALES_512), _VAR, image_size=512
  ),
}
