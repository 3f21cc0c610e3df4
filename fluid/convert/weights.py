"""What a file of weights gives, and how one that cannot be read says so."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fluid.errors import ConfigError

AGAIN = "download it again"
_DEPTH = 40  # Of dicts in dicts; a checkpoint has a handful.


class FileError(ConfigError):
  """A file that cannot be read: which one, what was found, what to do."""

  def __init__(self, path, found: object, remedy: str):
    super().__init__(f"{path}: {found}; {remedy}")


class Weights(Mapping[str, np.ndarray]):
  """Name -> array, each made when it is asked for."""

  def __init__(self, make: Mapping[str, Callable[[], np.ndarray]]):
    self._make = dict(make)

  def __getitem__(self, name: str) -> np.ndarray:
    return self._make[name]()

  def __iter__(self) -> Iterator[str]:
    return iter(self._make)

  def __len__(self) -> int:
    return len(self._make)

  def under(self, section: str) -> "Weights":
    """Those whose names begin with `section.`, without it ('': all)."""
    head = f"{section}." if section else ""
    found = self._make.items()
    return Weights({k[len(head) :]: v for k, v in found if k.startswith(head)})


def leaves(tree: Any, kind: type, path, name: str = "", depth: int = 0) -> Iterator:
  """(dotted name, leaf) of all leaves of a kind in dicts and lists."""
  if isinstance(tree, kind):
    yield name, tree
  elif isinstance(tree, dict | list | tuple):
    if depth > _DEPTH:
      raise FileError(path, f"holds itself or is nested too deep at {name:.40}", AGAIN)
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree)
    seen = set()
    for key, value in pairs:
      if not isinstance(key, str | int):
        continue
      inner = f"{name}.{key}" if name else str(key)
      for leaf in leaves(value, kind, path, inner, depth + 1):
        if leaf[0] in seen:
          raise FileError(path, f"has two tensors of name {leaf[0]}", AGAIN)
        seen.add(leaf[0])
        yield leaf
