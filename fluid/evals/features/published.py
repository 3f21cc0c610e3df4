"""Published weights of feature networks: where they are, and what is in them."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from fluid.config import ConfigError
from fluid.convert import containers, names
from fluid.convert.weights import Weights
from fluid.errors import one_line
from fluid.evals.features import base


def find(path, model: str, models: Mapping[str, str]) -> pathlib.Path:
  """The file or folder of a model's weights.

  Args:
    path: that a user gave; '' for a folder in the folder FLUID_WEIGHTS.
    model: key of `models`.
    models: model -> where its authors have it; the folder has that page's name.

  Raises:
    ConfigError: there is no such model; MissingWeights where its files are not there.
  """
  if model not in models:
    raise ConfigError(f"unknown model '{model}'; choose from {', '.join(models)}")
  return base.find(model, (models[model].rpartition("/")[2],), models[model], path)


@dataclasses.dataclass(frozen=True)
class Source:
  """A file of weights in one of the spellings of a family.

  Attributes:
    path: of the file or folder.
    family: its name, for errors.
    spelling: of the file.
    weights: its tensors.
  """

  path: pathlib.Path
  family: str
  spelling: names.Spelling
  weights: Weights

  @classmethod
  def open(
    cls, path: pathlib.Path, family: str, probe: str, *spellings: names.Spelling
  ) -> "Source":
    """The first spelling in which the parameter `probe` is there.

    Raises:
      ConfigError: the file cannot be read, or is of another family.
    """
    whole = containers.read(path)
    for spelling in spellings:
      weights = spelling.section(whole)
      if spelling.source(probe, None) in weights:
        return cls(path, family, spelling, weights)
    wanted = " or ".join(s.source(probe, None) for s in spellings)
    raise ConfigError(f"{path} is no {family} (it lacks {wanted}): name another file")

  def has(self, name: str) -> bool:
    """Whether there is a tensor for a parameter, or for its first layer."""
    return self._tensor(name) in self.weights

  def shape(self, name: str) -> tuple[int, ...]:
    """Shape of a parameter's tensor as it is stored, of one layer."""
    tensor = self._tensor(name)
    if tensor not in self.weights:
      raise ConfigError(
        f"{self.path} is no {self.family} of a known kind (it lacks {tensor}): name "
        "another file"
      )
    return self.weights[tensor].shape

  def layers(self, name: str) -> int:
    """Layers that have a tensor for a parameter."""
    counted = itertools.count()
    return next(i for i in counted if self._tensor(name, i) not in self.weights)

  def read(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Every parameter 'a/b' in float32 -> {'a': {'b': array}}.

    Raises:
      ConfigError: naming all tensors that are missing, left over or of other shapes.
    """
    like = {k: jax.ShapeDtypeStruct(v, np.float32) for k, v in shapes.items()}
    try:
      flat = names.fill(like, self.weights, [self.spelling], config=None)
    except ConfigError as e:
      raise ConfigError(f"{self.path} is no {self.family}; {e}") from e
    return traverse_util.unflatten_dict(flat, sep="/")

  def _tensor(self, name: str, layer: int = 0) -> str:
    return self.spelling.source(name, None).replace("*", str(layer))


def described(path: pathlib.Path) -> dict[str, Any]:
  """Content of a JSON file beside the weights; {} where there is none.

  Raises:
    ConfigError: it is damaged.
  """
  try:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
  except (OSError, ValueError, TypeError) as e:
    raise ConfigError(f"{path} is damaged ({one_line(e)}): download it again") from e


def place(params: Any) -> Any:
  """A tree of arrays on the default device."""
  return jax.tree.map(jnp.asarray, params)
