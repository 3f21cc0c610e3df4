"""What to train with a budget: from a fit to sizes, tokens, and a sweep to launch.

  python -m analysis.plan --csv points.csv --n COLUMN --compute COLUMN --loss COLUMN \\
    --budget 1e21
  python -m analysis.plan --workdir runs/study --cell discrete-raster --budget 1e14 \\
    --config configs/toy.py --sweep configs/sweeps/next.py --predict next.json
  python -m launch.sweep --config configs/sweeps/next.py --workdir runs/next
  python -m analysis.plan --workdir runs/next --score next.json

The sweep is sizes x budgets, centred on the optimum of each, so that the next parabolas
hold their minima. The prediction is written before it is run and scored after. Without
a study to fit, `--around N` centres the smallest budget on N and lets N grow as C^0.5.
"""

import dataclasses
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.curves.fit import fit_points
from analysis.curves.result import Fit, FitError
from analysis.runs.rows import finished, having

PLANNED = ("chinchilla", "isoflop", "envelope")  # forms with an optimum
Estimate = tuple[float, float, float]  # value, and the ends of its 95 % interval
UNKNOWN: Estimate = (np.nan, np.nan, np.nan)


@dataclasses.dataclass(frozen=True)
class Optimum:
  """The best that a budget can buy, by a fit."""

  compute: float
  N: Estimate
  D: Estimate
  loss: Estimate

  @property
  def reading(self) -> str:
    told = []
    for name, (v, lo, hi) in (("N* =", self.N), ("D* =", self.D), ("loss", self.loss)):
      ends = "" if np.isnan([lo, hi]).all() else f" [{lo:.4g}, {hi:.4g}]"
      told += [] if np.isnan(v) else [f"{name} {v:.4g}{ends}"]
    return f"C = {self.compute:.3g}: {', '.join(told)}"


class Planner:
  """Compute-optimal allocation by one fit.

  Args:
    result: of form chinchilla, isoflop or envelope.
    per_token: FLOPs per parameter and token (6 by the usual count).
  """

  def __init__(self, result: Fit, per_token: float = 6.0):
    if result.refused:
      raise FitError(f"nothing to plan from: {result.refused}")
    self.result, self.per_token = result, per_token
    if result.form != "chinchilla":
      points = result.table[result.table["note"] == ""]
      x, y = points["compute"].to_numpy(float), points["loss"].to_numpy(float)
      fits = [fit_points(x, y, form=form) for form in ("power_floor", "power")]
      self.floor = next((f for f in fits if not f.refused), fits[-1])

  def optimum(self, compute: float) -> Optimum:
    """N, D and loss of a budget, with intervals."""
    log_nd = np.log(compute / self.per_token)

    def best(theta):
      if self.result.form != "chinchilla":
        return theta[..., 0] * np.log(compute) + theta[..., 1]
      alpha, beta, log_a, log_b = (theta[..., i] for i in range(4))
      with np.errstate(all="ignore"):
        shift = np.log(alpha) + log_a - np.log(beta) - log_b
        return (shift + beta * log_nd) / (alpha + beta)

    n = self._exp(best)
    d = self._exp(lambda theta: log_nd - best(theta))
    return Optimum(compute, n, d, self._best_loss(best, log_nd, compute))

  def loss(self, n: float, d: float) -> Estimate:
    """Loss of a run of n parameters and d tokens (interval: of a new run)."""
    if self.result.form != "chinchilla":
      return UNKNOWN
    lo, hi = self.result.band(n, d, new_run=True)
    return float(self.result.predict(n, d)[0]), float(lo[0]), float(hi[0])

  def _best_loss(self, best, log_nd, compute) -> Estimate:
    if self.result.form != "chinchilla":
      if self.floor.refused:
        return UNKNOWN
      lo, hi = self.floor.band(compute)
      return float(self.floor.predict(compute)[0]), float(lo[0]), float(hi[0])

    def at_best(theta):
      alpha, beta, log_a, log_b, log_e = (theta[..., i] for i in range(5))
      u = best(theta)
      terms = [log_e, log_a - alpha * u, log_b - beta * (log_nd - u)]
      with np.errstate(invalid="ignore"):
        return np.logaddexp.reduce(np.stack(terms))

    return self._exp(at_best)

  def _exp(self, function) -> Estimate:
    value, low, high = np.exp(self.result.derived(function))
    return float(value), float(low), float(high)


