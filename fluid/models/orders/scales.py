"""Next scale: all tokens of a grid at once, from the coarsest grid to the finest.

B batch, L tokens of all scales, s a scale's side, S scales, C latent channels.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from fluid.models.orders.base import Order, stage
from fluid.models.plan import Plan


@dataclasses.dataclass(frozen=True)
class Scales(Order):
  """VAR's (arXiv 2404.02905): a slot reads the image so far, at its own scale.

  Inputs are latents and not tokens: what the tokenizer makes of the scales before. The
  first scale, of one token, has none. Guidance that is 'linear' grows from the first
  scale, where there is none, to the last.
  """

  kind = "scales"
  pattern = "scales"

  def plan(self, keys, step, spec):
    del step
    n, sizes = spec.length, _sizes(spec.scales)
    return Plan(
      read=np.maximum(np.arange(n) - sizes[0], -1),
      positions=np.arange(n),
      targets=np.arange(n),
      predicted=jnp.ones((len(keys), n), bool),
      causal=sizes,
    )

  def likelihood(self):
    """Its own plan: exact, as tokens of a scale are drawn apart."""
    return self

  def known(self, predicted):
    n = predicted.shape[1]
    return jnp.broadcast_to(jnp.arange(n) / n, predicted.shape)

  def sample(self, net, options):
    """One scale a step, behind a cache of those before."""
    scales = net.scales
    kept, latent = net.start(past=True), scales.blank(len(net.keys))
    n, first, tokens = net.length, 0, []
    inputs = scales.at(latent, 0)
    for k, size in enumerate(_sizes(scales.sides)):
      places = np.arange(first, first + size)
      plan = Plan(
        read=np.arange(size) if k else np.full(size, -1),
        positions=places,
        targets=places,
        first=first,
      )
      z, kept = net.run(inputs, plan, kept)
      share = k / max(len(scales.sides) - 1, 1)
      at = jnp.broadcast_to(places, (len(net.keys), size))
      now = stage(options, k / len(scales.sides))  # Of scales, which count alike.
      new, _ = net.draw(z, at, now, known=share, decoded=share)
      latent = scales.add(latent, new, k)
      tokens.append(new)
      first += size
      if first < n:
        inputs = scales.at(latent, k + 1)
    return jnp.concatenate(tokens, 1)


def _sizes(scales) -> tuple[int, ...]:
  return tuple(side * side for side in scales)
