"""Many small fits at once: batched BFGS, preconditioned with Gauss-Newton matrices.

One batch serves everything that repeats a fit: starts (rows differ in where they
begin), bootstrap (in their weights), profiles (in what is held fixed), simulated
studies (in their targets). A row never sees its neighbours, so results do not depend on
the batch it came in.

S rows of the batch, n points, k parameters, d inputs.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# theta [S, k], x [d, n] -> values [S, n], their derivatives [S, k, n].
Curve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_CHUNK = 500  # rows at a time
_ITERATIONS = 400
_REFRESH = 4  # iterations between Gauss-Newton matrices, the first 40


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
  """r^2 / 2 within delta, delta (|r| - delta / 2) beyond; inf is least squares."""
  if np.isinf(delta):
    return 0.5 * residuals**2
  size = np.abs(residuals)
  return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def minimise(
  curve: Curve,
  x: np.ndarray,
  target: np.ndarray,
  starts: np.ndarray,
  *,
  weights: np.ndarray | None = None,
  free: np.ndarray | None = None,
  delta: float = np.inf,
  tolerance: float = 1e-11,
) -> tuple[np.ndarray, np.ndarray]:
  """Minimises sum_n weights huber(curve - target) from every start.

  Args:
    curve: values and derivatives.
    x: [d, n].
    target: [n] or [S, n].
    starts: [S, k].
    weights: [n] or [S, n]; ones by default.
    free: bool [k]; the others stay where the starts have them.
    delta: of huber; inf is least squares.
    tolerance: relative decrease of the objective in a step that ends a row.

  Returns:
    theta [S, k] and the objective [S] there (inf where a start led nowhere).
  """
  starts = np.array(starts, float)
  x = np.ascontiguousarray(x)  # its layout becomes that of all that follows
  rows, n = len(starts), x.shape[1]
  target = np.broadcast_to(target, (rows, n))
  weights = np.broadcast_to(1.0 if weights is None else weights, (rows, n))
  free = np.ones(starts.shape[1], bool) if free is None else np.asarray(free, bool)

  def part(begin: int):
    cut = slice(begin, begin + _CHUNK)
    with np.errstate(all="ignore"):
      return _Batch(curve, x, target[cut], weights[cut], free, delta).run(
        starts[cut], tolerance
      )

  begins = range(0, rows, _CHUNK)
  if len(begins) < 2:
    return part(0)
  with ThreadPoolExecutor(min(len(begins), os.cpu_count() or 1)) as pool:
    thetas, costs = zip(*pool.map(part, begins))
  return np.concatenate(thetas), np.concatenate(costs)


class _Batch:
  """BFGS on the rows of one chunk; rows that have converged leave it."""

  def __init__(self, curve, x, target, weights, free, delta):
    self.curve, self.x, self.free, self.delta = curve, x, free, delta
    self.target, self.weights = target, weights

  def evaluate(self, theta, rows):
    """-> objective [S], gradient [S, f], residuals [S, n], derivatives [S, f, n]."""
    value, slope = self.curve(theta, self.x)
    slope = slope if self.free.all() else slope[:, self.free]
    r = value - self.target[rows]
    w = self.weights[rows]
    cost = (w * huber(r, self.delta)).sum(1)
    pull = w * np.clip(r, -self.delta, self.delta)
    gradient = (slope @ pull[:, :, None])[:, :, 0]
    bad = ~(np.isfinite(cost) & np.isfinite(gradient).all(1))
    cost[bad] = np.inf
    return cost, gradient, r, slope

  def inverse(self, r, slope, rows, damping):
    """Inverse of the damped Gauss-Newton matrix, with Huber's weights [S, f, f]."""
    w = self.weights[rows]
    if np.isfinite(self.delta):
      w = w * np.minimum(1, self.delta / np.maximum(np.abs(r), 1e-12))
    matrix = (slope * w[:, None]) @ slope.transpose(0, 2, 1)
    size = np.einsum("skk->sk", matrix)
    size = np.maximum(size, 1e-12 * size.max(1, keepdims=True) + 1e-300)
    scale = 1 / np.sqrt(size)
    unit = matrix * scale[:, :, None] * scale[:, None]
    unit = np.where(np.isfinite(unit), unit, 0)
    unit += damping * np.eye(unit.shape[1])
    return np.linalg.inv(unit) * scale[:, :, None] * scale[:, None]

  def run(self, theta, tolerance):
    out, out_cost = theta.copy(), np.full(len(theta), np.inf)
    rows = np.arange(len(theta))
    now = self.evaluate(theta, rows)
    keep = np.isfinite(now[0])
    hessian, damping = None, 1e-3
    for i in range(_ITERATIONS):
      rows, theta, now = rows[keep], theta[keep], tuple(v[keep] for v in now)
      if not len(rows):
        break
      if hessian is None or (i % _REFRESH == 0 and i <= 40):
        hessian = self.inverse(*now[2:], rows, damping)
        damping = max(damping / 100, 1e-8)
      else:
        hessian = hessian[keep]
      step, expected = self.direction(hessian, *now[1:], rows)
      moved, new = self.search(theta, now, step, expected, rows)
      hessian = _update(hessian, (moved - theta)[:, self.free], new[1] - now[1])
      drop = now[0] - new[0]
      theta, now = moved, new
      out[rows], out_cost[rows] = theta, now[0]
      # Before it counts as converged, a row gets a few matrices that are made anew, or
      # is so flat that the best one promises nothing.
      keep = (drop > tolerance * now[0]) | (i < 3 * _REFRESH)
      if i >= _REFRESH:
        keep &= -expected > 1e-3 * tolerance * now[0]
      keep &= now[0] > 1e-28
    return out, out_cost

  def direction(self, hessian, gradient, r, slope, rows):
    """Downhill steps that move no prediction absurdly far, and what they promise."""
    step = -(hessian @ gradient[:, :, None])[:, :, 0]
    uphill = ~((step * gradient).sum(1) < 0)
    step[uphill] = -gradient[uphill]
    reach = np.abs((step[:, None] @ slope)[:, 0]).max(1)
    room = 2 * (np.ptp(self.target[rows], axis=1) + np.abs(r).max(1))
    step *= np.minimum(1, room / np.maximum(reach, 1e-300))[:, None]
    return step, (step * gradient).sum(1)

  def search(self, theta, now, step, expected, rows):
    """Shortens steps that do not go down enough; some rows stay where they are."""
    cost = now[0]
    length = np.ones(len(theta))
    moved = theta.copy()
    moved[:, self.free] += step
    new = self.evaluate(moved, rows)
    for _ in range(14):
      fail = np.flatnonzero(~(new[0] <= cost + 1e-4 * length * expected))
      if not len(fail):
        break
      length[fail] *= 0.35
      trial = theta[fail]
      trial[:, self.free] += length[fail, None] * step[fail]
      moved[fail] = trial
      for whole, piece in zip(new, self.evaluate(trial, rows[fail])):
        whole[fail] = piece
    stay = np.flatnonzero(~(new[0] <= cost))
    moved[stay] = theta[stay]
    for whole, old in zip(new, now):
      whole[stay] = old[stay]
    return moved, new


def _update(hessian, step, change):
  """BFGS update of inverse Hessians [S, f, f]; rows without curvature keep theirs."""
  curvature = (step * change).sum(1)
  sizes = np.linalg.norm(step, axis=1) * np.linalg.norm(change, axis=1)
  good = curvature > 1e-12 * sizes
  rho = np.where(good, 1 / np.where(good, curvature, 1), 0)
  turned = (hessian @ change[:, :, None])[:, :, 0]
  long = (curvature + (change * turned).sum(1)) * rho**2
  cross = turned[:, :, None] * step[:, None] + step[:, :, None] * turned[:, None]
  new = hessian + long[:, None, None] * step[:, :, None] * step[:, None]
  return np.where(good[:, None, None], new - rho[:, None, None] * cross, hessian)
