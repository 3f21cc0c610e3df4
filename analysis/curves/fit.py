"""Curves through tables of runs, with intervals, and with reasons to refuse.

The forms are in curves.forms. All but chinchilla are least squares (in logarithms,
where relative errors count); chinchilla is Huber's loss of log L with threshold 1e-3,
summed, as in its paper. Intervals are 95 %: profile likelihood for least squares,
bootstrap over runs and seeds for Huber, or as asked.

n runs, d inputs, k parameters, S starts.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analysis.curves import intervals
from analysis.curves.clean import clean, need
from analysis.curves.forms import FORMS, Form, Own
from analysis.curves.frontier import FrontierError
from analysis.curves.problem import Problem
from analysis.curves.result import ZERO, Fit, FitError, HeldOut, own, parameters

METHODS = ("auto", "profile", "bootstrap", "none")


def fit(
  table: pd.DataFrame,
  *,
  form: str = "power",
  x: str | Sequence[str] | None = None,
  y: str | None = None,
  **options,
) -> Fit:
  """Fits a form to columns of a table.

  Rows that cannot be used are left out and named in `warnings`. The result has no
  parameters, and a reason instead, when the rows mix cells, when a run has two results,
  when there are fewer runs than parameters + 2, or (forms with exponents) when an input
  spans less than a decade.

  Args:
    table: one row per run ('envelope': one per run and step, as load(rows='eval')).
    form: of curves.forms.FORMS.
    x: input column or columns; each form has its own default.
    y: column of the output; each form has its own default.
    **options: of `fit_points`: fixed, intervals, draws, starts, seed, hold_out, delta.

  Raises:
    FitError: unknown form, column or option.
  """
  if form not in FORMS:
    raise FitError(f"unknown form '{form}'; choose from {', '.join(FORMS)}")
  curve = FORMS[form]
  names = tuple([x] if isinstance(x, str) else x or curve.columns)
  if len(names) != len(curve.columns):
    raise FitError(f"{form} takes x = {', '.join(curve.columns)}; got {len(names)}")
  y = y or curve.y
  need(table, (*names, y))
  rows, warnings, refused = clean(table, (*names, y), rows=curve.rows)
  return fit_points(
    rows[list(names)].to_numpy(float).T,
    rows[y].to_numpy(float),
    form=form,
    x_name=names,
    y_name=y,
    runs=rows["run"].to_numpy() if "run" in rows else None,
    refuse=refused,
    warnings=tuple(warnings),
    **options,
  )


def fit_points(
  x: np.ndarray,
  y: np.ndarray,
  *,
  form: str = "power",
  x_name: str | Sequence[str] | None = None,
  y_name: str = "y",
  runs: np.ndarray | None = None,
  refuse: str = "",
  warnings: tuple[str, ...] = (),
  fixed: Mapping[str, float] | None = None,
  intervals: str = "auto",
  draws: int = 500,
  starts: int | None = None,
  seed: int = 0,
  hold_out: float | None = None,
  delta: float | None = None,
) -> Fit:
  """`fit` on arrays x [n] or [d, n], y [n].

  Args:
    x, y: the points.
    form: of FORMS.
    x_name, y_name: for messages.
    runs: name of the run of each point [n], for 'envelope'.
    refuse: a reason known already.
    warnings: known already.
    fixed: public parameters that are given, such as {'low': 0.04}.
    intervals: one of METHODS.
    draws: of the bootstrap.
    starts: of the search, or as many as the form is used to need.
    seed: of starts and bootstrap; the same seed gives the same result.
    hold_out: predict the points above this x (N D, of two inputs) from the others; by
      default the largest x, or the points above a third of the largest N D.
    delta: Huber's threshold instead of the form's.
  """
  if intervals not in METHODS:
    raise FitError(f"intervals is {intervals!r}; choose from {', '.join(METHODS)}")
  curve = FORMS[form]
  default = curve.columns if len(curve.columns) > 1 else ("x",)
  names = (x_name,) if isinstance(x_name, str) else tuple(x_name or default)
  x, y = np.atleast_2d(np.asarray(x, float)), np.asarray(y, float)
  order = np.lexsort(x[::-1])
  x, y = x[:, order], y[order]
  weights, noise, table = np.ones(len(y)), None, None
  if not refuse and curve.log and len(y):
    low = [n for n, v in zip((*names, y_name), (*x, y)) if v.min() <= 0]
    refuse = f"{' and '.join(low)} must be positive" if low else ""
  if curve.reduce and not refuse:
    try:
      runs = np.arange(len(y)) if runs is None else np.asarray(runs)[order]
      points = curve.reduce(x, y, runs)
      x, y, noise = points.compute[None], points.best, points.noise
      noise = noise / np.diag(noise).mean()
      weights = 1 / np.diag(noise)
      table, warnings = points.table, warnings + points.warnings
      names, y_name = names[1:], names[0]
    except FrontierError as error:
      refuse = str(error)
  result = Fit(form, names, y_name, x, y, weights, warnings=warnings, table=table)
  free, start = _fixed(curve, fixed or {})
  reason = refuse or _refuse(result, int(free.sum()))
  if reason:
    return dataclasses.replace(result, refused=reason)
  delta = curve.delta if delta is None else delta
  problem = Problem(curve, curve.inner(x), curve.inner(y), noise, free, start, delta)
  theta, reached = problem.best(starts or curve.count, seed)
  result = _with(result, problem, theta, reached)
  result = _with_intervals(result, problem, intervals, draws, seed)
  held = _hold_out(result, problem, hold_out)
  doubts = _doubts(result)
  if hold_out and not held:
    doubts += (_not_held_out(result, hold_out),)
  return dataclasses.replace(result, held_out=held, warnings=result.warnings + doubts)


def _fixed(curve: Form, fixed: Mapping[str, float]):
  free, start = np.ones(len(curve.names), bool), np.zeros(len(curve.names))
  known = {k: p for k, p in curve.report.items() if isinstance(p, Own)}
  for name, value in fixed.items():
    if name not in known:
      raise FitError(f"cannot fix '{name}'; choose from {', '.join(known)}")
    low = value > 0 or (name == "E" and value == 0) or not known[name].exp
    if not (low and np.isfinite(value)):
      asked = "positive" if known[name].exp else "finite"
      raise FitError(f"cannot fix {name} at {value:g}: it has to be {asked}")
    free[known[name].index] = False
    start[known[name].index] = known[name].inner(value)
  return free, start


def _refuse(result: Fit, k: int) -> str:
  what = {"isoflop": "budgets", "envelope": "crossings"}.get(result.form, "runs")
  n, log = len(result.y), result.curve.log
  names = result.x_names
  for name, x in zip(names, result.x):
    if n and len(np.unique(x)) < min(k, 2):
      return f"only 1 different value of {name}"
  if n < k + 2:
    return f"{n} {what}; {k} parameters need {k + 2}"
  for name, x in zip(names, result.x):
    if len(names) == 1 and len(np.unique(x)) < k:
      return f"only {len(np.unique(x))} different values of {name}; {k} are needed"
    if log and x.max() < 10 * x.min():
      return f"{name} spans x{x.max() / x.min():.1f}, less than a decade"
  return ""


def _with(result: Fit, problem: Problem, theta, reached: float) -> Fit:
  """The result with its solution and what follows from it directly."""
  result = dataclasses.replace(result, free=problem.free)
  floor = own(result, "E")
  if floor and floor(theta) < 1e-3 * result.y.min():
    theta = theta.copy()  # on its way to no floor at all
    theta[floor.index] = np.log(1e-2 * ZERO * result.y.min())
  rss = np.sum(problem.residuals(theta) ** 2)
  spread = float(np.sqrt(rss / problem.freedom))
  result = dataclasses.replace(result, theta=theta, reached=reached, spread=spread)
  _, slope = problem.curve(theta[None], problem.x)
  matrix = np.zeros((len(theta), len(theta)))
  inside = intervals.covariance(slope[0][problem.free])
  matrix[np.ix_(problem.free, problem.free)] = inside
  target = problem.target
  off = np.sum(result.weights * result.residuals**2)
  mean = np.average(target, weights=result.weights)
  total = np.sum(result.weights * (target - mean) ** 2)
  return dataclasses.replace(
    result,
    unit=matrix,
    params=parameters(result),
    r2=float(1 - off / total) if total else np.nan,
    aicc=_aicc(problem, rss, theta),
  )


def _with_intervals(result, problem, method, draws, seed) -> Fit:
  if method == "auto":
    method = "profile" if np.isinf(problem.delta) else "bootstrap"
  if method == "none":
    return result
  if method == "bootstrap":
    rng = np.random.default_rng(seed)
    k = int(problem.free.sum())
    weights = intervals.resample(problem.x, draws, k + 1, rng)
    thetas, costs = problem.solve(np.tile(result.theta, (draws, 1)), weights=weights)
    result = dataclasses.replace(result, draws=thetas[np.isfinite(costs)])
  ends = {}
  for name, function in result.curve.report.items():
    if method == "profile" and (inner := own(result, name)):
      i = inner.index
      spread = intervals.student(result.freedom) * np.sqrt(result.covariance[i, i])
      spread = min(spread, 3.0) if inner.exp else spread
      moved = np.tile(result.theta, (2, 1))
      moved[:, i] = intervals.profile(problem, result.theta, i, float(spread))
      ends[name] = tuple(map(float, function(moved)))
    else:
      ends[name] = result.derived(function)[1:]
  return dataclasses.replace(result, intervals=ends)


def _doubts(result: Fit) -> tuple[str, ...]:
  """Warnings that can be read off the result."""
  out, wide = [], []
  for name, (low, high) in result.intervals.items():
    inner = own(result, name)
    if not inner:
      continue
    if name == "E" and result.params["E"] == 0:
      out.append("the floor is not identified: the best one is 0")
    elif name == "E" and low < ZERO * result.y.min():
      out.append("the floor is not told apart from 0")
    elif not np.isfinite([low, high]).all() or (inner.exp and high > 10 * low):
      wide.append(f"{name} [{low:.3g}, {high:.3g}]")
  if wide:
    names = " and ".join(w.split(" [")[0] for w in wide)
    out.append(f"not identified by these points: {', '.join(wide)}; report no {names}")
  return tuple(out)


def _aicc(problem: Problem, rss: float, theta) -> float:
  """Akaike's criterion, small samples; Laplace's likelihood where Huber is fitted."""
  n, k = len(problem.target), int(problem.free.sum()) + 1
  if n <= k + 1 or rss <= 0:
    return np.nan
  if np.isinf(problem.delta):
    fitted = n * np.log(rss / n)
  else:
    fitted = 2 * n * np.log(2 * problem.cost(theta) / problem.delta / n)
  return float(fitted + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _not_held_out(result: Fit, above: float) -> str:
  over = int((np.prod(result.x, axis=0) > above).sum())
  if not over:
    return "nothing is held out: no point is above the limit asked for"
  few = len(result.y) - over
  return f"nothing is held out: {few} below the limit asked for are too few for a fit"


def _hold_out(result: Fit, problem: Problem, above: float | None) -> HeldOut | None:
  """Fits what is not above the limit and predicts what is."""
  key = np.prod(result.x, axis=0)
  if above is None:
    above = key.max() / 3 if len(result.x) > 1 else np.nextafter(key.max(), 0)
  rest = key <= above
  k = int(problem.free.sum())
  few = len(np.unique(result.x[:, rest], axis=1).T) < k
  if rest.all() or rest.sum() < k + 1 or few:
    return None
  part = dataclasses.replace(
    result, x=result.x[:, rest], y=result.y[rest], weights=result.weights[rest],
    draws=None,
  )  # fmt: skip
  smaller = problem.without(rest)
  count = 1 if problem.form.count == 1 else 30
  theta, _ = smaller.best(count, 0)
  warm, cost = smaller.solve(result.theta[None])
  theta = warm[0] if cost[0] < smaller.cost(theta) else theta
  part = _with(part, smaller, theta, np.nan)
  points, group = np.unique(result.x[:, ~rest], axis=1, return_inverse=True)
  weights = np.bincount(group.ravel(), result.weights[~rest])
  actual = np.bincount(group.ravel(), (result.weights * result.y)[~rest]) / weights
  predicted = part.predict(*points)
  noise = part.noise(points, weights)
  return HeldOut(
    float(above), points, actual, predicted, noise, part.spread, part.freedom,
    part.curve.log,
  )  # fmt: skip
