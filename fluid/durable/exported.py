"""Weights to give away: one safetensors file in the place of a run's checkpoints."""

import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util

from fluid import config, files, trees

FILE = "weights.safetensors"


def write(folder: pathlib.Path, params: Any, *, weights: str, step: int) -> str:
  """Writes parameters under the names of their tree; returns the file's SHA-256."""
  flat = {k: np.asarray(v) for k, v in trees.paths(params).items()}
  content = safetensors.numpy.save(flat, {"weights": weights, "step": str(step)})
  files.write_bytes(folder / FILE, content)
  return hashlib.sha256(content).hexdigest()


def there(workdir) -> bool:
  """Whether a folder is one of these."""
  return (pathlib.Path(workdir) / FILE).is_file()


def read(workdir, weights: str, step: int | None) -> tuple[dict, int]:
  """Nested dict of numpy arrays, and the step they are of.

  Raises:
    ConfigError: the file is damaged, or holds other weights than those asked for.
  """
  path = pathlib.Path(workdir) / FILE
  model = pathlib.Path(workdir) / "model.json"
  try:
    content = path.read_bytes()
    wanted = json.loads(model.read_text())["weights_sha256"]
    if hashlib.sha256(content).hexdigest() != wanted:
      raise ValueError(f"its SHA-256 is not the one in {model.name}")
    length = int.from_bytes(content[:8], "little")
    said = json.loads(content[8 : 8 + length])["__metadata__"]
    flat = safetensors.numpy.load(content)
  except (OSError, ValueError, KeyError) as e:
    raise config.ConfigError(
      f"{path} cannot be read ({e}); get the folder again"
    ) from e
  for name, asked, found in (
    ("weights", weights, said["weights"]),
    ("step", step, int(said["step"])),
  ):
    if asked is not None and asked != found:
      raise config.ConfigError(f"{path} has {name} {found} alone, not {asked}")
  return traverse_util.unflatten_dict(flat, sep="/"), int(said["step"])
