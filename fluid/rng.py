"""Named random streams: every key is a function of (seed, name, step, example).

No key lives in a checkpoint: a resumed run derives the keys it would have had. Keys
are per example, so that noise does not depend on how examples are batched, split into
microbatches or laid out on a mesh.
"""

import zlib

import jax


def stream(seed: int, name: str, step=None) -> jax.Array:
  """Key of the stream `name`, at `step` (an int or a traced integer) if given."""
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
  return key if step is None else jax.random.fold_in(key, step)


def example_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
  """One key and ids [B] -> keys [B]."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
