"""A curve and its points: what all that belongs to a fit is asked of.

n points, d inputs, k parameters, S starts.
"""

import dataclasses

import numpy as np

from analysis import solve
from analysis.forms import Form


@dataclasses.dataclass(frozen=True)
class Problem:
  """A curve and its points, in the space that it is fitted in.

  Attributes:
    form: the curve.
    x, target, weights: [d, n], [n], [n].
    free: which parameters are fitted [k].
    start: values of those that are not [k].
    delta: Huber's threshold.
  """

  form: Form
  x: np.ndarray
  target: np.ndarray
  weights: np.ndarray
  free: np.ndarray
  start: np.ndarray
  delta: float

  @property
  def freedom(self) -> int:
    return len(self.target) - int(self.free.sum())

  def solve(self, starts, *, weights=None, free=None, tolerance=1e-11):
    """Inner parameters [S, k] and objectives [S] from starts [S, k]."""
    return solve.minimise(
      self.form.curve,
      self.x,
      self.target,
      starts,
      weights=self.weights if weights is None else weights * self.weights,
      free=self.free if free is None else free,
      delta=self.delta,
      tolerance=tolerance,
    )

  def cost(self, theta) -> float:
    value, _ = self.form.curve(theta[None], self.x)
    return float((self.weights * solve.huber(value[0] - self.target, self.delta)).sum())

  def best(self, count: int, seed: int) -> tuple[np.ndarray, float]:
    """The best of `count` starts, and the share of them that ended there."""
    used = self.weights > 0
    with np.errstate(all="ignore"):
      starts = self.form.starts(
        self.x[:, used], self.target[used], count, np.random.default_rng(seed)
      )
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
    return dataclasses.replace(
      self, x=self.x[:, mask], target=self.target[mask], weights=self.weights[mask]
    )
