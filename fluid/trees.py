"""Names of the leaves of nested dicts."""

from collections.abc import Callable
from typing import Any

import jax


def _name(path) -> str:
  return "/".join(str(getattr(k, "key", k)) for k in path)


def paths(tree) -> dict[str, jax.Array]:
  """Nested dict -> flat dict of 'a/b/c' -> leaf."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {_name(path): v for path, v in flat}


def map_names(fn: Callable, tree: Any, *others: Any) -> Any:
  """Trees of one structure -> that of fn('a/b/c', leaf, ...)."""
  named = lambda path, *leaves: fn(_name(path), *leaves)
  return jax.tree_util.tree_map_with_path(named, tree, *others)