class Guess:
  """In place of a Planner where there is no study yet: N grows as C^0.5."""

  def __init__(self, n: float, compute: float, per_token: float = 6.0):
    self.n, self.compute, self.per_token = n, compute, per_token

  def optimum(self, compute: float) -> Optimum:
    n = self.n * (compute / self.compute) ** 0.5
    none = (np.nan, np.nan)
    d = compute / self.per_token / n
    return Optimum(compute, (n, *none), (d, *none), (np.nan, *none))

  def loss(self, n: float, d: float) -> Estimate:
    del n, d
    return UNKNOWN


def grid(
  planner, ladder, budgets, *, sizes: int, spacing: float, batch: int | None = None
) -> pd.DataFrame:
  """The runs of the next sweep: sizes N* x spacing^(-m..m) of every budget.

  Args:
    batch: images a step (None: as the run of the nearest size has).
  """
  rows = []
  for budget in budgets:
    best = planner.optimum(budget)
    for k in range(sizes):
      shape = ladder.shape(best.N[0] * spacing ** (k - (sizes - 1) / 2))
      near = ladder.nearest(shape.N)
      images = batch or near["batch"]
      steps = max(1, round(budget / shape.compute(images)))
      d = float(steps * images * near["tokens_per_image"])
      name = f"{near['cell']}-{shape.N:.3g}-{budget:.3g}".replace("+", "")
      row = {"run": name, "cell": near["cell"], "budget": budget, "N": shape.N, "D": d}
      row |= {"compute": shape.compute(steps * images), "steps": steps}
      row["warmup"] = _warmup(near, steps)
      row |= {k: getattr(shape, k) for k in ("layers", "width", "heads")}
      rows.append(row | dict(zip(("loss", "lo", "hi"), planner.loss(shape.N, d))))
  return pd.DataFrame(rows).drop_duplicates("run")


def _warmup(near: pd.Series, steps: int) -> int | None:
  """The share of the steps that the nearest run warms up for."""
  share = near.get("warmup", np.nan) / (near.get("steps") or np.nan)
  return max(1, round(share * steps)) if np.isfinite(share) else None


def write_sweep(
  plan: pd.DataFrame,
  config: str,
  path: Path,
  command: str,
  overrides: Mapping[str, Any] | None = None,
) -> None:
  """Writes a module for launch.sweep.

  Args:
    plan: of `grid`.
    config: the module that get_config is of, such as configs/toy.py.
    path: to write.
    command: that made it, for the docstring.
    overrides: config keys of all runs.
  """
  lines = []
  for row in plan.to_dict("records"):
    names = (row["run"], row["cell"], f"{row['N']:.3g}")
    numbers = [row[k] for k in ("layers", "width", "heads", "steps")]
    warmup = int(row["warmup"]) if pd.notna(row["warmup"]) else None
    items = [*map(json.dumps, names), *map(repr, (*numbers, warmup))]
    lines.append(f"  ({', '.join(items)}),\n")
  words = textwrap.wrap(command, 80, break_on_hyphens=False, break_long_words=False)
  told = " \\\\\n    ".join(words)
  common = f", {dict(overrides)!r}" if overrides else ""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(
    f'"""Sizes around the compute-optimal one of every budget.\n\n  {told}\n"""\n\n'
    "from configs import grids\n\n"
    "# name, cell, size, layers, width, heads, steps, warmup\n"
    f"POINTS = [\n{''.join(lines)}]\n\n\n"
    f'def sweep():\n  yield from grids.runs("{config}", POINTS{common})\n'
  )


def score(predictions: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
  """Predictions beside what came of them, for the runs that have finished."""
  done = having(finished(runs), "N", "D", "val/loss")
  done = done[["run", "N", "D", "compute", "val/loss"]]
  table = predictions.merge(done, on="run", suffixes=("_planned", ""))
  error = table["loss"] / table["val/loss"] - 1
  inside = (table["lo"] <= table["val/loss"]) & (table["val/loss"] <= table["hi"])
  table = table.rename(columns={"loss": "predicted", "val/loss": "actual"})
  columns = ["run", "N_planned", "N", "D", "predicted", "lo", "hi", "actual"]
  return table[columns].assign(error=error, inside=inside)
