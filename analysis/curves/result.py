"""What a fit comes to: `Fit`, and `HeldOut`, its prediction of what it did not see.

n runs, d inputs, k parameters, S bootstrap draws, m points.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis.curves import intervals
from analysis.curves.forms import FORMS, Form, Own

_nothing = functools.partial(np.empty, 0)
ZERO = 1e-6  # a floor below this share of the lowest loss is none


class FitError(ValueError):
  """A fit asked for in a way that cannot work; the message names the remedy."""


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """The largest runs, predicted from the others.

  Attributes:
    above: size (or compute, where there are two inputs) that the fit did not pass.
    x: [d, m], in ascending order; runs of equal x are one point, their mean.
    actual, predicted: [m].
    noise: standard errors of the predictions of the means, for runs that scatter by 1
      around the curve [m].
    spread, freedom: how much runs do, and the degrees of freedom that tell it: of the
      runs fitted, or of several fits (`intervals.pooled`), by `dataclasses.replace`.
    log: whether noise and spread are of log y.
  """

  above: float
  x: np.ndarray
  actual: np.ndarray
  predicted: np.ndarray
  noise: np.ndarray
  spread: float
  freedom: int
  log: bool

  @property
  def lo(self) -> np.ndarray:
    """Lower ends of the 95 % prediction intervals [m]."""
    return self._moved(-1)

  @property
  def hi(self) -> np.ndarray:
    """Upper ends [m]."""
    return self._moved(1)

  def _moved(self, sign: int) -> np.ndarray:
    half = sign * intervals.student(self.freedom) * self.spread * self.noise
    return self.predicted * np.exp(half) if self.log else self.predicted + half

  @property
  def errors(self) -> np.ndarray:
    """Relative errors, signed [m]: above zero where too much is predicted."""
    return (self.predicted - self.actual) / np.abs(self.actual)

  @property
  def error(self) -> float:
    """Mean absolute relative error: the headline number of a fit."""
    return float(np.abs(self.errors).mean())

  @property
  def inside(self) -> float:
    """Share of the points inside their prediction intervals."""
    return float(((self.lo <= self.actual) & (self.actual <= self.hi)).mean())

  @property
  def reading(self) -> str:
    """One line in words."""
    if len(self.actual) == 1:
      where = "inside" if self.inside else "OUTSIDE"
      return (
        f"largest held out: predicted {self.predicted[0]:.4g} "
        f"[{self.lo[0]:.4g}, {self.hi[0]:.4g}], was {self.actual[0]:.4g} "
        f"({self.errors[0]:+.1%}, {where} its interval)"
      )
    return (
      f"held out above {self.above:.3g}: {len(self.actual)} points, mean error "
      f"{self.error:.2%}, {self.inside:.0%} inside their intervals"
    )

  def to_dict(self) -> dict:
    """JSON-able."""
    names = ("lo", "hi", "error", "inside")
    return _plain(dataclasses.asdict(self) | {k: getattr(self, k) for k in names})


@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted curve, or the reason why there is none.

  Attributes:
    form, x_names, y_name: what was fitted.
    x, y, weights: the points [d, n], [n], [n]; of a frontier (isoflop, envelope) these
      are budgets and their best sizes, and `table` says how they came about.
    refused: why there are no parameters ('' if there are).
    warnings: what to know before believing it.
    theta, free: inner parameters [k] and which of them were fitted.
    unit: covariance of theta for a spread of 1, zero where not free [k, k].
    draws: bootstrapped theta [S, k], where that was asked for.
    params, intervals: by public name.
    r2: in the space of the residuals, which `space` names ('log' or 'linear').
    aicc: comparable between forms of one `delta` on the same points.
    spread: standard deviation of a run of weight 1 around the curve, in that space.
    reached: share of the starts that ended in this solution.
    held_out: None where the other points do not suffice.
  """

  form: str
  x_names: tuple[str, ...]
  y_name: str
  x: np.ndarray
  y: np.ndarray
  weights: np.ndarray
  refused: str = ""
  warnings: tuple[str, ...] = ()
  theta: np.ndarray = dataclasses.field(default_factory=_nothing)
  free: np.ndarray = dataclasses.field(default_factory=_nothing)
  unit: np.ndarray = dataclasses.field(default_factory=_nothing)
  draws: np.ndarray | None = None
  params: dict[str, float] = dataclasses.field(default_factory=dict)
  intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  r2: float = np.nan
  aicc: float = np.nan
  reached: float = np.nan
  spread: float = np.nan
  held_out: HeldOut | None = None
  table: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)

  @property
  def curve(self) -> Form:
    return FORMS[self.form]

  @property
  def space(self) -> str:
    return "log" if self.curve.log else "linear"

  @property
  def freedom(self) -> int:
    """Degrees of freedom, n - k."""
    return len(self.y) - int(self.free.sum())

  @property
  def covariance(self) -> np.ndarray:
    """Of theta [k, k]."""
    return self.spread**2 * self.unit

  @property
  def residuals(self) -> np.ndarray:
    """log y (or y) minus the curve's [n]."""
    return self.curve.inner(self.y) - self._evaluate(self.x)[0]

  def predict(self, *x) -> np.ndarray:
    """The curve at x (one argument per input) -> [m]."""
    return self.curve.outer(self._evaluate(self._stack(x))[0])

  def band(
    self, *x, new_run: bool = False, weights: np.ndarray | float = 1.0
  ) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the curve at x [m], or of a new run of some weight there."""
    at = self._stack(x)
    value = self._evaluate(at)[0]
    weights = weights if new_run else np.inf
    if self.draws is not None:
      curves = self.curve.curve(self.draws, self.curve.inner(at))[0]
      lo, hi = intervals.quantiles(curves)
      noise = intervals.student(self.freedom) * self.spread / np.sqrt(weights)
      lo = value - np.hypot(value - lo, noise)
      hi = value + np.hypot(hi - value, noise)
    else:
      half = intervals.student(self.freedom) * self.spread * self.noise(at, weights)
      lo, hi = value - half, value + half
    return self.curve.outer(lo), self.curve.outer(hi)

  def noise(self, x: np.ndarray, weights: np.ndarray | float = np.inf) -> np.ndarray:
    """Standard errors for a spread of 1 of runs of some weight at x [d, m] -> [m].

    With weights of infinity, those of the curve itself.
    """
    slope = self._evaluate(x)[1]
    variance = np.einsum("km,kl,lm->m", slope, self.unit, slope)
    return np.sqrt(variance + 1 / np.asarray(weights))

  def derived(
    self, function: Callable[[np.ndarray], np.ndarray]
  ) -> tuple[float, float, float]:
    """Value and interval of any function of theta [..., k] -> [...]."""
    value = float(function(self._theta()))
    if self.draws is not None:
      lo, hi = intervals.quantiles(function(self.draws))
      return value, float(np.minimum(lo, value)), float(np.maximum(hi, value))
    step = 1e-6 * (1 + np.abs(self.theta))
    with np.errstate(invalid="ignore"):
      moved = np.stack([function(self.theta + s) for s in np.diag(step)])
      gradient = (moved - value) / step
    gradient = np.where(np.isfinite(gradient), gradient, 0)
    variance = gradient @ self.covariance @ gradient
    half = intervals.student(self.freedom) * np.sqrt(max(variance, 0.0))
    return value, value - half, value + half

  @property
  def reading(self) -> str:
    """One line in words."""
    if self.refused:
      return f"no fit: {self.refused}"

    def show(name, transform, shape):
      transform = transform or (lambda v: v)
      with np.errstate(over="ignore"):
        ends = sorted(float(transform(np.float64(v))) for v in self._interval(name))
        value = float(transform(np.float64(self.params[name])))
      return f"{value:{shape}} [{ends[0]:{shape}}, {ends[1]:{shape}}]"

    return self.curve.reading(show, self.x_names, self.y_name)

  @property
  def summary(self) -> str:
    """Some lines of text."""
    lines = [self.reading]
    for name, value in self.params.items():
      low, high = self._interval(name)
      ends = "" if np.isnan([low, high]).any() else f"  [{low:.5g}, {high:.5g}]"
      lines.append(f"  {name:<9} {value:<11.5g}{ends}")
    if not self.refused:
      lines.append(
        f"  {len(self.y)} points, R2 ({self.space}) {self.r2:.4f}, AICc "
        f"{number(self.aicc) or '-'}, {self.reached:.0%} of the starts ended here"
      )
    if self.held_out:
      lines.append(f"  {self.held_out.reading}")
    return "\n".join(lines + [f"  warning: {w}" for w in self.warnings])

  def to_dict(self) -> dict:
    """JSON-able summary; what is not finite is None."""
    out = {"form": self.form, "x": self.x_names, "y": self.y_name, "n": len(self.y)}
    same = ("refused", "warnings", "params", "intervals", "r2")
    out |= {name: getattr(self, name) for name in same}
    out |= {"r2_space": self.space, "aicc": self.aicc, "starts_reached": self.reached}
    out["held_out"] = self.held_out and self.held_out.to_dict()
    return _plain(out | {"reading": self.reading})

  def _interval(self, name):
    return self.intervals.get(name, (np.nan, np.nan))

  def _stack(self, x) -> np.ndarray:
    if len(x) != len(self.x):
      raise FitError(f"{self.form} takes {len(self.x)} inputs, not {len(x)}")
    return np.stack(np.broadcast_arrays(*(np.atleast_1d(v).astype(float) for v in x)))

  def _evaluate(self, x):
    """-> value [m] and derivatives [k, m], in the space of the fit."""
    value, slope = self.curve.curve(self._theta()[None], self.curve.inner(x))
    return value[0], slope[0]

  def _theta(self) -> np.ndarray:
    if not self.theta.size:
      raise FitError(f"there is no curve to ask: {self.refused}")
    return self.theta


def parameters(fit: Fit) -> dict[str, float]:
  """Public name -> value."""
  values = {name: float(f(fit.theta)) for name, f in fit.curve.report.items()}
  if "E" in values and values["E"] < ZERO * fit.y.min():
    values["E"] = 0.0
  return values


def own(fit: Fit, name: str) -> Own | None:
  """The inner parameter that a public one is, if it was fitted."""
  parameter = fit.curve.report.get(name)
  return parameter if isinstance(parameter, Own) and fit.free[parameter.index] else None


def number(value) -> str:
  """Blank for missing; thousands set apart; four significant digits below them."""
  if value is None or pd.isna(value):
    return ""
  if float(value).is_integer() and abs(value) < 1e15:
    return f"{int(value):,}"
  return f"{value:.3g}" if abs(value) >= 1e4 else f"{value:.4g}"


def _plain(value):
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple | np.ndarray):
    return [_plain(v) for v in value]
  if isinstance(value, float):
    return value if np.isfinite(value) else None
  return value
