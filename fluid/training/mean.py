"""`Mean`: the one place where a loss or a metric is averaged.

In training, accumulation and evaluation: sums and counts are added up, divided once.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mean:
  """A weighted mean that has not been divided yet: Means add up exactly."""

  sum: jax.Array
  count: jax.Array

  @classmethod
  def of(cls, values: jax.Array, weights: jax.Array | None = None) -> "Mean":
    """Sums values [...] under weights (same leading axes; default: all 1), float32."""
    values = values.astype(jnp.float32)
    w = jnp.ones_like(values) if weights is None else weights.astype(jnp.float32)
    w = w.reshape(w.shape + (1,) * (values.ndim - w.ndim))
    # A masked value may be NaN (padding); it must not get into the sum as 0 * NaN.
    kept = jnp.where(w != 0, values * w, 0.0)
    return cls(kept.sum(), jnp.broadcast_to(w, values.shape).sum())

  def __add__(self, other: "Mean") -> "Mean":
    return Mean(self.sum + other.sum, self.count + other.count)

  @property
  def value(self) -> jax.Array:
    """The mean; 0 where nothing was counted."""
    return self.sum / jnp.maximum(self.count, 1e-30)
