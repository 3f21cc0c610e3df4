"""A tokenizer's folder: config.json and weights.safetensors, each written whole."""

import dataclasses
import hashlib
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from fluid import config as config_lib
from fluid import files
from fluid.tokenizers import base

TRAINING = "training.safetensors"  # Of a training that is not finished.


def save(path: str, tokenizer: base.Tokenizer, metrics: dict[str, Any]) -> None:
  """Writes weights, then the config that vouches for them by size and hash."""
  flat = {k: np.asarray(v) for k, v in _flatten(tokenizer.variables).items()}
  weights = safetensors.numpy.save(flat)
  files.write_bytes(os.path.join(path, "weights.safetensors"), weights)
  content = {
    "tokenizer": config_lib.to_dict(dataclasses.replace(tokenizer.config, path="")),
    "image_size": tokenizer.image_size,
    "spec": tokenizer.spec.to_dict(),
    "weights_sha256": hashlib.sha256(weights).hexdigest(),
    "metrics": metrics,
  }
  if tokenizer.spec.kind == "continuous":  # For the reader; the weights hold them too.
    content |= {k: v.tolist() for k, v in flat.items() if k.startswith("latent.")}
  files.write_json(os.path.join(path, "config.json"), content)


def read_config(path: str) -> dict[str, Any]:
  """PATH/config.json; missing or unreadable -> ConfigError."""
  if not path:
    raise config_lib.ConfigError(
      "config key 'tokenizer.path' is empty: name the folder of a trained tokenizer "
      "(python -m fluid.tokenizers.train writes one)"
    )
  try:
    with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
      content = json.load(f)
    content["tokenizer"], content["image_size"], content["weights_sha256"]
  except OSError as e:
    raise config_lib.ConfigError(
      f"no tokenizer in {path}: train one there with python -m fluid.tokenizers.train"
    ) from e
  except (ValueError, KeyError, TypeError) as e:
    if isinstance(e, KeyError) and "model" in content:
      raise config_lib.ConfigError(
        f"{path} holds a run, not a tokenizer: name the folder of its tokenizer"
      ) from e
    raise config_lib.ConfigError(f"{_damaged(path, 'config.json')} ({e})") from e
  return content


def read_weights(path: str, sha256: str, like: Any) -> Any:
  """Nested dict of numpy arrays with the names and shapes of the tree `like`."""
  try:
    with open(os.path.join(path, "weights.safetensors"), "rb") as f:
      content = f.read()
  except OSError as e:
    raise config_lib.ConfigError(
      f"{path} has no weights.safetensors: remove the folder and train again"
    ) from e
  if hashlib.sha256(content).hexdigest() != sha256:
    raise config_lib.ConfigError(_damaged(path, "weights.safetensors"))
  flat = safetensors.numpy.load(content)
  expected = _flatten(like)
  for name in sorted(set(flat) ^ set(expected)):
    side = "lacks" if name in expected else "has an unexpected"
    raise config_lib.ConfigError(f"weights in {path} do not fit: it {side} {name}")
  for name, value in expected.items():
    if flat[name].shape != value.shape:
      raise config_lib.ConfigError(
        f"weights in {path} do not fit: {name} has shape {flat[name].shape}, its "
        f"config asks for {value.shape}"
      )
  return jax.tree_util.tree_map_with_path(lambda p, _: flat[_name(p)], like)


def save_training(path: str, carry: Any, made_from: str) -> None:
  """PATH/training.safetensors: all that training carries, whole or not at all.

  Args:
    made_from: digest of what the training is of.
  """
  leaves = [np.asarray(x) for x in jax.tree.leaves(carry)]
  content = safetensors.numpy.save(
    {f"{i:05d}": x for i, x in enumerate(leaves)}, {"made_from": made_from}
  )
  files.write_bytes(os.path.join(path, TRAINING), content)


def read_training(path: str, like: Any, made_from: str) -> Any:
  """What `save_training` wrote, as `like`; None where there is none that fits."""
  file = os.path.join(path, TRAINING)
  try:
    with safetensors.safe_open(file, "numpy") as f:
      if (f.metadata() or {}).get("made_from") != made_from:
        return None
      found = [f.get_tensor(name) for name in sorted(f.keys())]
  except FileNotFoundError:
    return None
  except (OSError, safetensors.SafetensorError) as e:
    print(f"warning: {file} cannot be read ({e}): training starts anew", flush=True)
    return None
  leaves, tree = jax.tree.flatten(like)
  if [x.shape for x in found] != [x.shape for x in leaves]:
    return None
  return jax.tree.unflatten(tree, [jnp.asarray(x) for x in found])


def _damaged(path: str, name: str) -> str:
  return f"{name} in {path} is damaged: remove the folder and train or convert again"


def _name(path) -> str:
  return ".".join(p.key for p in path)


def _flatten(tree: Any) -> dict[str, Any]:
  return {_name(p): v for p, v in jax.tree_util.tree_leaves_with_path(tree)}
