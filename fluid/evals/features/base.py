"""The protocol of feature networks, and where files of weights are looked for.

N images, H, W pixels, D features.
"""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import numpy as np

from fluid.errors import ConfigError

FOLDER = "FLUID_WEIGHTS"  # An environment variable: a folder of weights.


class MissingWeights(ConfigError):
  """The weights of a network are not there; the message names file and source."""


class FeatureNet(Protocol):
  """A frozen network that turns images into vectors.

  Attributes:
    name: printed with every number made from its features, with all that decides them.
    digest: of its weights.
    outputs: what it gives -> D; the first is what is meant where none is named.
    params: arrays that `apply` takes.
  """

  name: str
  digest: str
  outputs: dict[str, int]
  params: Any

  def preprocess(self, images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> what `apply` takes, on the host (resizing)."""

  def apply(self, params: Any, x: jax.Array) -> dict[str, jax.Array]:
    """Pure: preprocessed images -> output -> float32 [N, D]."""


class TextNet(FeatureNet, Protocol):
  """One that turns texts into vectors of the same space."""

  def texts(self, prompts: Sequence[str]) -> np.ndarray:
    """Prompts -> float32 [N, D] of the first output."""


def digest(path) -> str:
  """Of a file of weights; of a folder's, of all of them."""
  path, found = pathlib.Path(path), hashlib.sha256()
  for file in sorted(path.iterdir()) if path.is_dir() else (path,):
    if file.is_file():
      with file.open("rb") as f:
        found.update(hashlib.file_digest(f, "sha256").digest())
  return found.hexdigest()[:12]


def find(network: str, names: tuple[str, ...], source: str, path="") -> pathlib.Path:
  """The file of a network's weights.

  Args:
    network: as messages call it.
    names: of the file or folder, as its authors have them, the usual one first.
    source: where they publish it.
    path: where it is, if that is known.

  Raises:
    MissingWeights: it is not there.
  """
  folder = os.environ.get(FOLDER, "")
  places = [pathlib.Path(path)] if path else []
  if not path and folder:
    places = [pathlib.Path(folder) / name for name in names]
  for place in places:
    if place.exists():
      return place
  looked = f"no {places[0]}" if places else "no file was named"
  raise MissingWeights(
    f"network '{network}' needs {names[0]} ({looked}): get it from {source}, and set "
    f"the environment variable {FOLDER} to the folder that it lies in"
  )
