"""Findings on size: laws of the loss, trends of the metrics, and what loss tells.

n sizes.
"""

import dataclasses

import numpy as np
import pandas as pd

from analysis.curves.correlate import correlate
from analysis.curves.intervals import alike, pooled, student
from analysis.curves.result import Fit
from analysis.report.findings import cost
from analysis.report.findings.judge import (
  NORMAL,
  OPEN,
  Estimate,
  Finding,
  combine,
  measured,
  verdict,
)
from analysis.report.study import Study, lower_metric
from analysis.runs.rows import CELLS, by_cell, having

GOOD_R2 = 0.97
CLOSE = 0.05  # relative error of a prediction, and half its interval
GOOD_R = 0.8
FLUID = "continuous-random"


def power_laws(s: Study) -> Finding:
  """Validation loss is a power law in model size, in every cell."""
  claim = "Validation loss is a power law in model size in all four cells"
  test = (
    "least squares in log loss and log N per cell: the interval of the exponent is "
    f"above zero, and R² is at least {GOOD_R2}"
  )
  signs, evidence = [], []
  needs: list[str] = []
  for cell, rows, f in _laws(s):
    text = f"{cell}: {f.reading}"
    if f.refused:
      signs.append(0)
      needs.append(cost.more_sizes(len(rows), 4, rows, cell))
    else:
      a = Estimate(f.params["a"], *f.intervals["a"])
      signs.append(a.sign if f.r2 >= GOOD_R2 or a.sign < 1 else -1)
      text += f", R² {f.r2:.3f}"
      needs += cost.seeds(a, len(f.y), rows, f"{cell}, exponent")
    evidence.append(text)
  if not evidence:
    why = "no finished run has a validation loss"
    return Finding(claim, test, OPEN, (why,), ("runs of all cells",))
  missing = [0] * (len(CELLS) - len(signs))  # a claim on four cells
  return Finding(
    claim, test, verdict([*signs, *missing]), tuple(evidence), tuple(needs)
  )


def predicted(s: Study) -> Finding:
  """The loss of the largest size follows from the smaller ones."""
  claim = "The validation loss of the largest size is predicted from the smaller ones"
  test = (
    f"the power law of the smaller sizes is off by at most {CLOSE:.0%}, with a 95 % "
    f"prediction interval that holds the loss and is no wider than {CLOSE:.0%} to "
    "either side (a wider one could hardly fail: open); the scatter of runs around the "
    "laws is taken to be one in all cells"
  )
  signs, evidence = [], []
  needs: list[str] = []
  laws = _laws(s)
  noises = [(h.spread, h.freedom) for _, _, f in laws if (h := f.held_out)]
  for cell, rows, f in laws:
    held = f.held_out
    if held is None:
      signs.append(0)
      evidence.append(f"{cell}: {f.refused or 'too few sizes to hold one out'}")
      needs.append(cost.more_sizes(len(rows), 4, rows, cell))
      continue
    spread, freedom = pooled(noises)
    held = dataclasses.replace(held, spread=spread, freedom=freedom)
    half = float(np.max((held.hi - held.lo) / 2 / held.predicted))
    evidence.append(f"{cell}: {held.reading}, half its interval {half:.1%}")
    failed = held.inside < 1 or held.error > max(half, CLOSE)
    signs.append(-1 if failed else int(half <= CLOSE))
    if not signs[-1]:
      needs.append(_narrower(half, len(f.y), freedom, rows, cell))
  if len(noises) > 1:
    evidence.append(_scatter(noises))
  if not evidence:
    evidence.append("no finished run has a validation loss")
  return Finding(claim, test, verdict(signs), tuple(evidence), tuple(needs))


def _scatter(noises: list[tuple[float, int]]) -> str:
  """What was pooled, and whether it looks like one noise."""
  spread, freedom = pooled(noises)
  each = ", ".join(f"{s:.2%}" for s, _ in noises)
  return (
    f"scatter around the laws of the smaller sizes: {spread:.2%} "
    f"({freedom} degrees of freedom), from {each} of the cells; that it is one in all "
    f"of them is assumed (Bartlett's test: p = {alike(noises):.2g})"
  )


def _narrower(half: float, n: int, freedom: int, rows: pd.DataFrame, cell: str) -> str:
  """More sizes than n until Student's t of so much more freedom is small enough."""
  for more in range(1, 20):
    if half * student(freedom + more) / student(freedom) <= CLOSE:
      return cost.more_sizes(n, n + more, rows, cell)
  limit = half * NORMAL / student(freedom)
  return f"{cell}: several seeds of every run: more sizes alone leave {limit:.1%}"


def geneval_rises(s: Study) -> Finding:
  """GenEval rises with size, in every cell."""
  metric = "geneval/overall"
  claim = "GenEval rises with model size in every cell"
  test = "the slope of GenEval over log N per cell: its interval is above zero"
  signs, evidence = [], []
  needs: list[str] = []
  for cell, rows in by_cell(having(s.ended, "N", metric)):
    if (slope := trend(rows, metric)) is None:
      continue
    signs.append(slope.sign)
    evidence.append(f"{cell}: {slope:+.3f} for 10 times N, {_values(rows, metric)}")
    needs += _decide(slope, rows, metric, f"{cell}, slope")
  if not signs:
    why = "fewer than two finished sizes with GenEval in every cell"
    return Finding(claim, test, OPEN, (why,), ("GenEval of two sizes, better four",))
  return Finding(claim, test, verdict(signs), tuple(evidence), tuple(needs))


