"""Families of curves for curves.fit: a new one is one entry of `FORMS`.

  power         L = (N0/x)^a, Kaplan et al. 2020
  power_floor   L = E + (N0/x)^a
  chinchilla    L = E + A/N^alpha + B/D^beta, Hoffmann et al. 2022, approach 3
  bnsl          L = E + b x^-c0 (1 + (x/d)^(1/f))^(-c1 f), Caballero et al. 2023
  linear        y = c + m x
  sigmoid       y = low + (high - low) / (1 + exp(-k (x - x0)))
  isoflop       N* = G C^a through the minima of budgets  (approach 2)
  envelope      N* = G C^a where curves of neighbours cross (approach 1)

Forms that say `log` are fitted to log y in log x. Inside, E, d, f and the factors of
powers are logarithms: nothing can turn negative, and least squares is well conditioned.

S parameter sets, n points, d inputs, k parameters.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from analysis.curves import frontier


@dataclasses.dataclass(frozen=True)
class Own:
  """A public parameter that is one inner parameter, or its exponential."""

  index: int
  exp: bool = False

  def __call__(self, theta: np.ndarray) -> np.ndarray:
    value = theta[..., self.index]
    with np.errstate(over="ignore"):
      return np.exp(value) if self.exp else value

  def inner(self, value: float) -> float:
    """What theta has to be for the public parameter to be `value`."""
    with np.errstate(divide="ignore"):
      return float(np.log(value)) if self.exp else float(value)


@dataclasses.dataclass(frozen=True)
class Form:
  """A family of curves.

  Attributes:
    names: of the inner parameters theta.
    curve: theta [S, k], x [d, n] -> values [S, n] and derivatives [S, k, n]; both x and
      values are logarithms where `log`.
    starts: (x [d, n], y [n], count, rng) -> theta [count, k], in the same space.
    report: public name -> function of theta [..., k]; an `Own` can be held fixed and
      has a profile, others are derived.
    reading: (parameters as text, x names, y name) -> one line in words.
    log: fitted in logarithms; x and y must be positive, x span a decade.
    columns: default inputs.
    y: default output.
    delta: Huber's threshold; inf is least squares.
    count: default number of starts.
    reduce: (x [d, n], y [n], runs [n]) -> frontier.Points that the curve is fitted to.
    twin: of two theta [k] that are the same curve, the one to report.
    rows: the rows of analysis.load that it is fitted to, 'run' or 'eval'.
  """

  names: tuple[str, ...]
  curve: Callable
  starts: Callable
  report: dict[str, Callable[[np.ndarray], np.ndarray]]
  reading: Callable[[Callable, tuple[str, ...], str], str]
  log: bool = True
  columns: tuple[str, ...] = ("N",)
  y: str = "val/loss"
  delta: float = np.inf
  count: int = 1
  reduce: Callable | None = None
  twin: Callable[[np.ndarray], np.ndarray] | None = None
  rows: str = "run"

  def inner(self, values: np.ndarray) -> np.ndarray:
    """Inputs or outputs in the space that the curve is fitted in."""
    return np.log(values) if self.log else values

  def outer(self, values: np.ndarray) -> np.ndarray:
    """The reverse of `inner`."""
    return np.exp(values) if self.log else values


def _line(theta, x):
  """a + b x, in theta = (b, a)."""
  slope = np.stack([x[0], np.ones_like(x[0])])
  return theta @ slope, np.tile(slope, (len(theta), 1, 1))


def _line_starts(x, y, count, rng):
  del rng
  return np.tile(np.polyfit(x[0], y, 1), (count, 1))


def _power(theta, x):
  slope = np.stack([-x[0], np.ones_like(x[0])])
  return theta @ slope, np.tile(slope, (len(theta), 1, 1))


def _power_starts(x, y, count, rng):
  return _line_starts(x, y, count, rng) * [-1, 1]


def _sum_of_powers(theta, x):
  """log(E + sum_i exp(b_i - a_i x_i)), theta = (a_1.., b_1.., log E)."""
  d = len(x)
  exponents, factors, floor = theta[:, :d], theta[:, d : 2 * d], theta[:, 2 * d :]
  terms = factors[:, :, None] - exponents[:, :, None] * x
  terms = np.concatenate([terms, np.repeat(floor[:, :, None], x.shape[1], 2)], 1)
  top = terms.max(1, keepdims=True)
  shares = np.exp(terms - top)
  total = shares.sum(1, keepdims=True)
  shares /= total
  value = (top + np.log(total))[:, 0]
  return value, np.concatenate([-x * shares[:, :d], shares], 1)


def _sum_starts(x, y, count, rng):
  """Exponents and the shares of the terms at the middle of the data, at random."""
  d, centre = len(x), x.mean(1)
  exponents = rng.uniform(0.02, 1.2, (count, d))
  shares = rng.dirichlet(np.ones(d + 1), count)
  levels = np.log(np.maximum(shares, 1e-3)) + y.mean()
  # The floor starts below the lowest point, where it can be.
  floor = np.minimum(levels[:, d:], y.min() - 0.02)
  return np.concatenate([exponents, levels[:, :d] + exponents * centre, floor], 1)


def _bnsl(theta, x):
  """theta = (c0, b, log E, c1, log d, log f)."""
  c0, b, floor, c1, place, width = theta.T[:, :, None]
  f = np.exp(width)
  z = (x[0] - place) / f
  soft, share = np.logaddexp(0, z), 1 / (1 + np.exp(-z))
  power = b - c0 * x[0] - c1 * f * soft
  value = np.logaddexp(power, floor)
  p = np.exp(power - value)
  slopes = [
    -x[0] * p, p, 1 - p, -f * soft * p, c1 * share * p, -c1 * f * (soft - z * share) * p
  ]  # fmt: skip
  return value, np.stack(np.broadcast_arrays(*slopes), 1)


def _bnsl_starts(x, y, count, rng):
  """A line through the logarithms, broken and floored at random."""
  u = x[0]
  slope, offset = np.polyfit(u, y, 1)
  c0 = -slope * rng.uniform(0.2, 2, count)
  c1 = -slope * rng.uniform(-2, 4, count)
  place = rng.uniform(*np.quantile(u, [0.1, 0.9]), count)
  width = np.log(rng.uniform(0.05, 1, count))
  floor = y.min() + np.log(rng.uniform(0.02, 0.98, count))
  level = offset + slope * u.mean() + c0 * u.mean()
  return np.stack([c0, level, floor, c1, place, width], 1)


def _sigmoid(theta, x):
  """theta = (low, high, x0, k)."""
  low, high, centre, k = theta.T[:, :, None]
  s = 1 / (1 + np.exp(-np.clip(k * (x[0] - centre), -500, 500)))
  bend = (high - low) * s * (1 - s)
  value = low + (high - low) * s
  return value, np.stack([1 - s, s, -k * bend, (x[0] - centre) * bend], 1)


def _sigmoid_starts(x, y, count, rng):
  span, height = np.ptp(x[0]), np.ptp(y)
  sign = np.sign(np.polyfit(x[0], y, 1)[0]) or 1.0
  low = y.min() - height * rng.uniform(0, 0.5, count)
  high = y.max() + height * rng.uniform(0, 1, count)
  centre = rng.uniform(x[0].min() - span / 2, x[0].max() + span / 2, count)
  return np.stack([low, high, centre, sign * rng.uniform(1, 12, count) / span], 1)


def _upright(theta):
  """A sigmoid and its mirror image, low and high exchanged, are the same curve."""
  low, high, centre, k = theta
  return theta if low <= high else np.array([high, low, centre, -k])


def _log10_n0(theta):
  with np.errstate(all="ignore"):
    return theta[..., 1] / theta[..., 0] / np.log(10)


def _times(show, what, x, y):
  """'10x N -> loss x 0.93 [0.92, 0.95]' from an exponent."""
  return f"10x {x} -> {y} x {show(what, lambda a: 10**-a, '.3f')}"


def _allocation(show, x, y):
  return f"compute-optimal {y} ~ {x[0]}^{show('a', None, '.3f')}"


_FRONTIER = Form(
  names=("a", "g"),
  curve=_line,
  starts=_line_starts,
  report={"a": Own(0), "log10_G": lambda t: t[..., 1] / np.log(10)},
  columns=("N", "compute"),
  reading=_allocation,
  reduce=frontier.isoflop,
)
_FLOORED = "{} above its floor"

FORMS = {
  "power": Form(
    names=("a", "b"),
    curve=_power,
    starts=_power_starts,
    report={"a": Own(0), "log10_N0": _log10_n0},
    reading=lambda show, x, y: _times(show, "a", x[0], y),
  ),
  "power_floor": Form(
    names=("a", "b", "log E"),
    curve=_sum_of_powers,
    starts=_sum_starts,
    report={"a": Own(0), "log10_N0": _log10_n0, "E": Own(2, exp=True)},
    count=30,
    reading=lambda show, x, y: _times(show, "a", x[0], _FLOORED.format(y)),
  ),
  "chinchilla": Form(
    names=("alpha", "beta", "log A", "log B", "log E"),
    curve=_sum_of_powers,
    starts=_sum_starts,
    report={
      "E": Own(4, exp=True),
      "A": Own(2, exp=True),
      "B": Own(3, exp=True),
      "alpha": Own(0),
      "beta": Own(1),
      "a": lambda t: t[..., 1] / (t[..., 0] + t[..., 1]),
    },
    columns=("N", "D"),
    delta=1e-3,
    count=500,
    reading=lambda show, x, y: (
      f"compute-optimal {x[0]} ~ C^{show('a', None, '.3f')}, "
      f"irreducible {y} {show('E', None, '.4g')}"
    ),
  ),
  "bnsl": Form(
    names=("c0", "b", "log E", "c1", "log d", "log f"),
    curve=_bnsl,
    starts=_bnsl_starts,
    report={
      "E": Own(2, exp=True),
      "c0": Own(0),
      "c1": Own(3),
      "d": Own(4, exp=True),
      "f": Own(5, exp=True),
      "log b": Own(1),
    },
    count=100,
    reading=lambda show, x, y: (
      f"{_times(show, 'c0', x[0], _FLOORED.format(y))} up to {x[0]} = "
      f"{show('d', None, '.3g')}, where the exponent changes by "
      f"{show('c1', None, '.3f')}"
    ),
  ),
  "linear": Form(
    names=("m", "c"),
    curve=_line,
    starts=_line_starts,
    report={"m": Own(0), "c": Own(1)},
    log=False,
    reading=lambda show, x, y: (
      f"{y} changes by {show('m', None, '.3g')} per unit of {x[0]}"
    ),
  ),
  "sigmoid": Form(
    names=("low", "high", "x0", "k"),
    curve=_sigmoid,
    starts=_sigmoid_starts,
    report={"low": Own(0), "high": Own(1), "x0": Own(2), "k": Own(3)},
    log=False,
    twin=_upright,
    columns=("val/loss",),
    y="geneval/overall",
    count=60,
    reading=lambda show, x, y: (
      f"{y} saturates at {show('high', None, '.3g')}, half-way at {x[0]} "
      f"{show('x0', None, '.4g')}"
    ),
  ),
  "isoflop": _FRONTIER,
  "envelope": dataclasses.replace(_FRONTIER, reduce=frontier.envelope, rows="eval"),
}
