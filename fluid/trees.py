"""Names of the leaves of nested dicts."""

import jax


def paths(tree) -> dict[str, jax.Array]:
  """Nested dict -> flat dict of 'a/b/c' -> leaf."""
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {"/".join(str(getattr(k, "key", k)) for k in path): v for path, v in flat}
