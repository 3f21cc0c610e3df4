"""A family of published weights: what it becomes, and how its files are spelled.

Tables of families (`tokenizers.FAMILIES`) have a `Family` for each kind of the command
line; `convert` is the same for all.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import traverse_util

from fluid import config as config_lib
from fluid import files, trees
from fluid.convert import containers, names
from fluid.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Family:
  """One published architecture at its published size.

  Attributes:
    config: the part that it becomes.
    registry: family of the part, for `change`.
    spellings: ways in which its files write names.
    abstract: (config, options) -> tree of shapes of its weights.
    save: (path, config, options, weights) writes what this code loads.
    read: path of what `save` wrote, or of a trained one -> its config, its weights and
      their step.
    given: config -> {our name: value} of weights that no file has.
    options: values beside the config that `key=value` may change as well.
  """

  config: Any
  registry: str
  spellings: tuple[names.Spelling, ...]
  abstract: Callable[[Any, Mapping[str, Any]], Any]
  save: Callable[[str, Any, Mapping[str, Any], Any], None]
  read: Callable[[str], tuple[Any, Any, int]]
  given: Callable[[Any], Mapping[str, Any]] = lambda config: {}
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    """What it says of itself."""
    return self.config.kind

  def change(self, changes: Mapping[str, Any]) -> "Family":
    """Other values of the config's fields and of the options; both are checked."""
    options = {k: v for k, v in changes.items() if k in self.options}
    for key, value in options.items():
      if type(value) is not type(self.options[key]):
        raise ConfigError(
          f"'{key}' is {value!r}; it must be like {self.options[key]!r}"
        )
    fields = {k: v for k, v in changes.items() if k not in options}
    tree = config_lib.to_dict(self.config) | fields
    config = config_lib.part_from_dict(tree, self.registry, f"{self.registry}.")
    options = {**self.options, **options}
    return dataclasses.replace(self, config=config, options=options)


_NONE: Mapping[str, Any] = {}


def convert(family: Family, source, path, changes: Mapping[str, Any] = _NONE) -> Any:
  """Reads published weights and writes the folder `path`; returns the weights' tree.

  Args:
    family: of the file.
    source: file or folder; see containers.read.
    path: folder that is written.
    changes: fields of the config and options, where they are not the published ones.

  Raises:
    ConfigError: the file cannot be read or does not fit, naming what does not.
  """
  family = family.change(changes)
  shapes = trees.paths(family.abstract(family.config, family.options))
  given = family.given(family.config)
  weights = containers.read(source)
  try:
    flat = names.fill(
      shapes, weights, family.spellings, config=family.config, given=given
    )
  except ConfigError as e:
    raise ConfigError(
      f"{source} is no {family.name} of these sizes; {e}; other sizes are set as "
      "key=value"
    ) from e
  tree: dict[str, np.ndarray] = traverse_util.unflatten_dict(flat, sep="/")
  family.save(str(path), family.config, family.options, tree)
  return tree


def back(family: Family, source, like, path) -> tuple[pathlib.Path, int]:
  """Writes weights under their authors' names, as one safetensors file.

  Args:
    family: of the kind.
    source: folder of a tokenizer or a run of this kind.
    like: the authors' file, or another of the same model, whose names and shapes are
      taken; what is no parameter of ours stays as it is there.
    path: folder that is written.

  Returns:
    The file, and the step of the weights.

  Raises:
    ConfigError: something cannot be read, or does not fit.
  """
  config, tree, step = family.read(str(source))
  if type(config) is not type(family.config):
    raise ConfigError(f"{source} is no {family.name} but {config.kind}: name its kind")
  known = family.given(config)
  values = {k: np.asarray(v) for k, v in trees.paths(tree).items() if k not in known}
  try:
    arrays = names.spell(values, containers.read(like), family.spellings, config=config)
  except ConfigError as e:
    raise ConfigError(f"{like} is no {family.name} as {source} is; {e}") from e
  file = pathlib.Path(path) / "model.safetensors"
  with files.replacing(file) as scratch:
    safetensors.numpy.save_file(
      {k: np.ascontiguousarray(v) for k, v in arrays.items()}, scratch
    )
  return file, step


def shapes_of(init: Callable[[jax.Array], Any]) -> Any:
  """What a function of a key would make, without making it."""
  return jax.eval_shape(init, jax.random.key(0))
