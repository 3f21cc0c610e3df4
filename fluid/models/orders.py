"""Orders: which tokens are seen, which are predicted, and in what sequence.

An order has no parameters; it is a frozen dataclass that knows neither head nor trunk.

B batch, L tokens, D width, M tokens decoded in one step, K decoding steps.
"""

import dataclasses
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fluid import config


class Net(Protocol):
  """What an order's sampler may call; text and parameters are already inside.

  With guidance, the trunk runs on 2B rows, conditional first; tokens have B rows.
  """

  length: int
  keys: jax.Array  # [B]

  def blank(self) -> jax.Array:
    """Tokens [B, L, ...], all zero."""

  def fill_in(self, tokens, unknown) -> jax.Array:
    """Tokens [B, L, ...], unknown [B, L] -> trunk outputs of every position."""

  def start(self) -> tuple[Any, jax.Array]:
    """Empty key/value cache, first input."""

  def decode(self, cache, x, position) -> tuple[jax.Array, Any]:
    """One position through the trunk: trunk output of M = 1, cache."""

  def embed(self, tokens) -> jax.Array:
    """Tokens [B, 1, ...] -> next input."""

  def draw(self, z, positions, decoded) -> jax.Array:
    """Trunk outputs at positions [B, M] -> tokens [B, M, ...].

    `decoded` is the number of tokens known after this step, for the guidance schedule.
    """


class Order(Protocol):
  """See Raster and Random."""

  causal: bool

  def corrupt(self, keys, x, fill):
    """Keys [B], x [B, L, D], fill [D] -> inputs [B, L, D], predicted [B, L]."""

  def sample(self, net: Net, steps: int) -> jax.Array:
    """-> tokens [B, L, ...]."""


@dataclasses.dataclass(frozen=True)
class Raster:
  """Next token, row by row: causal, inputs shifted by one, `fill` is the start."""

  cfg: config.Model = config.Model()
  causal = True

  def corrupt(self, keys, x, fill):
    del keys
    start = jnp.zeros_like(x[:, :1]) + fill.astype(x.dtype)
    inputs = jnp.concatenate([start, x[:, :-1]], 1)
    return inputs, jnp.ones_like(x[..., 0], bool)

  def sample(self, net, steps):
    """One token a step, with a key/value cache; `steps` does not apply."""
    del steps

    def body(carry, i):
      cache, x = carry
      z, cache = net.decode(cache, x, i)
      tokens = net.draw(z, jnp.full((net.keys.shape[0], 1), i), i + 1)
      return (cache, net.embed(tokens)), tokens[:, 0]

    _, tokens = jax.lax.scan(body, net.start(), jnp.arange(net.length))
    return jnp.moveaxis(tokens, 0, 1)


@dataclasses.dataclass(frozen=True)
class Random:
  """Masked tokens in a random order: bidirectional, `fill` is the mask token.

  Every example draws its own masked fraction. MAR draws one per batch because its
  encoder drops the masked tokens; this trunk keeps them, so shapes are static anyway
  and the loss has less variance.
  """

  cfg: config.Model = config.Model()
  causal = False

  def corrupt(self, keys, x, fill):
    n = x.shape[1]

    def draw(key):
      key_rate, key_rank = jax.random.split(key)
      count = jnp.ceil(masked_fraction(key_rate, self.cfg) * n).clip(1, n)
      return permutation(key_rank, n) < count  # The rank of each position is one too.

    masked = jax.vmap(draw)(keys)
    return jnp.where(masked[..., None], fill.astype(x.dtype), x), masked

  def sample(self, net, steps):
    """Reveals L tokens in `steps` steps of the cosine schedule, at least one each.

    The head runs on the tokens of the step alone: steps of similar size form a segment,
    whose gather is padded to the largest of them.
    """
    n, b = net.length, net.keys.shape[0]
    order = jax.vmap(lambda k: permutation(k, n))(net.keys)  # [B, L]
    tokens = net.blank()
    for left, counts in segments(remaining(n, steps)):
      width = max(counts)
      padded = jnp.pad(order, ((0, 0), (0, width)))

      def body(tokens, step, padded=padded, width=width):
        # Known so far: the end of the order; now decoded: [left - count, left).
        left, count = step
        unknown = jax.vmap(
          lambda o: jnp.zeros(n, bool).at[o].set(jnp.arange(n) < left)
        )(order)
        z = net.fill_in(tokens, unknown)
        now = jax.lax.dynamic_slice_in_dim(padded, left - count, width, 1)  # [B, M]
        rows = z.shape[0] // b
        at = jnp.tile(now, (rows, 1))[..., None]
        new = net.draw(jnp.take_along_axis(z, at, 1), now, n - left + count)
        now = jnp.where(jnp.arange(width) < count, now, n)  # Padding is dropped.
        put = jax.vmap(lambda t, i, v: t.at[i].set(v, mode="drop"))
        return put(tokens, now, new.astype(tokens.dtype)), None

      xs = (jnp.asarray(left), jnp.asarray(counts))
      tokens, _ = jax.lax.scan(body, tokens, xs)
    return tokens


ORDERS = {"raster": Raster, "random": Random}


def permutation(key: jax.Array, n: int) -> jax.Array:
  """A uniformly random order of n positions."""
  return jnp.argsort(jax.random.uniform(key, (n,)))


def masked_fraction(key: jax.Array, cfg: config.Model) -> jax.Array:
  """Draws the share of tokens to mask, in [cfg.mask_min, 1]; see config.Model.mask."""
  if cfg.mask == "truncated_normal":  # MAR: mean 1, standard deviation 0.25.
    low = (cfg.mask_min - 1) / 0.25
    return 1 + 0.25 * jax.random.truncated_normal(key, low, 0.0)
  u = jax.random.uniform(key)
  rate = {
    "cosine": lambda: jnp.cos(jnp.pi / 2 * u),
    "arccos": lambda: jnp.arccos(u) * 2 / jnp.pi,
    "uniform": lambda: 1 - u,
  }[cfg.mask]()
  return jnp.maximum(rate, cfg.mask_min)


def remaining(length: int, steps: int) -> np.ndarray:
  """Tokens still unknown before each step and after the last: [K + 1], from L to 0.

  MAR's cosine schedule: floor(L cos(pi/2 k/K)), at least one fewer than before and at
  least one until the last step. More steps than tokens are cut to one token a step.
  """
  left = [length]
  for k in range(1, min(steps, length)):
    n = math.floor(length * math.cos(math.pi / 2 * k / steps))
    left.append(max(1, min(left[-1] - 1, n)))
  return np.array([*left, 0]) if steps < length else np.arange(length, -1, -1)


def segments(left: np.ndarray, waste: float = 1.5) -> list[tuple[list, list]]:
  """Groups consecutive steps so that padding to a group's largest count wastes little.

  Returns (unknown before the step, tokens decoded in it) per group, covering all steps;
  a step joins a group while padded work stays within `waste` times the real work, so
  that few programs are compiled and the head rarely runs on padding.
  """
  groups = []
  for before, count in zip(left[:-1].tolist(), (left[:-1] - left[1:]).tolist()):
    if groups:
      lefts, counts = groups[-1]
      merged = [*counts, count]
      if max(merged) * len(merged) <= waste * sum(merged):
        lefts.append(before)
        counts.append(count)
        continue
    groups.append(([before], [count]))
  return groups
