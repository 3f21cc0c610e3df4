"""Next token, row by row."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from fluid.models.orders.base import Order, stage
from fluid.models.plan import Plan


@dataclasses.dataclass(frozen=True)
class Raster(Order):
  """Causal, inputs shifted by one, the fill vector is the start."""

  kind = "raster"

  def plan(self, keys, step, spec):
    del step
    n = spec.length
    return Plan(
      read=np.arange(-1, n - 1),
      positions=np.arange(-1, n - 1),
      targets=np.arange(n),
      predicted=jnp.ones((len(keys), n), bool),
      causal=True,
    )

  def likelihood(self):
    """Its own plan: exact."""
    return self

  def known(self, predicted):
    n = predicted.shape[1]
    return jnp.broadcast_to(jnp.arange(n) / n, predicted.shape)

  def step(self, i: jax.Array) -> Plan:
    """The plan of slot i alone, for the token before it."""
    here = jnp.full((1,), i)
    return Plan(
      read=np.arange(1),
      known=jnp.full((1, 1), i > 0),
      positions=here - 1,
      targets=here,
      causal=True,
      first=i,
    )

  def sample(self, net, options):
    """One token a step, with a cache of what was run."""
    n = net.length
    stages = [stage(options, i / n) for i in range(n)]
    carry = net.start(past=True), net.blank()[:, :1]
    tokens = []
    for now, positions in itertools.groupby(range(n), stages.__getitem__):

      def body(carry, i, now=now):
        kept, before = carry
        z, kept = net.run(before, self.step(i), kept)
        at = jnp.full((len(net.keys), 1), i)
        new, _ = net.draw(z, at, now, known=i / n, decoded=(i + 1) / n)
        return (kept, new), new[:, 0]

      carry, new = jax.lax.scan(body, carry, jnp.array([*positions]))
      tokens.append(new)
    return jnp.moveaxis(jnp.concatenate(tokens), 0, 1)
