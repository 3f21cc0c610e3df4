"""Orders: which tokens are seen, which are predicted, and in what sequence.

An order has no parameters; it is a frozen dataclass that knows neither head nor trunk.

B batch, L tokens, D width, M tokens decoded in one step, K decoding steps.
"""

import dataclasses
import itertools
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

  def fill_in(self, tokens, unknown, positions, stage) -> jax.Array:
    """Tokens [B, L, ...], unknown [B, L] -> trunk outputs at positions [B, M]."""

  def start(self) -> tuple[Any, jax.Array]:
    """Empty key/value cache, first input."""

  def decode(self, cache, x, position) -> tuple[jax.Array, Any]:
    """One position through the trunk: trunk output of M = 1, cache."""

  def embed(self, tokens) -> jax.Array:
    """Tokens [B, 1, ...] -> next input."""

  def draw(self, z, positions, decoded, stage) -> jax.Array:
    """Trunk outputs at positions [B, M] -> tokens [B, M, ...].

    `decoded` is the number of tokens known after this step, for the guidance schedule.
    """


@dataclasses.dataclass(frozen=True)
class Stage:
  """What differs between decoding steps but is compiled in.

  Attributes:
    guided: the unconditional pass runs as well.
    diffusion_steps: of the diffusion head.
  """

  guided: bool
  diffusion_steps: int


def stage(cfg: config.Sample, known: float) -> Stage:
  """The stage of a step before which the share `known` of the tokens is decoded."""
  first, last = cfg.diffusion_steps, cfg.diffusion_steps_last or cfg.diffusion_steps
  quarter = min(int(4 * known), 3)
  return Stage(
    cfg.guidance != 1 and cfg.guidance_from <= known < max(cfg.guidance_to, 1e-9),
    round(first + (last - first) * quarter / 3),
  )


class Order(Protocol):
  """See Raster and Random."""

  causal: bool

  def corrupt(self, keys, x, fill):
    """Keys [B], x [B, L, D], fill [D] -> inputs [B, L, D], predicted [B, L]."""

  def sample(self, net: Net, cfg: config.Sample) -> jax.Array:
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

  def sample(self, net, cfg):
    """One token a step, with a key/value cache; `cfg.steps` does not apply."""
    carry, tokens = net.start(), []
    stages = [stage(cfg, i / net.length) for i in range(net.length)]
    for now, positions in itertools.groupby(range(net.length), stages.__getitem__):

      def body(carry, i, now=now):
        cache, x = carry
        z, cache = net.decode(cache, x, i)
        new = net.draw(z, jnp.full((net.keys.shape[0], 1), i), i + 1, now)
        return (cache, net.embed(new)), new[:, 0]

      carry, new = jax.lax.scan(body, carry, jnp.array([*positions]))
      tokens.append(new)
    return jnp.moveaxis(jnp.concatenate(tokens), 0, 1)


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

  def sample(self, net, cfg):
    """Reveals L tokens in `cfg.steps` steps of the cosine schedule, at least one each.

    The head runs on the tokens of the step alone: steps of similar size form a segment,
    whose gather is padded to the largest of them.
    """
    n = net.length
    order = jax.vmap(lambda k: permutation(k, n))(net.keys)  # [B, L]
    tokens = net.blank()
    unknown_at = remaining(n, cfg.steps)
    stages = [stage(cfg, 1 - k / n) for k in unknown_at[:-1]]
    for now_stage, left, counts in segments(unknown_at, stages):
      width = max(counts)
      padded = jnp.pad(order, ((0, 0), (0, width)))

      def body(tokens, step, padded=padded, width=width, stage=now_stage):
        # Known so far: the end of the order; now decoded: [left - count, left).
        left, count = step
        unknown = jax.vmap(
          lambda o: jnp.zeros(n, bool).at[o].set(jnp.arange(n) < left)
        )(order)
        now = jax.lax.dynamic_slice_in_dim(padded, left - count, width, 1)  # [B, M]
        z = net.fill_in(tokens, unknown, now, stage)
        new = net.draw(z, now, n - left + count, stage)
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


def segments(left: np.ndarray, stages: list, waste: float = 1.5) -> list[tuple]:
  """Groups consecutive steps so that padding to a group's largest count wastes little.

  Args:
    left: tokens unknown before each of K steps and after the last [K + 1].
    stages: the stage of each step [K]; a group has one.
    waste: a step joins a group while padded work stays within so many times the real
      work: few programs are compiled, and the head rarely runs on padding.

  Returns:
    (stage, unknown before each step, tokens decoded in each) per group.
  """
  groups = []
  counts = (left[:-1] - left[1:]).tolist()
  for now, before, count in zip(stages, left[:-1].tolist(), counts, strict=True):
    if groups and groups[-1][0] == now:
      merged = [*groups[-1][2], count]
      if max(merged) * len(merged) <= waste * sum(merged):
        groups[-1][1].append(before)
        groups[-1][2].append(count)
        continue
    groups.append((now, [before], [count]))
  return groups
