"""Where a budget is spent best: the points that approaches 1 and 2 fit N* = G C^a to.

  isoflop    runs at several sizes for each of several budgets: N* is the minimum of a
             cubic in log N (few sizes: a parabola) through those near it
  envelope   training curves of several sizes: where the curve of a size meets that of
             the next, the geometric mean of both sizes is N*

Both need sizes on either side of the optimum, and say where they were not there.

n points, m points of the frontier.
"""

import dataclasses

import numpy as np
import pandas as pd

_GAP = 0.25  # budgets nearer than this in log C are one
# Exponents published by Hoffmann et al. 2022, to judge grids by.
_ALPHA, _BETA = 0.34, 0.28
_BIAS = 0.02
# Sizes within this factor of a minimum tell where it is: farther out the loss of a
# budget is steeper on one side than on the other, and bends what is fitted to it all.
_NEAR = 4.0
_CUBIC = 6  # sizes that a cubic takes


class FrontierError(ValueError):
  """A table that has no frontier; the message says why."""


@dataclasses.dataclass(frozen=True)
class Points:
  """Points of the frontier.

  Attributes:
    compute, best: budgets [m] and compute-optimal sizes [m].
    noise: covariance of log best, up to a factor [m, m].
    table: what is known of each, with those that were left out.
    warnings: in words.
  """

  compute: np.ndarray
  best: np.ndarray
  noise: np.ndarray
  table: pd.DataFrame
  warnings: tuple[str, ...]


def isoflop(x: np.ndarray, loss: np.ndarray, runs: np.ndarray) -> Points:
  """Minima of the curves through log N [n] and loss [n], one per budget.

  Args:
    x: N and compute [2, n].
    loss: [n].
    runs: not used.
  """
  del runs
  size, compute = np.log(x)
  order = np.argsort(compute)
  groups = np.split(order, np.flatnonzero(np.diff(compute[order]) > _GAP) + 1)
  rows = []
  for group in groups:
    budget, u = float(np.exp(compute[group].mean())), size[group]
    row: dict = {"compute": budget, "sizes": len(np.unique(u)), "runs": len(u)}
    if np.ptp(compute[group]) > 2 * _GAP:
      spans = np.exp(np.ptp(compute[group]))
      row["note"] = f"compute spans x{spans:.1f}: not one budget"
    elif row["sizes"] < 3:
      row["note"] = f"{row['sizes']} sizes; a parabola needs 3"
    else:
      row |= _minimum(u, loss[group])
    rows.append(row)
  table = pd.DataFrame(rows)
  for column in ("N", "loss", "rss", "spare", "variance", "bias", "centring"):
    table[column] = table.get(column, np.nan)
  good = table[table["note"] == ""]
  names = [f"budget {c:.3g}" for c in table["compute"]]
  return _points(table, names, np.diag(_scatter(good)), _isoflop_warnings(good))


def _scatter(good: pd.DataFrame) -> np.ndarray:
  """Variances of log N* [m]: what the noise of losses makes of each, and one for all.

  The noise is a share of the loss, the same in all budgets; the larger ones are
  flatter, and their minima scatter more. What minima scatter besides around a line is
  by DerSimonian and Laird 1986.
  """
  spare = good["spare"].sum()
  share = max((good["rss"] / good["loss"] ** 2).sum() / max(spare, 1), 1e-20)
  own = (good["variance"] * good["loss"] ** 2).to_numpy(float) * share
  if not spare or len(own) < 3:
    return own
  root = 1 / np.sqrt(own)
  line = np.vander(np.log(good["compute"]), 2) * root[:, None]
  rest = np.eye(len(own)) - line @ np.linalg.pinv(line)
  off = rest @ (root * np.log(good["N"]))
  return own + max((off @ off - (len(own) - 2)) / (root**2 @ np.diag(rest)), 0)


def _minimum(u: np.ndarray, y: np.ndarray) -> dict:
  """The curve through the u, y [n] near its minimum; whether that can be used."""
  best, near = u[np.argmin(y)], np.zeros(len(u), bool)
  if best in (u.min(), u.max()):
    end = "smallest" if best == u.min() else "largest"
    return {"note": f"the {end} size has the lowest loss"}
  for _ in range(20):  # Until the sizes near the minimum are those that it came from.
    before, near = near, _near(u, best)
    if (near == before).all():
      break
    found = _fitted(u[near], y[near], best)
    if found["note"]:
      return found
    best = np.log(found["N"])
  out = found | {"centring": (best - (u.min() + u.max()) / 2) / (np.ptp(u) / 2)}
  out["bias"] = grid_bias(u[near] - best)
  inside = abs(out["centring"]) < 1
  return out | {"note": "" if inside else "the minimum is outside the sizes"}


def _near(u, middle):
  """Those of u [n] within _NEAR of the middle, of at least four sizes (or all)."""
  sizes = np.unique(u)
  wide = np.sort(np.abs(sizes - middle))[: min(4, len(sizes))][-1]
  return np.abs(u - middle) <= max(np.log(_NEAR), wide) + 1e-9


