"""Orders alone: what is revealed when, and how much is masked."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluid import config
from fluid.models import ORDERS
from fluid.models.orders import random as random_order
from fluid.models.plan import Plan
from fluid.tokenizers.base import TokenSpec
from tests.nets import L, cell_of, keys_of, options, part, tiny


class _Recorder:
  """A net of positions: what is drawn is one more than was known before."""

  def __init__(self, b, skips=False):
    self.keys, self.length, self.skips = keys_of(b), L, skips

  def blank(self):
    return jnp.zeros((len(self.keys), L), jnp.int32)

  def start(self, *, past):
    return jnp.zeros(())

  def run(self, tokens, plan: Plan, kept, *, guided=True, at=None):
    if at is None:
      return jnp.zeros((len(self.keys), 1, 1)), kept
    # A position is unknown exactly while it holds its blank.
    marks = tokens * 10 + ~plan.known
    return jnp.take_along_axis(marks, at, 1)[..., None].astype(float), kept

  def draw(self, z, positions, stage, *, known, decoded):
    # Drawing from a known position (z >= 10) is remembered as a large number.
    step = jnp.round(jnp.asarray(known) * L).astype(jnp.int32) + 1
    return jnp.where(z[..., 0] >= 10, 10_000, 0).astype(jnp.int32) + step, None


# Tokens of a scale are revealed together, from inputs that no recorder has.
ONE_GRID = [o for o in ORDERS if config.resolve("order", o).pattern != "scales"]


@pytest.mark.parametrize("order", ONE_GRID)
@pytest.mark.parametrize("steps", [1, 3, 7, 15, 16, 40])
@pytest.mark.parametrize("skips", [False, True])
def test_every_position_is_revealed_once(order, steps, skips):
  net = tiny(cell_of(order=order))
  got = np.asarray(net.order.sample(_Recorder(5, skips), options(net, steps=steps)))
  left = np.arange(L, -1, -1)
  if order == "random":
    left = random_order.remaining(L, steps)
  expected = 1 + np.repeat(L - left[:-1], left[:-1] - left[1:])
  assert (got < 1000).all() and (got > 0).all()
  for row in got:
    np.testing.assert_array_equal(np.sort(row), expected)
  if order == "random" and steps > 3:
    assert len({tuple(row) for row in got}) == 5  # Another order for each image.


def test_decoding_schedule_is_the_reference_one():
  """floor(L cos), at least one fewer each step, 1 to 7 tokens for 256 in 64 steps."""
  left = random_order.remaining(256, 64)
  counts = left[:-1] - left[1:]
  assert len(left) == 65 and left[-1] == 0 and counts.min() == 1 and counts.max() == 7
  for length, steps in itertools.product((1, 2, 16, 63, 256), (1, 2, 16, 64, 300)):
    left = random_order.remaining(length, steps)
    assert left[0] == length and left[-1] == 0 and (np.diff(left) < 0).all()
    groups = random_order.segments(left, [k > length / 2 for k in left[:-1]])
    flat = [n for g in groups for n in g[2]]
    np.testing.assert_array_equal(flat, -np.diff(left))
    near = random_order.segments(left, [0] * (len(left) - 1), spread=length // 5)
    assert [n for g in near for n in g[1]] == left[:-1].tolist()
    assert all(max(g[1]) - min(g[1]) <= length // 5 for g in near)


def test_no_mask_leaves_more_tokens_than_the_plan_says():
  """In float32 0.55 x 100 is 55, in float64 a little more."""
  spec = TokenSpec("discrete", 100, (10, 10), vocab=8)
  order = random_order.Random(mask="cosine", mask_min=0.55)
  plan = order.plan(jax.random.split(jax.random.key(0), 64), None, spec)
  assert int(plan.known.sum(1).max()) == plan.most == 44


@pytest.mark.parametrize(
  "mask,mean,low",
  [
    ("cosine", 2 / np.pi, 0),
    ("arccos", 2 / np.pi, 0),
    ("uniform", 0.5, 0),
    ("truncated_normal", 0.8655, 0.7),
  ],
)
def test_masked_fraction(mask, mean, low):
  """Means in closed form: E cos = E arccos = 2/pi; half a truncated normal."""
  cfg = part("order", "random", mask=mask, mask_min=low)
  rate = jax.vmap(lambda k: random_order.masked_fraction(k, cfg))(
    jax.random.split(jax.random.key(0), 20_000)
  )
  assert low <= rate.min() and rate.max() <= 1
  if mask == "truncated_normal":
    a = (low - 1) / 0.25
    from scipy import stats

    mean = stats.truncnorm.mean(a, 0, loc=1, scale=0.25)
  np.testing.assert_allclose(rate.mean(), mean, atol=0.006)
