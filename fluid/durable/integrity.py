"""Checksums of arrays that do not depend on how they are laid out over devices.

A sum of the words of an array, each times an odd number that follows from its place,
modulo 2**32: exact, so the order of adding does not matter and it is the same on every
mesh; and any change of one word changes it. What a checkpoint gives back is held
against what the devices held when it was saved.
"""

import jax
import jax.numpy as jnp

from fluid import trees


def _sum(x: jax.Array) -> jax.Array:
  if x.dtype == bool:
    x = x.astype(jnp.uint8)
  words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
  place = jnp.uint32(0)
  for axis in range(x.ndim):
    index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    place = place * jnp.uint32(0x9E3779B1) + index
  return (words.astype(jnp.uint32) * (2 * place + 1)).sum(dtype=jnp.uint32)


@jax.jit
def _sums(leaves: dict) -> dict:
  return jax.tree.map(_sum, leaves)


def checksums(tree) -> dict[str, int]:
  """Name of each array (up to 32 bits an element) -> its sum, as integers."""
  return {k: int(v) for k, v in jax.device_get(_sums(trees.paths(tree))).items()}