def keeps_improving(s: Study) -> Finding:
  """Random order on continuous tokens improves with size in every metric."""
  lower, name = lower_metric(s.ended)
  claim = "Random order on continuous tokens (Fluid) keeps improving with size"
  test = (
    "in each metric the slope over log N has an interval on the better side of zero, "
    "and the step to the largest size is not worse by its interval"
  )
  signs, evidence = [], []
  needs: list[str] = []
  signed = (("val/loss", "validation loss", -1), ("geneval/overall", "GenEval", 1))
  for metric, title, sense in (*signed, (lower, name, -1)):
    rows = having(_cell(s.ended, FLUID), "N", metric)
    if (slope := trend(rows, metric)) is None:
      continue
    *_, before, last = (measured(g, metric) for _, g in rows.groupby("N"))
    step = combine((1, -1), [last, before])
    signs.append(-1 if sense * step.sign < 0 else sense * slope.sign)
    evidence.append(
      f"{title}: {slope:+.3g} for 10 times N, last step {step:+.3g}, "
      f"{_values(rows, metric)}"
    )
    needs += _decide(slope, rows, metric, f"{title}, slope")
  if not evidence:
    why = f"fewer than two finished sizes of {FLUID}"
    return Finding(claim, test, OPEN, (why,), ("two sizes, better four",))
  return Finding(claim, test, verdict(signs), tuple(evidence), tuple(needs))


def loss_tells(s: Study) -> Finding:
  """Validation loss predicts the metrics; the paper has r = 0.917 and -0.931."""
  lower, name = lower_metric(s.ended)
  claim = (
    "Validation loss predicts the metrics of Fluid "
    "(paper: r = 0.917 with FID, -0.931 with GenEval)"
  )
  test = (
    f"Pearson's r over the sizes is at least {GOOD_R} the paper's way and its interval "
    f"excludes zero; an interval below {GOOD_R} speaks against it"
  )
  rows = _cell(s.ended, FLUID)
  signs, evidence = [], []
  needs: list[str] = []
  for metric, (title, sense) in {lower: (name, 1), "geneval/overall": ("GenEval", -1)}.items():  # fmt: skip  # noqa: E501
    c = correlate(rows, x="val/loss", y=metric)
    evidence.append(f"{title}: {c.reading}")
    lo, hi = sorted(sense * end for end in c.r_interval)
    r = sense * c.r
    signs.append(1 if r >= GOOD_R and lo > 0 else -1 if hi < GOOD_R else 0)
    if not signs[-1]:
      needs.append(f"{title}: {_sizes_for(r, c.n, rows)}")
  return Finding(claim, test, verdict(signs), tuple(evidence), tuple(needs))


def _sizes_for(r: float, n: int, rows: pd.DataFrame) -> str:
  """Sizes until the interval of r (Fisher's) excludes 0, or GOOD_R from below."""
  if np.isnan(r):
    return cost.more_sizes(n, 4, rows, FLUID)
  target = 0.0 if r >= GOOD_R else GOOD_R
  far = np.arctanh(np.clip(r, -0.999, 0.999)) - np.arctanh(target)
  needed = (NORMAL / max(abs(far), 1e-3)) ** 2 + 3
  if needed > cost.MOST:
    return f"over {cost.MOST} sizes: r is too close to {target}"
  return cost.more_sizes(n, int(needed) + 1, rows, FLUID)


def trend(rows: pd.DataFrame, metric: str) -> Estimate | None:
  """Least-squares slope of a metric for 10 times N; None of fewer than two sizes.

  Its interval is that of the evaluations, or of the scatter around the line where that
  is wider: of the seeds of training only the scatter knows (from four sizes on).
  """
  if rows["N"].nunique() < 2:
    return None
  known, scatter = _slopes(rows, metric)
  lo, hi = np.fmin(known.lo, scatter.lo), np.fmax(known.hi, scatter.hi)
  return Estimate(known.value, float(lo), float(hi))


def _slopes(rows: pd.DataFrame, metric: str) -> tuple[Estimate, Estimate]:
  """The slope of `trend` with each of its intervals."""
  groups = [g for _, g in rows.groupby("N")]
  parts = [measured(g, metric) for g in groups]
  x = np.log10([float(g["N"].iloc[0]) for g in groups])
  x, y = x - x.mean(), np.array([p.value for p in parts])  # [n]
  known = combine(x / (x @ x), parts)
  half, n = np.nan, len(x)
  if n >= 4:
    rest = y - y.mean() - known.value * x
    half = float(student(n - 2) * np.sqrt(rest @ rest / (n - 2) / (x @ x)))
  return known, Estimate(known.value, known.value - half, known.value + half)


def _decide(slope: Estimate, rows: pd.DataFrame, metric: str, what: str):
  """More images, or more seeds where the scatter of runs is what is wide."""
  known, scatter = _slopes(rows, metric)
  if np.isfinite(scatter.half) and not known.half > scatter.half:
    return cost.seeds(slope, rows["N"].nunique(), rows, what)
  return cost.images(slope, rows, metric, what)


def _laws(s: Study) -> list[tuple[str, pd.DataFrame, Fit]]:
  table = having(s.ended, "N", "val/loss")
  return [(cell, rows, s.fit(cell)) for cell, rows in by_cell(table)]


def _cell(runs: pd.DataFrame, cell: str) -> pd.DataFrame:
  return runs[runs["cell"] == cell] if "cell" in runs else runs.iloc[:0]


def _values(rows: pd.DataFrame, metric: str) -> str:
  return " → ".join(f"{measured(g, metric)}" for _, g in rows.groupby("N"))
