"""Curves through (size or compute, loss), with intervals and reasons to refuse.

  python -m analysis.fit --csv points.csv --form power --x N --y loss

Forms, in `FORMS`: power L = (N0/x)^a, power_floor L = E + (N0/x)^a, linear y = c + m x.
The first two are least squares in log L (relative errors count), where their R^2 and
AICc live too. Intervals are 95 % and take noise as equal and independent between runs:
Student t around the least-squares solution (exact for power and linear).

n runs, k parameters.
"""

import argparse
import dataclasses
import json
import sys

import numpy as np
import pandas as pd
from scipy import stats

from analysis.forms import FORMS, Form

LEVEL = 0.95


class FitError(ValueError):
  """A fit asked for in a way that cannot work; the message names the remedy."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """The largest size, predicted from the others; `lo`, `hi` its prediction interval."""

  x: float
  actual: float
  predicted: float
  lo: float
  hi: float

  @property
  def relative_error(self) -> float:
    return (self.predicted - self.actual) / self.actual

  @property
  def inside(self) -> bool:
    return bool(self.lo <= self.actual <= self.hi)


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted curve, or the reason why there is none.

  Attributes:
    params, intervals: by name; for the power forms y = E + (N0/x)^a, with log10_N0.
    r2: in the space of the residuals, which `space` names ('log' or 'linear').
    held_out: prediction of the largest x; None where the others do not suffice.
    refused: why there are no parameters ('' if there are).
    x, y: the points used.
  """

  form: str
  x_name: str
  y_name: str
  x: np.ndarray
  y: np.ndarray
  refused: str = ""
  warnings: tuple[str, ...] = ()
  theta: np.ndarray | None = None
  covariance: np.ndarray | None = None
  params: dict[str, float] = dataclasses.field(default_factory=dict)
  intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  r2: float = np.nan
  aicc: float = np.nan
  held_out: HeldOut | None = None

  @property
  def space(self) -> str:
    return "log" if FORMS[self.form].log else "linear"

  @property
  def residuals(self) -> np.ndarray:
    """log y (or y) minus the curve's [n]."""
    return _residuals(FORMS[self.form], self._theta(), self.x, self.y)

  def predict(self, x) -> np.ndarray:
    """The curve at x."""
    return FORMS[self.form].predict(self._theta(), np.asarray(x, float))

  def band(self, x, *, new_run: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the curve at x, or of a new run there."""
    form, theta, x = FORMS[self.form], self._theta(), np.atleast_1d(x).astype(float)
    jacobian = form.jacobian(theta, x)
    variance = np.einsum("nk,kl,nl->n", jacobian, self.covariance, jacobian)
    if new_run:
      variance = variance + np.sum(self.residuals**2) / self._freedom
    half = stats.t.ppf((1 + LEVEL) / 2, self._freedom) * np.sqrt(variance)
    y = form.predict(theta, x)
    return (y * np.exp(-half), y * np.exp(half)) if form.log else (y - half, y + half)

  @property
  def reading(self) -> str:
    """One line in words."""
    if self.refused:
      return f"no fit: {self.refused}"
    if self.form == "linear":
      lo, hi = self.intervals["m"]
      return f"{self.y_name} changes by {self.params['m']:.3g} [{lo:.3g}, {hi:.3g}] per unit of {self.x_name}"  # fmt: skip  # noqa: E501
    lo, hi = self.intervals["a"]
    times, best, worst = (10**-v for v in (self.params["a"], hi, lo))
    what = self.y_name if self.form == "power" else f"{self.y_name} above its floor"
    return f"10x {self.x_name} -> {what} x {times:.3f} [{best:.3f}, {worst:.3f}]"

  def to_dict(self) -> dict:
    """JSON-able summary."""
    held = self.held_out
    return {
      "form": self.form, "x": self.x_name, "y": self.y_name, "n": len(self.x),
      "refused": self.refused, "warnings": list(self.warnings), "params": self.params,
      "intervals": {k: list(v) for k, v in self.intervals.items()},
      "r2": None if self.refused else self.r2, "r2_space": self.space,
      "aicc": self.aicc if np.isfinite(self.aicc) else None,
      "held_out": held and dataclasses.asdict(held) | {
        "relative_error": held.relative_error, "inside": held.inside},
      "reading": self.reading,
    }  # fmt: skip

  @property
  def _freedom(self) -> int:
    return len(self.x) - len(FORMS[self.form].names)

  def _theta(self) -> np.ndarray:
    if self.theta is None:
      raise FitError(f"there is no curve to ask: {self.refused}")
    return self.theta


def fit(
  table: pd.DataFrame, *, form: str = "power", x: str = "N", y: str = "val/loss"
) -> Fit:
  """Fits a form to two columns of a table with one row per run.

  Rows without a finite value are left out and named in `warnings`. The result has no
  parameters, and a reason instead, when the rows mix cells, when there are fewer than
  parameters + 2, or (forms with an exponent) when x spans less than a decade.

  Raises:
    FitError: unknown form or column.
  """
  if form not in FORMS:
    raise FitError(f"unknown form '{form}'; choose from {', '.join(FORMS)}")
  for column in (x, y):
    if column not in table:
      raise FitError(f"the table has no column '{column}'")
  values = table[[x, y]].apply(pd.to_numeric, errors="coerce")
  good = np.isfinite(values.to_numpy(float)).all(1)
  warnings = []
  if not good.all():
    left_out = table.loc[~good, "run"] if "run" in table else table.index[~good]
    warnings.append(f"left out, no finite {y}: {', '.join(map(str, left_out))}")
  points = values[good].to_numpy(float)
  cells = sorted(set(table.loc[good, "cell"])) if "cell" in table else []
  mixed = f"the rows mix cells: {', '.join(cells)}" if len(cells) > 1 else ""
  return fit_points(
    points[:, 0], points[:, 1], form=form, x_name=x, y_name=y,
    refuse=mixed, warnings=tuple(warnings),
  )  # fmt: skip


def fit_points(
  x: np.ndarray,
  y: np.ndarray,
  *,
  form: str = "power",
  x_name: str = "x",
  y_name: str = "y",
  refuse: str = "",
  warnings: tuple[str, ...] = (),
) -> Fit:
  """`fit` on arrays x [n], y [n]."""
  x, y = np.asarray(x, float), np.asarray(y, float)
  order = np.argsort(x, kind="stable")
  x, y = x[order], y[order]
  empty = Fit(form, x_name, y_name, x, y, warnings=warnings)
  reason = refuse or _refuse(FORMS[form], x, y, x_name, y_name)
  if reason:
    return dataclasses.replace(empty, refused=reason)
  theta, covariance = _solve(FORMS[form], x, y)
  residuals = _residuals(FORMS[form], theta, x, y)
  target = np.log(y) if FORMS[form].log else y
  rss = np.sum(residuals**2)
  params, intervals = _report(form, theta, covariance, len(x))
  if form == "power_floor" and params["E"] <= 0:
    warnings += ("the floor is not identified: the best one is 0",)
  return dataclasses.replace(
    empty,
    warnings=warnings,
    theta=theta,
    covariance=covariance,
    params=params,
    intervals=intervals,
    r2=float(1 - rss / np.sum((target - target.mean()) ** 2)),
    aicc=_aicc(rss, len(x), len(theta)),
    held_out=_hold_out(form, x, y),
  )


def _refuse(form: Form, x, y, x_name, y_name) -> str:
  n, k = len(x), len(form.names)
  if n < k + 2:
    return f"{n} runs; {k} parameters need {k + 2}"
  if len(np.unique(x)) < k:
    return f"only {len(np.unique(x))} different values of {x_name}"
  if form.log and (x.min() <= 0 or y.min() <= 0):
    return f"{x_name} and {y_name} must be positive"
  if form.log and x.max() < 10 * x.min():
    return f"{x_name} spans x{x.max() / x.min():.1f}, less than a decade"
  return ""


def _residuals(form: Form, theta, x, y):
  predicted = form.predict(theta, x)
  return np.log(y) - np.log(predicted) if form.log else y - predicted


def _solve(form: Form, x, y) -> tuple[np.ndarray, np.ndarray]:
  """Parameters [k] and their covariance [k, k]."""
  theta = form.solve(x, y)
  jacobian = form.jacobian(theta, x)
  scale = np.sum(_residuals(form, theta, x, y) ** 2) / (len(x) - len(theta))
  return theta, scale * np.linalg.pinv(jacobian.T @ jacobian)


def _report(form: str, theta, covariance, n):
  """Parameters under their public names, with intervals."""
  t = stats.t.ppf((1 + LEVEL) / 2, n - len(theta))
  half = t * np.sqrt(np.diag(covariance))
  params = dict(zip(FORMS[form].names, map(float, theta)))
  intervals = {
    k: (float(v - h), float(v + h)) for (k, v), h in zip(params.items(), half)
  }
  if "b" in params:  # b = a log N0
    a, b = params["a"], params.pop("b")
    intervals.pop("b")
    if a:
      gradient = np.zeros(len(theta))
      gradient[:2] = -b / a**2, 1 / a
      spread = t * np.sqrt(gradient @ covariance @ gradient) / np.log(10)
      params["log10_N0"] = float(b / a / np.log(10))
      intervals["log10_N0"] = (
        float(params["log10_N0"] - spread),
        float(params["log10_N0"] + spread),
      )
  return params, intervals


def _aicc(rss: float, n: int, k: int) -> float:
  """Akaike's criterion with the small-sample correction; the noise counts as one."""
  k += 1
  if n <= k + 1 or rss <= 0:
    return np.nan
  return float(n * np.log(rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _hold_out(form: str, x, y) -> HeldOut | None:
  """Fits all but the largest x and predicts it (the mean of its runs)."""
  rest = x < x.max()
  k = len(FORMS[form].names)
  if rest.sum() < k + 1 or len(np.unique(x[rest])) < k:
    return None
  theta, covariance = _solve(FORMS[form], x[rest], y[rest])
  part = Fit(
    form, "", "", x[rest], y[rest], theta=theta, covariance=covariance
  )  # fmt: skip
  lo, hi = part.band(x.max(), new_run=True)
  actual = float(y[~rest].mean())
  predicted = float(part.predict(x.max()))
  return HeldOut(float(x.max()), actual, predicted, float(lo[0]), float(hi[0]))


def main() -> None:
  parser = argparse.ArgumentParser(prog="python -m analysis.fit")
  parser.add_argument("--csv", required=True, help="table, or a folder of runs")
  parser.add_argument("--form", default="power", choices=sorted(FORMS))
  parser.add_argument("--x", default="N")
  parser.add_argument("--y", default="val/loss")
  args = parser.parse_args()
  from analysis.load import load

  table = load(args.csv)
  groups = table.groupby("cell", sort=False) if "cell" in table else [("", table)]
  for cell, rows in groups:
    result = fit(rows, form=args.form, x=args.x, y=args.y)
    print(json.dumps({"cell": cell} | result.to_dict(), indent=1))


if __name__ == "__main__":
  try:
    main()
  except (ValueError, FileNotFoundError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
