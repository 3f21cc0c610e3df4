"""Families of curves for analysis.fit: a new one is one entry of `FORMS`.

n runs, k parameters. The power forms are kept as (a, b = a log N0), in which the plain
power law is linear.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import optimize, special


@dataclasses.dataclass(frozen=True)
class Form:
  """A family of curves.

  Attributes:
    names: of the parameters.
    log: residuals are of log y (else of y).
    predict: (theta [k], x [n]) -> y [n].
    jacobian: (theta [k], x [n]) -> d(log y or y)/d(theta) [n, k].
    solve: (x [n], y [n]) -> theta [k].
  """

  names: tuple[str, ...]
  log: bool
  predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
  jacobian: Callable[[np.ndarray, np.ndarray], np.ndarray]
  solve: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _ones(x):
  return np.ones_like(x, dtype=float)


def _solve_power(x, y):
  # log y = a log N0 - a log x, in parameters (a, a log N0)
  slope, offset = np.polyfit(np.log(x), np.log(y), 1)
  return np.array([-slope, offset])


def _floor(theta, x):
  a, b, floor = theta
  return floor + np.exp(b - a * np.log(x))


def _floor_jacobian(theta, x):
  a, b, _ = theta
  power = np.exp(b - a * np.log(x))
  y = _floor(theta, x)
  return np.stack([-np.log(x) * power, power, _ones(x)], 1) / y[:, None]


def _solve_floor(x, y):
  """Best of several starts: the surface has a flat valley towards floor = 0."""
  centre = np.exp(np.mean(np.log(x)))  # keeps a and b from moving together
  u, lowest = x / centre, y.min()

  def curve(t):  # the floor as a share of the lowest point, through a logistic
    share = special.expit(t[2])
    return np.array([t[0], t[1], share * lowest]), share

  def residual(t):
    return np.log(_floor(curve(t)[0], u)) - np.log(y)

  def jacobian(t):
    theta, share = curve(t)
    return _floor_jacobian(theta, u) * [1.0, 1.0, lowest * share * (1 - share)]

  best = None
  for share in (0.1, 0.6, 0.95):
    slope, offset = np.polyfit(np.log(u), np.log(y - share * lowest), 1)
    start = [-slope, offset, special.logit(share)]
    result = optimize.least_squares(
      residual, start, jac=jacobian, method="lm", xtol=1e-13, ftol=1e-13, gtol=1e-13
    )
    if best is None or result.cost < best.cost:
      best = result
  (a, b, floor), share = curve(best.x)
  if share < 1e-3:  # on its way to no floor at all
    slope, b = np.polyfit(np.log(u), np.log(y), 1)
    a, floor = -slope, 0.0
  return np.array([a, b + a * np.log(centre), floor])


FORMS = {
  "power": Form(
    ("a", "b"),
    True,
    lambda t, x: np.exp(t[1] - t[0] * np.log(x)),
    lambda t, x: np.stack([-np.log(x), _ones(x)], 1),
    _solve_power,
  ),
  "power_floor": Form(("a", "b", "E"), True, _floor, _floor_jacobian, _solve_floor),
  "linear": Form(
    ("m", "c"),
    False,
    lambda t, x: t[0] * x + t[1],
    lambda t, x: np.stack([x, _ones(x)], 1),
    lambda x, y: np.polyfit(x, y, 1),
  ),
}
