"""Older layouts of what is stored -> the one that is read today."""

import copy
from typing import Any

# Of layout 1: keys of the flat model section -> (section, key) now.
_MODEL = {
  "layers": ("trunk", "layers"),
  "width": ("trunk", "width"),
  "heads": ("trunk", "heads"),
  "mlp_ratio": ("trunk", "mlp_ratio"),
  "residual_init": ("trunk", "residual_init"),
  "attention": ("trunk", "attention"),
  "remat": ("trunk", "remat"),
  "scan": ("trunk", "scan"),
  "aligner_layers": ("condition", "layers"),
  "text_drop": ("condition", "drop"),
}
_HEAD = {
  "diffusion": {
    "head_layers": "layers",
    "head_width": "width",
    "head_batch_mul": "batch_mul",
    "diffusion_steps": "steps",
  },
  "categorical": {"tie_embeddings": "tie_embeddings"},
}
_ORDER = {"random": {"mask": "mask", "mask_min": "mask_min"}, "raster": {}}
_TOKENIZER = {
  "vae": ("channels", "patch", "kl_weight"),
  "vq": ("channels", "vocab", "cosine", "commitment", "codebook_decay"),
}
_DIFFUSION_DRAW = ("solver", "diffusion_steps", "diffusion_steps_last", "clip")


def run(tree: dict[str, Any]) -> dict[str, Any]:
  """The tree of a config.json; one of today's layout comes back as it is."""
  if tree.get("version", 1) >= 2:
    return tree
  tree = {"version": 2} | copy.deepcopy(tree)
  old, text = tree.get("model", {}), tree.get("text", {})
  head, order = old.get("head", "diffusion"), old.get("order", "random")
  model: dict[str, Any] = {k: old[k] for k in ("size", "dtype") if k in old}
  model["head"] = {"kind": head} | _renamed(old, _HEAD.get(head, {}))
  model["order"] = {"kind": order} | _renamed(old, _ORDER.get(order, {}))
  model |= {"trunk": {"kind": "fluid"}, "condition": {"kind": "text"}}
  for key, (section, name) in _MODEL.items():
    if key in old:
      model[section][name] = old[key]
  if "width" in text:
    model["condition"]["width"] = text.pop("width")
  tree["model"] = model
  if "text" in tree:
    tree["text"] = {"kind": "learned"} | text
  if "data" in tree:
    tree["data"] = data(tree["data"])
  if "tokenizer" in tree:
    tree["tokenizer"] = tokenizer(tree["tokenizer"])
  if "sample" in tree:
    drop = set() if head == "diffusion" else set(_DIFFUSION_DRAW)
    drop |= set() if order == "random" else {"steps"}
    tree["sample"] = {k: v for k, v in tree["sample"].items() if k not in drop}
  return tree


def data(section: dict[str, Any]) -> dict[str, Any]:
  """Section 'data', whose source was a name with arguments beside it."""
  if isinstance(section.get("source"), dict):
    return section
  section = dict(section)
  source = section.pop("source", "shapes")
  section["source"] = {"kind": source} | section.pop("source_args", {})
  return section


def tokenizer(section: dict[str, Any]) -> dict[str, Any]:
  """Section 'tokenizer', which had the fields of every kind."""
  kind = section.get("kind", "vae")
  if kind not in _TOKENIZER:
    return section
  others = {k for fields in _TOKENIZER.values() for k in fields} - set(_TOKENIZER[kind])
  return {"kind": kind} | {k: v for k, v in section.items() if k not in others}


def _renamed(old: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
  return {new: old[name] for name, new in names.items() if name in old}
