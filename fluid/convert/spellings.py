"""Published models: how their authors spell the parameters.

Our names are those of the parts in fluid.models; see fluid.convert.names for how a
table is read. Rows that compute are given the Run.
"""

import re
from typing import Any

import numpy as np

from fluid.convert.names import Row, Spelling
from fluid.models import Net

WORDS = {"w": "weight", "b": "bias", "scale": "weight"}
# Arrays that lie as they do in the file; other weights of two axes are transposed.
_TABLE = re.compile(
  r"(head/(table|output)|label|caption/null|fill|pos\w*|start_token|time|level"
  r"|trunk/blocks/offset)/w"
)


def torch(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """[out, in] -> [in, out], with axes split as ours are."""
  if array.ndim == 2 and name.endswith("/w") and not _TABLE.fullmatch(name):
    array = array.T
  return array.reshape(shape)


def flax(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Axes split as ours are; keys and values stand side by side."""
  if name.endswith("kv/w"):
    array = array.reshape(2, array.shape[0] // 2, *array.shape[1:]).swapaxes(0, 1)
  return array.reshape(shape)


def _timm(ours: str, theirs: str) -> tuple[Row, ...]:
  """A stack of blocks as those of timm."""
  attn = rf"{theirs}.*.attn"
  return (
    (rf"{ours}/blocks/self/q/(w|b)", rf"{attn}.qkv.\1[0/3]"),
    (rf"{ours}/blocks/self/kv/(w|b)", rf"{attn}.qkv.\1[1/3] + {attn}.qkv.\1[2/3]"),
    (rf"{ours}/blocks/self/out/(w|b)", rf"{attn}.proj.\1"),
    (rf"{ours}/blocks/self/norm_([qk])/(\w+)", rf"{attn}.\1_norm.\2"),
    (rf"{ours}/blocks/norm_self/(\w+)", rf"{theirs}.*.norm1.\1"),
    (rf"{ours}/blocks/norm_mlp/(\w+)", rf"{theirs}.*.norm2.\1"),
    (rf"{ours}/blocks/mlp/up/(\w+)", rf"{theirs}.*.mlp.fc1.\1"),
    (rf"{ours}/blocks/mlp/down/(\w+)", rf"{theirs}.*.mlp.fc2.\1"),
    (rf"{ours}/blocks/modulation/(\w+)", rf"{theirs}.*.adaLN_modulation.1.\1"),
  )


_BLOCK = r"head/net/blocks_(\d+)"
MAR: tuple[Row, ...] = (
  ("label/w", "class_emb.weight + fake_latent"),
  ("fill/w", "mask_token"),
  ("pos/w", "encoder_pos_embed_learned"),
  ("pos_decoder/w", "decoder_pos_embed_learned"),
  ("pos_out/w", "diffusion_pos_embed_learned"),
  (r"norm_in/(\w+)", r"z_proj_ln.\1"),
  (r"join/(\w+)", r"decoder_embed.\1"),
  *_timm("encoder", "encoder_blocks"),
  *_timm("decoder", "decoder_blocks"),
  (r"(encoder|decoder)/norm/(\w+)", r"\1_norm.\2"),
  (r"head/tokens/(\w+)", r"z_proj.\1"),
  (r"head/net/input/(\w+)", r"diffloss.net.input_proj.\1"),
  (r"head/net/time_up/(\w+)", r"diffloss.net.time_embed.mlp.0.\1"),
  (r"head/net/time_down/(\w+)", r"diffloss.net.time_embed.mlp.2.\1"),
  (r"head/net/cond/(\w+)", r"diffloss.net.cond_embed.\1"),
  (rf"{_BLOCK}/modulation/(\w+)", r"diffloss.net.res_blocks.\1.adaLN_modulation.1.\2"),
  (rf"{_BLOCK}/norm/(\w+)", r"diffloss.net.res_blocks.\1.in_ln.\2"),
  (rf"{_BLOCK}/up/(\w+)", r"diffloss.net.res_blocks.\1.mlp.0.\2"),
  (rf"{_BLOCK}/down/(\w+)", r"diffloss.net.res_blocks.\1.mlp.2.\2"),
  (
    r"head/net/modulation/(\w+)",
    r"diffloss.net.final_layer.adaLN_modulation.1.\1",
  ),
  (r"head/net/output/(\w+)", r"diffloss.net.final_layer.linear.\1"),
)

_QKV = "layers.*.attention.wqkv.weight"
_FFN = "layers.*.feed_forward"
LLAMAGEN: tuple[Row, ...] = (
  ("trunk/blocks/self/q/w", f"{_QKV}[0/3]"),
  ("trunk/blocks/self/kv/w", f"{_QKV}[1/3] + {_QKV}[2/3]"),
  ("trunk/blocks/self/out/w", "layers.*.attention.wo.weight"),
  ("trunk/blocks/norm_self/scale", "layers.*.attention_norm.weight"),
  ("trunk/blocks/norm_mlp/scale", "layers.*.ffn_norm.weight"),
  ("trunk/blocks/mlp/gated/w", f"{_FFN}.w1.weight + {_FFN}.w3.weight"),
  ("trunk/blocks/mlp/down/w", f"{_FFN}.w2.weight"),
  ("trunk/norm/scale", "norm.weight"),
  ("head/table/w", "tok_embeddings.weight"),
  ("head/output/w", "output.weight"),
  ("label/w", "cls_embedding.embedding_table.weight"),
  ("caption/null/w", "cls_embedding.uncond_embedding"),
  ("caption/up/w", "cls_embedding.cap_proj.fc1.weight"),
  ("caption/down/w", "cls_embedding.cap_proj.fc2.weight"),
)

_LAYER = "TransformerLayer_*"
_SELF = f"{_LAYER}.Attention_0.self_attention"
_WORDS = "Embed_0.word_embeddings.embedding"


def _codes(run) -> int:
  return Net.of(run).tokens.vocab


def _words(first, last) -> Any:
  """Rows of the table of words: codes, then classes, then the mask."""

  def row(run, *_):
    counts = {"codes": _codes(run), "classes": run.text.vocab_size}
    a, b = (sum(counts[c] for c in ends) for ends in (first, last))
    return f"{_WORDS}[{a}:{b or ''}]"

  return row


MASKGIT: tuple[Row, ...] = (
  (r"trunk/blocks/self/q/(\w+)", rf"{_SELF}.query.\1"),
  (r"trunk/blocks/self/kv/(\w+)", rf"{_SELF}.key.\1 + {_SELF}.value.\1"),
  (r"trunk/blocks/self/out/(\w+)", rf"{_SELF}.out.\1"),
  (
    r"trunk/blocks/norm_self/(\w+)",
    rf"{_LAYER}.Attention_0.attention_output_ln.\1",
  ),
  (r"trunk/blocks/norm_mlp/(\w+)", rf"{_LAYER}.Mlp_0.layer_output_ln.\1"),
  (r"trunk/blocks/mlp/up/(\w+)", rf"{_LAYER}.Mlp_0.intermediate_output.\1"),
  (r"trunk/blocks/mlp/down/(\w+)", rf"{_LAYER}.Mlp_0.layer_output.\1"),
  (r"transform/(\w+)", r"MlmLayer_0.mlm_dense.\1"),
  (r"norm_out/(\w+)", r"MlmLayer_0.mlm_ln.\1"),
  (r"norm_in/(\w+)", r"Embed_0.embeddings_ln.\1"),
  ("pos/w", "Embed_0.position_embeddings.embedding"),
  ("head/table/w", _words((), ("codes",))),
  ("label/w", _words(("codes",), ("codes", "classes"))),
  ("fill/w", _words(("codes", "classes"), ())),
  ("head/bias/w", lambda run: f"MlmLayer_0.mlm_bias.bias[0:{_codes(run)}]"),
)

RAR: tuple[Row, ...] = (
  *_timm("trunk", "blocks"),
  ("start_token/w", "cls_token"),
  ("pos/w", lambda run: f"pos_embed[0:{_length(run) + 2}]"),
  ("pos_target/w", lambda run: f"target_aware_pos_embed[2:{_length(run) + 2}]"),
  ("time/w", lambda run: f"timesteps_embeddings[0:{_length(run) + 1}]"),
  (r"final/modulation/(\w+)", r"adaln_before_head.adaLN_modulation.1.\1"),
  ("head/table/w", lambda run: f"embeddings.weight[0:{_codes(run)}]"),
  # Between codes and classes there is a mask token, which nothing uses.
  ("label/w", lambda run: f"embeddings.weight[{_codes(run) + 1}:]"),
  ("head/output/w", "lm_head.weight"),
  ("head/bias/w", "lm_head.bias"),
)


# Shift, scale and gate of attention, then of the MLP, among gates, scales and shifts.
_SIX = (4, 2, 0, 5, 3, 1)


def _six(name: str) -> str:
  """Parts of a projection in our order."""
  return " + ".join(f"{name}[{i}/6]" for i in _SIX)


VAR: tuple[Row, ...] = (
  ("trunk/blocks/self/q/w", "blocks.*.attn.mat_qkv.weight[0/3]"),
  ("trunk/blocks/self/q/b", "blocks.*.attn.q_bias"),
  (
    "trunk/blocks/self/kv/w",
    "blocks.*.attn.mat_qkv.weight[1/3] + blocks.*.attn.mat_qkv.weight[2/3]",
  ),
  ("trunk/blocks/self/v_bias/w", "blocks.*.attn.v_bias"),
  ("trunk/blocks/self/heat/w", "blocks.*.attn.scale_mul_1H11"),
  (r"trunk/blocks/self/out/(\w+)", r"blocks.*.attn.proj.\1"),
  (r"trunk/blocks/mlp/up/(\w+)", r"blocks.*.ffn.fc1.\1"),
  (r"trunk/blocks/mlp/down/(\w+)", r"blocks.*.ffn.fc2.\1"),
  (r"trunk/blocks/modulation/(\w+)", _six(r"blocks.*.ada_lin.1.\1")),
  (
    "trunk/blocks/offset/w",
    " + ".join(f"blocks.*.ada_gss[{i}:{i + 1}]" for i in _SIX),
  ),
  (r"shared/(\w+)", _six(r"shared_ada_lin.1.\1")),
  (r"final/modulation/(\w+)", r"head_nm.ada_lin.1.\1"),
  ("fill/w", "pos_start"),
  ("pos/w", "pos_1LC"),
  ("level/w", "lvl_embed.weight"),
  ("label/w", "class_emb.weight"),
  (r"head/tokens/(\w+)", r"word_embed.\1"),
  ("head/output/w", "head.weight"),
  ("head/bias/w", "head.bias"),
)


def _length(run) -> int:
  return Net.of(run).tokens.length


SPELLINGS = {
  "mar": Spelling(MAR, WORDS, torch, sections=("model_ema", "model", "")),
  "llamagen": Spelling(
    LLAMAGEN,
    WORDS,
    torch,
    sections=("model", "module", "state_dict", ""),
    skip=("freqs_cis", "causal_mask", r".*\.kv_cache\..*", ".*codebook_used"),
  ),
  "maskgit": Spelling(
    MASKGIT,
    {"w": "kernel", "b": "bias"},
    flax,
    sections=("params", "target", ""),
    skip=("MlmLayer_0.mlm_bias.bias",),  # Of words that are no codes.
  ),
  "var": Spelling(
    VAR,
    WORDS,
    torch,
    sections=("var", "state_dict", ""),
    skip=("attn_bias_for_masking", "lvl_1L", r".*\.zero_k_bias"),  # Buffers.
  ),
  "rar": Spelling(
    RAR,
    WORDS,
    torch,
    sections=("model", ""),
    # Rows of longer sequences; the mask token.
    skip=(
      "embeddings.weight",
      "pos_embed",
      "target_aware_pos_embed",
      "timesteps_embeddings",
      "attn_mask",
    ),
  ),
}
