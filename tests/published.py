"""Published models of the fixtures, converted, with the numbers of their references."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluid import sampling
from fluid.convert import family, models, tokenizers
from fluid.models import Net

CLOSE = 1e-4  # Relative to the largest value.


@dataclasses.dataclass(frozen=True)
class Case:
  """A fixture: the kind it is of, its file, and its config.json as our changes."""

  kind: str
  file: str
  changes: Callable[[dict], dict]


def _mar(c):
  return {
    "model.trunk.width": c["decoder_embed_dim"],
    "model.trunk.heads": c["decoder_num_heads"],
    "model.trunk.layers": c["encoder_depth"],
    "model.trunk.decoder_layers": c["decoder_depth"],
    "model.trunk.buffer": c["buffer_size"],
    "model.head.layers": c["diffloss_d"],
    "model.head.width": c["diffloss_w"],
    "text.vocab_size": c["class_num"],
    "tokenizer.channels": c["vae_embed_dim"],
    "tokenizer.patch": c["patch_size"],
    "data.image_size": c["img_size"],
  }


def _llamagen(c):
  out = {
    "model.trunk.width": c["dim"],
    "model.trunk.heads": c["n_head"],
    "model.trunk.layers": c["n_layer"],
    "model.trunk.multiple": c["multiple_of"],
    "model.trunk.epsilon": c.get("norm_eps", 1e-5),
    "tokenizer.vocab": c["vocab_size"],
    "data.image_size": 16 * int(c["block_size"] ** 0.5),
  }
  if c["model_type"] == "c2i":
    return out | {"text.vocab_size": c["num_classes"]}
  return out | {"text.length": c["cls_token_num"], "text.width": c["caption_dim"]}


def _maskgit(c):
  return {
    "model.trunk.width": c["width"],
    "model.trunk.heads": c["heads"],
    "model.trunk.layers": c["layers"],
    "model.trunk.hidden_width": c["mlp"],
    "tokenizer.vocab": c["vocab"],
    "text.vocab_size": c["classes"],
    "data.image_size": 16 * c["side"],
  }


def _rar(c):
  return {
    "model.trunk.width": c["hidden_size"],
    "model.trunk.heads": c["num_attention_heads"],
    "model.trunk.layers": c["num_hidden_layers"],
    "model.trunk.hidden_width": c["intermediate_size"],
    "tokenizer.vocab": c["vocab"],
    "text.vocab_size": c["classes"],
    "data.image_size": 16 * int(c["image_seq_len"] ** 0.5),
  }


def _var(c):
  factor = 2 ** (len(c["mult"]) - 1)
  return {
    "model.trunk.width": c["embed_dim"],
    "model.trunk.heads": c["num_heads"],
    "model.trunk.layers": c["depth"],
    "model.trunk.unit_attention": c["attn_l2_norm"],
    "model.trunk.shared_modulation": c["shared_aln"],
    "tokenizer.vocab": c["vocab"],
    "tokenizer.channels": c["z"],
    "tokenizer.width": c["ch"],
    "tokenizer.multipliers": c["mult"],
    "tokenizer.scales": c["patch_nums"],
    "text.vocab_size": c["num_classes"],
    "data.image_size": c["patch_nums"][-1] * factor,
  }


CASES = {
  "mar": Case("mar_b", "weights.safetensors", _mar),
  "llamagen_c2i": Case("llamagen_b", "weights.safetensors", _llamagen),
  "llamagen_t2i": Case("llamagen_t2i", "weights.safetensors", _llamagen),
  "maskgit": Case("maskgit", "checkpoint.msgpack", _maskgit),
  "rar": Case("rar_b", "weights.safetensors", _rar),
  "var": Case("var_d16", "weights.safetensors", _var),
  "var_shared": Case("var_d36_512", "weights.safetensors", _var),
}


@dataclasses.dataclass
class Model:
  """A converted fixture, with its numbers by name."""

  net: Net
  params: Any
  cases: Any
  config: dict
  run: Any

  def condition(self, text, mask=None, drop=None):
    """Of ids [B] or features [B, T, E]."""
    text = jnp.asarray(text)
    text = text[:, None] if text.ndim == 1 else text
    mask = jnp.ones(text.shape[:2], bool) if mask is None else mask
    drop = jnp.zeros(len(text), bool) if drop is None else drop
    return self.net.condition(self.params, text, mask, drop)

  def outputs(self, tokens, plan, text, **kwargs):
    """Trunk outputs [B, S, D]."""
    cond = self.condition(text)
    run = lambda p, t: self.net.run(p, t, plan, cond, **kwargs)[0]
    return jax.jit(run)(self.params, jnp.asarray(tokens))

  def logits(self, z):
    return self.net.module.apply({"params": self.params}, z, method=_logits)

  def generate(self, text, mask=None, **options):
    """Tokens for ids [B] or features [B, T, E]."""
    text = jnp.asarray(text)
    text = text[:, None] if text.ndim == 1 else text
    mask = jnp.ones(text.shape[:2], bool) if mask is None else jnp.asarray(mask)
    cfg = self.run.sample.replace(**options)
    keys = jax.random.split(jax.random.key(0), len(text))
    draw = jax.jit(sampling.generate, static_argnums=(0, 5))
    return np.asarray(draw(self.net, self.params, text, mask, keys, cfg))


def _logits(module, z):
  return module.head.logits(z)


def convert(name: str, folder, out) -> Model:
  """The fixture `name` in a folder, converted to another."""
  case = CASES[name]
  config = json.loads((folder / "config.json").read_text())
  changes = case.changes(config) | {"model.dtype": "float32"}
  if case.kind.startswith("var"):  # Its inputs are the tokenizer's.
    changes["tokenizer.path"] = str(out / "tokenizer")
    of = {k.split(".")[1]: v for k, v in changes.items() if k.startswith("tokenizer")}
    of = {k: v for k, v in of.items() if k != "path"}
    of["image_size"] = changes["data.image_size"]
    tokenizer = tokenizers.FAMILIES["var_vq"]
    family.convert(tokenizer, folder / case.file, out / "tokenizer", of)
  entry = models.FAMILIES[case.kind].change(changes)
  params = family.convert(entry, folder / case.file, out / "model")
  entry = entry.change({})
  params = jax.tree.map(jnp.asarray, params)
  cases = np.load(folder / "cases.npz")
  return Model(Net.of(entry.config), params, cases, config, entry.config)


def close(got, want, gate=CLOSE):
  np.testing.assert_allclose(got, want, rtol=0, atol=gate * np.abs(want).max())
