"""A curve and its points: what all that belongs to a fit is asked of.

n points, d inputs, k parameters, S starts.
"""

import dataclasses
import functools

import numpy as np

from analysis.curves import solve
from analysis.curves.forms import Form


@dataclasses.dataclass(frozen=True)
class Problem:
  """A curve and its points, in the space that it is fitted in.

  Attributes:
    form: the curve.
    x, target: [d, n], [n].
    noise: covariance of the points' noise up to a factor [n, n]; None: independent and
      equal.
    free: which parameters are fitted [k].
    start: values of those that are not [k].
    delta: Huber's threshold.
  """

  form: Form
  x: np.ndarray
  target: np.ndarray
  noise: np.ndarray | None
  free: np.ndarray
  start: np.ndarray
  delta: float

  @property
  def freedom(self) -> int:
    return len(self.target) - int(self.free.sum())

  @functools.cached_property
  def whiten(self) -> np.ndarray | None:
    """Makes the noise independent and equal [n, n]."""
    if self.noise is None:
      return None
    return np.linalg.inv(np.linalg.cholesky(self.noise))

  def curve(self, theta, x):
    """The form's curve at the points, where their noise is independent and equal."""
    value, slope = self.form.curve(theta, x)
    if self.whiten is None:
      return value, slope
    return value @ self.whiten.T, slope @ self.whiten.T

  @property
  def goal(self) -> np.ndarray:
    """What `curve` should be [n]."""
    return self.target if self.whiten is None else self.whiten @ self.target

  def residuals(self, theta) -> np.ndarray:
    """goal minus curve [n]."""
    return self.goal - self.curve(theta[None], self.x)[0][0]

  def solve(self, starts, *, weights=None, free=None, tolerance=1e-11):
    """Inner parameters [S, k] and objectives [S] from starts [S, k]."""
    return solve.minimise(
      self.curve,
      self.x,
      self.goal,
      starts,
      weights=weights,
      free=self.free if free is None else free,
      delta=self.delta,
      tolerance=tolerance,
    )

  def cost(self, theta) -> float:
    return float(solve.huber(self.residuals(theta), self.delta).sum())

  def best(self, count: int, seed: int) -> tuple[np.ndarray, float]:
    """The best of `count` starts, and the share of them that ended there."""
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
      starts = self.form.starts(self.x, self.target, count, rng)
    starts[:, ~self.free] = self.start[~self.free]
    thetas, costs = self.solve(starts, tolerance=1e-6)
    finalists = np.argsort(costs, kind="stable")[:16]
    thetas, ends = self.solve(thetas[finalists])
    same = costs <= ends.min() * (1 + 1e-3) + 1e-20
    best = thetas[ends.argmin()]
    if self.form.twin and self.free.all():
      best = self.form.twin(best)
    return best, float(same.mean())

  def without(self, mask) -> "Problem":
    """The same, of the points where mask holds only."""
    noise = None if self.noise is None else self.noise[np.ix_(mask, mask)]
    return dataclasses.replace(
      self, x=self.x[:, mask], target=self.target[mask], noise=noise
    )
