"""95 % intervals of fitted curves: profile likelihood and bootstrap.

Profile: a parameter is moved, all others are fitted anew, and the objective may rise by
as much as Student's t allows: for a straight line exactly the textbook's interval, for
other curves correct where a quadratic approximation is not. An end that no value
reaches is infinite: the data do not identify the parameter. Huber's objective with a
small threshold is taken as the likelihood of Laplace noise.

Bootstrap: settings (rows of equal x) are drawn with replacement, and then as many of
each one's seeds: weights, and so one batch of fits.

S draws, n points, k parameters.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
_REACH = np.array([0.2, 0.5, 0.8, 1, 1.25, 1.6, 2.2, 3.5, 7, 15, 40, 150])
_NARROW = np.linspace(0, 1, 9)


def student(freedom: int) -> float:
  """Two-sided quantile of Student's t."""
  return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def pooled(parts: Sequence[tuple[float, int]]) -> tuple[float, int]:
  """One standard deviation from several, and its degrees of freedom.

  Args:
    parts: standard deviations that estimate the same noise, and the degrees of freedom
      of each.
  """
  spread, freedom = np.array(parts, float).T
  total = freedom.sum()
  return float(np.sqrt(spread**2 @ freedom / total)), int(total)


def alike(parts: Sequence[tuple[float, int]]) -> float:
  """p of Bartlett's test that the parts of `pooled` estimate the same noise."""
  (spread, freedom), (whole, total) = np.array(parts, float).T, pooled(parts)
  with np.errstate(divide="ignore"):
    ratio = freedom @ np.log(whole**2 / spread**2)
  few = (np.sum(1 / freedom) - 1 / total) / (3 * (len(parts) - 1))
  return float(stats.chi2.sf(ratio / (1 + few), len(parts) - 1))


def covariance(slope: np.ndarray) -> np.ndarray:
  """Of least squares with derivatives [f, n] and noise of variance 1 -> [f, f]."""
  size = np.sqrt(np.maximum((slope**2).sum(1), 1e-300))
  unit = slope / size[:, None]
  return np.linalg.pinv(unit @ unit.T) / np.outer(size, size)


def profile(problem, theta, index: int, spread: float) -> tuple[float, float]:
  """Interval of theta[index] by its profile.

  Args:
    problem: a Problem.
    theta: the solution [k].
    index: of the parameter.
    spread: half a first guess of the interval's width.
  """
  free = problem.free.copy()
  free[index] = False
  at = problem.cost(theta)
  t2 = student(problem.freedom) ** 2
  # For Gauss as the F test; of Laplace, 2 n log(objective) is -2 log likelihood.
  if np.isinf(problem.delta):
    limit = at * (1 + t2 / problem.freedom)
  else:
    limit = at * np.exp(t2 / (2 * len(problem.target)))
  spread = spread if np.isfinite(spread) and spread > 0 else 1 + abs(theta[index])

  def rises(values):
    """Root of the rise of the objective over what is allowed: nearly linear."""
    starts = np.tile(theta, (len(values), 1))
    starts[:, index] = values
    if not free.any():
      cost = np.array([problem.cost(s) for s in starts])
    else:
      _, cost = problem.solve(starts, free=free, tolerance=1e-8)
    scale = max(limit - at, 1e-300)
    return np.sqrt(np.maximum(cost - at, 0) / scale)

  ends = []
  for sign in (-1, 1):
    far = sign * spread * _REACH
    rise = rises(theta[index] + far)
    over = np.flatnonzero(rise >= 1)
    if not len(over):
      ends.append(sign * np.inf)
      continue
    i = over[0]
    near = far[i - 1] if i else 0.0
    between = near + (far[i] - near) * _NARROW
    rise = np.maximum.accumulate(rises(theta[index] + between))
    ends.append(theta[index] + float(np.interp(1, rise, between)))
  return ends[0], ends[1]


def resample(x: np.ndarray, draws: int, needed: int, rng) -> np.ndarray:
  """Weights [S, n] of bootstrap draws: of settings (columns of x [d, n]), then seeds.

  Draws of fewer than `needed` different settings, which no curve could be fitted to,
  are drawn again.
  """
  _, setting = np.unique(x, axis=1, return_inverse=True)
  setting = setting.ravel()
  groups = [np.flatnonzero(setting == g) for g in range(setting.max() + 1)]
  out = np.zeros((draws, x.shape[1]))
  for row in out:
    drawn = rng.integers(len(groups), size=len(groups))
    while len(set(drawn)) < min(needed, len(groups)):
      drawn = rng.integers(len(groups), size=len(groups))
    for g in drawn:
      mine = groups[g]
      np.add.at(row, mine[rng.integers(len(mine), size=len(mine))], 1)
  return out


def quantiles(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Ends of the central 95 % along the first axis; NaN draws are left out."""
  tail = (1 - LEVEL) / 2
  with np.errstate(all="ignore"):
    low, high = np.nanquantile(values, [tail, 1 - tail], axis=0)
  return low, high
