"""Pearson and Spearman correlation between two columns, with intervals."""

import dataclasses

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Correlation:
  """r (Pearson) and rho (Spearman) of n pairs; NaN intervals where n < 4."""

  n: int
  r: float
  r_interval: tuple[float, float]
  rho: float
  rho_interval: tuple[float, float]
  refused: str = ""

  @property
  def reading(self) -> str:
    if self.refused:
      return f"no correlation: {self.refused}"
    lo, hi = self.r_interval
    return f"Pearson r = {self.r:.2f} [{lo:.2f}, {hi:.2f}], n = {self.n}"


def correlate(
  table: pd.DataFrame, *, x: str, y: str, method: str = "fisher", seed: int = 0
) -> Correlation:
  """Correlates two columns; rows without both values are left out.

  Args:
    table: one row per run.
    x, y: columns; one that is absent counts as all missing.
    method: of the intervals: 'fisher' (z transform; Spearman's variance after Bonett
      and Wright 2000) or 'bootstrap' (percentiles of 2000 resamples of the rows).
    seed: of the bootstrap.
  """
  if x not in table or y not in table:
    missing = [c for c in (x, y) if c not in table]
    return _refused(0, f"no {', '.join(missing)} in the table")
  values = table[[x, y]].apply(pd.to_numeric, errors="coerce").dropna()
  return correlate_points(
    values[x].to_numpy(float), values[y].to_numpy(float), method=method, seed=seed
  )


def correlate_points(
  x: np.ndarray, y: np.ndarray, *, method: str = "fisher", seed: int = 0
) -> Correlation:
  """`correlate` on arrays x [n], y [n]."""
  if method not in ("fisher", "bootstrap"):
    raise ValueError(f"method is {method!r}; choose from fisher, bootstrap")
  n = len(x)
  if n < 3:
    return _refused(n, f"{n} runs; at least 3 are needed")
  if np.ptp(x) == 0 or np.ptp(y) == 0:
    return _refused(n, "one of the two does not vary")
  r = float(stats.pearsonr(x, y).statistic)
  rho = float(stats.spearmanr(x, y).statistic)
  if method == "bootstrap":
    intervals = _bootstrap(x, y, seed)
  else:
    intervals = _fisher(r, n, 1.0), _fisher(rho, n, 1 + rho**2 / 2)
  return Correlation(n, r, intervals[0], rho, intervals[1])


def _refused(n: int, reason: str) -> Correlation:
  nan = (np.nan, np.nan)
  return Correlation(n, np.nan, nan, np.nan, nan, reason)


def _fisher(r: float, n: int, variance: float) -> tuple[float, float]:
  if n < 4:
    return np.nan, np.nan
  z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
  half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance / (n - 3))
  return float(np.tanh(z - half)), float(np.tanh(z + half))


def _bootstrap(x, y, seed: int):
  draws = np.random.default_rng(seed).integers(len(x), size=(2000, len(x)))
  xs, ys = x[draws], y[draws]
  varied = (np.ptp(xs, 1) > 0) & (np.ptp(ys, 1) > 0)
  xs, ys = xs[varied], ys[varied]
  ranks = stats.rankdata(xs, axis=1), stats.rankdata(ys, axis=1)
  tail = (1 - LEVEL) / 2
  return tuple(
    tuple(map(float, np.quantile(_row_correlations(u, v), [tail, 1 - tail])))
    for u, v in ((xs, ys), ranks)
  )


def _row_correlations(x, y):
  """Pearson's r of each row of x, y [m, n]."""
  x, y = (v - v.mean(1, keepdims=True) for v in (x, y))
  return (x * y).sum(1) / np.sqrt((x**2).sum(1) * (y**2).sum(1))