def _fitted(u, y, middle) -> dict:
  """Least squares of a cubic or parabola in u - middle: its minimum."""
  degree = 3 if len(np.unique(u)) >= _CUBIC else 2
  v = u - middle
  design = np.vander(v, degree + 1, increasing=True)  # 1, v, v^2, ...
  c = np.linalg.lstsq(design, y, rcond=None)[0]
  out = {"rss": np.sum((y - design @ c) ** 2), "spare": len(y) - degree - 1}
  a, b = (3 * c[3] if degree == 3 else 0.0), 2 * c[2]
  root = b * b - 4 * a * c[1]
  # The root with a positive second derivative, in a form that a = 0 does not trouble.
  if root < 0 or b + np.sqrt(root) <= 0:
    return out | {"note": "the curve has no minimum"}
  at = -2 * c[1] / (b + np.sqrt(root))
  second = b + 2 * a * at
  slope = np.arange(degree + 1) * at ** np.maximum(np.arange(degree + 1) - 1, 0)
  gradient = -slope / second
  out |= {"N": float(np.exp(middle + at)), "loss": float(np.polyval(c[::-1], at))}
  out |= {"curvature": second / 2, "note": ""}
  out["variance"] = gradient @ np.linalg.inv(design.T @ design) @ gradient
  return out


def _isoflop_warnings(good: pd.DataFrame) -> list[str]:
  warnings = []
  if len(aside := good[good["centring"].abs() > 0.5]):
    at = ", ".join(f"{c:.3g}" for c in aside["compute"])
    warnings.append(f"the sizes are not centred on the minimum at compute {at}")
  if len(coarse := good[good["bias"].abs() > _BIAS]):
    warnings.append(
      f"grid bias: on sizes so placed the curve misses the optimum by up to "
      f"{coarse['bias'].abs().max():.0%} (Chinchilla's exponents); place them closer"
    )
  return warnings


def grid_bias(offsets: np.ndarray, alpha=_ALPHA, beta=_BETA) -> float:
  """Relative error of the minimum for log(N / N*) = offsets [n], without noise.

  Along a budget D ~ 1 / N, so the loss is E + exp(-alpha u)/alpha + exp(beta u)/beta
  around its minimum at u = 0: not a parabola, and not symmetric.
  """
  loss = np.exp(-alpha * offsets) / alpha + np.exp(beta * offsets) / beta
  found = _fitted(offsets, loss, 0.0)
  return found["N"] - 1 if not found["note"] else np.inf


def envelope(x: np.ndarray, loss: np.ndarray, runs: np.ndarray) -> Points:
  """Where training curves of neighbouring sizes cross.

  Args:
    x: N and compute [2, n]: each run has several rows, along its training.
    loss: [n].
    runs: name of the run of each row [n].
  """
  size, compute = np.log(x)
  curves = []
  for run in dict.fromkeys(runs):
    mine = np.flatnonzero(runs == run)
    if len(mine) > 1:
      mine = mine[np.argsort(compute[mine])]
      curves.append((size[mine].mean(), compute[mine], np.log(loss[mine])))
  if len(curves) < 2:
    raise FrontierError(
      "an envelope needs training curves: several rows per run (analysis.load, "
      "rows='eval'), of at least two runs"
    )
  curves.sort(key=lambda c: c[0])
  rows, moves = [], []
  for i, j in _neighbours([c[0] for c in curves]):
    small, large = curves[i], curves[j]
    row = {"small": np.exp(small[0]), "large": np.exp(large[0])}
    low, high = max(small[1][0], large[1][0]), min(small[1][-1], large[1][-1])
    if low >= high:
      rows.append(row | {"note": "the curves share no compute"})
      continue
    grid = np.linspace(low, high, 400)
    a, b = (np.interp(grid, c[1], c[2]) for c in (small, large))
    crossings = np.flatnonzero((a[:-1] < b[:-1]) & (a[1:] >= b[1:]))
    if not len(crossings):
      ahead = "small" if a[-1] < b[-1] else "large"
      rows.append(row | {"note": f"the {ahead} one is ahead all along"})
      continue
    at = crossings[len(crossings) // 2]
    # A crossing moves by the noise of both runs over the angle between the curves. The
    # large sizes, near the floor of the loss, cross at the smallest angles; and what
    # lifts a run moves its crossings with both neighbours, in opposite directions.
    near = np.abs(grid - grid[at]) <= 0.1 * (high - low)
    angle = max(np.polyfit(grid[near], (a - b)[near], 1)[0], 1e-6)
    move = np.zeros(len(curves))
    move[[i, j]] = -1 / angle, 1 / angle
    moves.append(move)
    row |= {"compute": float(np.exp(grid[at])), "loss": float(np.exp(a[at]))}
    row["N"] = float(np.exp((small[0] + large[0]) / 2))
    rows.append(row | {"note": ""})
  table = pd.DataFrame(rows).reindex(
    columns=["small", "large", "compute", "N", "loss", "note"]
  )
  moved = np.array(moves).reshape(-1, len(curves))
  noise = moved @ moved.T
  noise += 1e-6 * np.diag(np.diag(noise))  # replicates close circles
  names = [f"{a:.3g}/{b:.3g}" for a, b in zip(table["small"], table["large"])]
  return _points(table, [f"sizes {name}" for name in names], noise, [])


def _neighbours(sizes):
  """Pairs (i, j) of runs of one size and of the next larger one, each with each."""
  levels = sorted(set(sizes))
  for small, large in zip(levels, levels[1:]):
    for i in np.flatnonzero(np.equal(sizes, small)):
      yield from ((i, j) for j in np.flatnonzero(np.equal(sizes, large)))


def _points(table: pd.DataFrame, names, noise, warnings: list[str]) -> Points:
  """The rows of the table without a note; `noise` is of these alone."""
  good = table["note"] == ""
  for name, note in zip(names, table["note"]):
    if note:
      warnings.append(f"{name} left out: {note}")
  if not good.any():
    raise FrontierError("; ".join(warnings))
  kept = table[good]
  compute, best = (kept[c].to_numpy(float) for c in ("compute", "N"))
  return Points(compute, best, noise, table, tuple(warnings))
