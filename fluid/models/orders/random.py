"""Masked tokens in a random order.

B batch, L tokens, M tokens decoded in one step, K decoding steps.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fluid import config
from fluid.config import rules
from fluid.models.orders.base import Order, stage
from fluid.models.plan import Plan

MASKS = ("cosine", "arccos", "uniform", "truncated_normal")


CHOICES = ("random", "confidence")


@dataclasses.dataclass(frozen=True)
class RandomDraw(config.Draw):
  """How tokens are revealed.

  Attributes:
    steps: of decoding, each of which reveals some tokens.
    choice: which ones: 'random' (drawn beforehand, as MAR), or of all that a step draws
      those of most 'confidence' (MaskGIT).
    choice_temperature: of Gumbel noise added to log-confidences, which falls linearly
      to 0.
  """

  steps: int = 64
  choice: str = "random"
  choice_temperature: float = 4.5


@dataclasses.dataclass(frozen=True)
class Random(Order):
  """Bidirectional; the fill vector is the mask token.

  Every example draws its own masked fraction. MAR draws one per batch because its
  encoder drops the masked tokens; a trunk that keeps them has static shapes anyway and
  a loss of less variance.

  Attributes:
    mask: distribution of the masked fraction: 'cosine' (MaskGIT; unconfirmed for
      Fluid), 'arccos', 'uniform' or 'truncated_normal' (MAR).
    mask_min: smallest masked fraction; MAR's truncated normal has 0.7.
    masks: of one image in a training step, each with a loss of its own. Up to 8 at
      least, a mask teaches nearly as much as another image would (docs/study.md), and
      costs no reading, no text keys and values.
  """

  kind = "random"
  pattern = "masked"
  Draw = RandomDraw

  mask: str = "cosine"
  mask_min: float = 0.0
  masks: int = 1

  @property
  def passes(self):
    return self.masks

  def check(self, name):
    rules.positive(self, name, "masks")
    rules.choice(f"{name}mask", self.mask, MASKS)
    rules.share(f"{name}mask_min", self.mask_min)

  def check_draw(self, draw, name):
    rules.positive(draw, name, "steps")
    rules.choice(f"{name}choice", draw.choice, CHOICES)

  def likelihood(self):
    """Uniform numbers of masked tokens: the any-order bound (arXiv 2110.02037, 4.1)."""
    return Random(mask="uniform")

  def known(self, predicted):
    share = 1 - predicted.mean(1, keepdims=True)
    return jnp.broadcast_to(share, predicted.shape)

  def plan(self, keys, step, spec):
    del step
    n = spec.length
    # A trunk may rely on it, whatever the product below rounds to.
    least = max(1, math.ceil(self.mask_min * n))

    def draw(key):
      key_rate, key_rank = jax.random.split(key)
      count = jnp.ceil(masked_fraction(key_rate, self) * n).clip(least, n)
      return permutation(key_rank, n) < count  # The rank of each position is one too.

    masked = jax.vmap(draw)(keys)
    return _plan(n, masked, n - least)

  def sample(self, net, options):
    """See RandomDraw."""
    by = self._confident if options.order.choice == "confidence" else self._random
    return by(net, options)

  def _random(self, net, options):
    """Reveals L tokens in `steps` steps of the cosine schedule, at least one each.

    The head runs on the tokens of the step alone: steps of similar size form a segment,
    whose gather is padded to the largest of them.
    """
    n = net.length
    order = jax.vmap(lambda k: permutation(k, n))(net.keys)  # [B, L]
    tokens, kept = net.blank(), net.start(past=False)
    unknown_at = remaining(n, options.order.steps)
    stages = [stage(options, 1 - k / n) for k in unknown_at[:-1]]
    spread = max(n // 5, 1) if net.skips else n
    for now_stage, left, counts in segments(unknown_at, stages, spread=spread):
      width = max(counts)
      padded = jnp.pad(order, ((0, 0), (0, width)))

      most = n - min(left)

      def body(tokens, step, padded=padded, width=width, most=most, stage=now_stage):
        # Known so far: the end of the order; now decoded: [left - count, left).
        left, count = step
        unknown = jax.vmap(
          lambda o: jnp.zeros(n, bool).at[o].set(jnp.arange(n) < left)
        )(order)
        now = jax.lax.dynamic_slice_in_dim(padded, left - count, width, 1)  # [B, M]
        plan = _plan(n, unknown, most)
        z, _ = net.run(tokens, plan, kept, guided=stage.guided, at=now)
        # As in MAR, whose guidance counts one token as unknown after the last step.
        shares = dict(known=1 - left / n, decoded=1 - jnp.maximum(left - count, 1) / n)
        new, _ = net.draw(z, now, stage, **shares)
        now = jnp.where(jnp.arange(width) < count, now, n)  # Padding is dropped.
        put = jax.vmap(lambda t, i, v: t.at[i].set(v, mode="drop"))
        return put(tokens, now, new.astype(tokens.dtype)), None

      xs = (jnp.asarray(left), jnp.asarray(counts))
      tokens, _ = jax.lax.scan(body, tokens, xs)
    return tokens

  def _confident(self, net, options):
    """Draws all unknown tokens in each step and keeps the most confident.

    MaskGIT (arXiv 2202.04200, 3.2): of a draw's confidence, its log-probability plus
    noise, the ranks decide; the schedule is that of `remaining`.
    """
    n, draw = net.length, options.order
    tokens, kept = net.blank(), net.start(past=False)
    unknown_at = remaining(n, draw.steps, single=True)
    everywhere = jnp.broadcast_to(jnp.arange(n), (len(net.keys), n))
    steps = zip(unknown_at[:-1], unknown_at[1:])
    stages = [stage(options, 1 - k / n) for k in unknown_at[:-1]]
    steps = [
      (now, left, after, 1 - (i + 1) / len(stages))
      for i, (now, (left, after)) in enumerate(zip(stages, steps))
    ]
    carry = tokens, jnp.ones(everywhere.shape, bool)
    for now, group in itertools.groupby(steps, lambda step: step[0]):

      def body(carry, step, now=now):
        tokens, unknown = carry
        left, after, heat = step
        z, _ = net.run(tokens, _plan(n, unknown), kept, guided=now.guided)
        shares = dict(known=1 - left / n, decoded=1 - after / n)
        # What a position drew in a step before is no draw of this one.
        new, score = net.draw(z, everywhere + n * left, now, **shares)
        noise = net.noise(everywhere + n * left)
        score = score + draw.choice_temperature * heat * noise
        return reveal(tokens, unknown, new, score, after), None

      _, *xs = zip(*group)
      carry, _ = jax.lax.scan(body, carry, tuple(jnp.asarray(x) for x in xs))
    return carry[0]


def reveal(tokens, unknown, new, score, after):
  """Puts in the most confident of the new tokens, so that `after` stay unknown.

  tokens, unknown, new, score: [B, L] -> tokens, unknown. What is known stays.
  """
  score = jnp.where(unknown, score, jnp.inf)
  rank = jnp.argsort(jnp.argsort(score, -1), -1)  # The least confident has rank 0.
  tokens = jnp.where(unknown, new.astype(tokens.dtype), tokens)
  unknown = rank < after
  return jnp.where(unknown, 0, tokens), unknown


def _plan(n: int, masked: jax.Array, most: int | None = None) -> Plan:
  """Every token in its own slot, those of `masked` [B, L] hidden and predicted."""
  own = np.arange(n)
  return Plan(
    read=own,
    positions=own,
    targets=own,
    predicted=masked,
    known=~masked,
    most=None if most is None else max(most, 1),
  )


def permutation(key: jax.Array, n: int) -> jax.Array:
  """A uniformly random order of n positions."""
  return jnp.argsort(jax.random.uniform(key, (n,)))


def masked_fraction(key: jax.Array, cfg: Random) -> jax.Array:
  """Draws the share of tokens to mask, in [cfg.mask_min, 1]; see Random.mask."""
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


def remaining(length: int, steps: int, *, single: bool = False) -> np.ndarray:
  """Tokens still unknown before each step and after the last: [K + 1], from L to 0.

  MAR's cosine schedule: floor(L cos(pi/2 k/K)), at least one fewer than before and at
  least one until the last step. More steps than tokens are cut to one token a step.
  In `single` precision, as MaskGIT computes it, two thirds of the steps leave fewer
  than half of the tokens.
  """
  real = np.float32 if single else np.float64
  left = [length]
  for k in range(1, min(steps, length)):
    share = np.cos(real(math.pi / 2) * real(k / steps))
    n = math.floor(real(length) * share)
    left.append(max(1, min(left[-1] - 1, n)))
  return np.array([*left, 0]) if steps < length else np.arange(length, -1, -1)


def segments(
  left: np.ndarray, stages: list, waste: float = 1.5, spread: int = 1 << 30
) -> list[tuple]:
  """Groups consecutive steps so that padding to a group's largest count wastes little.

  Args:
    left: tokens unknown before each of K steps and after the last [K + 1].
    stages: the stage of each step [K]; a group has one.
    waste: a step joins a group while padded work stays within so many times the real
      work: few programs are compiled, and the head rarely runs on padding.
    spread: and while the tokens that are known differ by no more than this, to which a
      trunk may pad.

  Returns:
    (stage, unknown before each step, tokens decoded in each) per group.
  """
  groups: list[tuple] = []
  counts = (left[:-1] - left[1:]).tolist()
  for now, before, count in zip(stages, left[:-1].tolist(), counts, strict=True):
    if groups and groups[-1][0] == now:
      merged = [*groups[-1][2], count]
      near = groups[-1][1][0] - before <= spread
      if near and max(merged) * len(merged) <= waste * sum(merged):
        groups[-1][1].append(before)
        groups[-1][2].append(count)
        continue
    groups.append((now, [before], [count]))
  return groups
