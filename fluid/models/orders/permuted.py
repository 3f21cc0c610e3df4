"""Next token in a random sequence that becomes raster order as training goes on.

B batch, L tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fluid import config
from fluid.models.orders.random import permutation
from fluid.models.orders.raster import Raster
from fluid.models.plan import Plan


@dataclasses.dataclass(frozen=True)
class Permuted(Raster):
  """RAR's (arXiv 2411.00776, 3.2): draws, judges and evaluates in raster order.

  Attributes:
    until: step of the training up to which every sequence is random.
    raster_from: step from which all are raster order; the share falls linearly between.
  """

  kind = "permuted"
  pattern = "permuted"

  until: int = 125_000
  raster_from: int = 187_500

  def check(self, name):
    if self.raster_from < self.until:
      raise config.ConfigError(
        f"config key '{name}raster_from' ({self.raster_from}) must not come before "
        f"{name}until ({self.until})"
      )

  def plan(self, keys, step, spec):
    """See Order; without a step, as in evaluation, raster order."""
    if step is None:
      return super().plan(keys, step, spec)
    n = spec.length
    left = self.raster_from - jnp.asarray(step, jnp.float32)
    share = left / max(self.raster_from - self.until, 1)

    def draw(key):
      key_which, key_order = jax.random.split(key)
      random = jax.random.uniform(key_which) < share
      return jnp.where(random, permutation(key_order, n), jnp.arange(n))

    return following(jax.vmap(draw)(keys))

  def likelihood(self):
    """Raster order's: exact."""
    return Raster()


def following(order: jax.Array) -> Plan:
  """The plan of sequences of positions [B, L], each token after the one before."""
  read = jnp.pad(order[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  return Plan(
    read=read,
    positions=read,
    targets=order,
    predicted=jnp.ones(order.shape, bool),
    causal=True,
  )
