"""Several passes over one example: rows of a batch that share what they are told.

B batch, P passes of an example, L slots of a row. Rows of an example are neighbours, so
that each device has all of its own.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fluid.parallel import sharding


def keys(of: jax.Array, passes: int) -> jax.Array:
  """Keys of examples [B] -> of rows [B P]; the first row of each has its example's."""
  if passes == 1:
    return of
  fold = jax.vmap(jax.random.fold_in, (0, None))
  others = [fold(of, i) for i in range(1, passes)]
  return sharding.by_rows(jnp.stack([of, *others], 1).reshape(-1))


def repeat(x: jax.Array, passes: int) -> jax.Array:
  """Examples [B, ...] -> rows [B P, ...]."""
  if passes == 1:
    return x
  x = jnp.repeat(x[:, None], passes, 1).reshape(-1, *x.shape[1:])
  return sharding.by_rows(x)  # One example's axis has no sharding of its own.


def like(x: jax.Array, rows: jax.Array) -> jax.Array:
  """Examples [B, ...] -> as many rows as there are in another array [B P, ...]."""
  return repeat(x, rows.shape[0] // x.shape[0])


def join(tree: Any, passes: int) -> Any:
  """Rows [B P, L, ...] -> those of an example behind each other [B, P L, ...]."""
  return jax.tree.map(lambda x: _reshaped(x, x.shape[0] // passes), tree)


def part(tree: Any, passes: int) -> Any:
  """The inverse of `join`."""
  return jax.tree.map(lambda x: _reshaped(x, x.shape[0] * passes), tree)


def _reshaped(x, first):
  shape = (first, x.shape[0] * x.shape[1] // first, *x.shape[2:])
  if shape == x.shape:
    return x
  if not sharding.explicit():
    return x.reshape(shape)
  batch, _, *others = jax.typeof(x).sharding.spec
  return jax.lax.reshape(x, shape, out_sharding=jax.P(batch, None, *others))
