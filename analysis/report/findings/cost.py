"""What it would take to decide what is open: images, runs and compute, and their hours.

Hours are those of the study's own machines: seconds per sampled image and seconds of
training that its runs recorded.
"""

import math

import numpy as np
import pandas as pd

from analysis.curves.intervals import student
from analysis.report.findings.judge import TITLES, Estimate
from analysis.report.study import ORDER_LOSS
from analysis.runs.rows import by_cell, having

MOST = 100  # times what was spent: what needs more is not asked for
# Columns: how many images an evaluation has, and what sampling one takes.
_EXAMPLES = {
  "kid": ("kid_images", "sample/seconds_per_image"),
  "geneval/overall": ("sample/images", "sample/seconds_per_image"),
  "val/loss": ("val/loss_count", ""),
  ORDER_LOSS: (f"{ORDER_LOSS}_count", ""),
}


def images(e: Estimate, runs: pd.DataFrame, metric: str, what: str) -> tuple[str, ...]:
  """Evaluating more until the interval of an estimate excludes zero.

  Its width falls as 1 / sqrt(images), its value is taken to stay.

  Args:
    e: what is open.
    runs: those that would be evaluated again.
    metric: column that it is of.
    what: what it is, in words.
  """
  if e.sign:
    return ()
  if not np.isfinite(e.half):
    name = TITLES.get(metric, metric)
    return (f"{what}: an evaluation of {name} that gives an interval",)
  times = (e.half / abs(e.value)) ** 2 if e.value else np.inf
  if times > MOST:
    limit = max(abs(e.lo), abs(e.hi))
    return (
      f"{what}: over {MOST} times the images; it is at most {limit:.2g} either way, "
      "too close to zero for evaluations of this kind",
    )
  text = f"{what}, if it stays at {e.value:+.3g}: {times:.1f} times the images"
  count, speed = _EXAMPLES.get(metric, ("", ""))
  if len(having(runs, count)):
    now = float(having(runs, count)[count].median())
    text += f" ({math.ceil(now * times):,} a run instead of {now:,.0f}"
    if len(timed := having(runs, speed)):
      text += f", {hours(now * times * timed[speed].mean() * len(runs))} of sampling"
    text += f" for {len(runs)} run{'s' * (len(runs) > 1)})"
  return (text,)


def seeds(e: Estimate, n: int, rows: pd.DataFrame, what: str) -> tuple[str, ...]:
  """Repeating the runs of a fit until the interval of a parameter excludes zero.

  Args:
    e: the parameter, with an interval of Student's t of n - 2 degrees of freedom.
    n: points of the fit.
    rows: runs to repeat.
    what: what it is, in words.
  """
  if e.sign or not np.isfinite(e.half):
    return ()
  for times in range(2, MOST):
    narrower = student(n * times - 2) / student(n - 2) / math.sqrt(times)
    if e.half * narrower < abs(e.value):
      more = hours((times - 1) * _seconds(rows).sum())
      return (f"{what}, if it stays at {e.value:+.3g}: {times} seeds of every run, {more} more",)  # fmt: skip  # noqa: E501
  return (f"{what}: over {MOST} seeds of every run",)


def more_sizes(have: int, needed: int, rows: pd.DataFrame, cell: str) -> str:
  """Runs at sizes that are not there yet, each as long as those that are."""
  missing = max(needed - have, 1)
  seconds = _seconds(rows)
  time = f" ({hours(missing * seconds.mean())} if as long as these)"
  spent = time if len(seconds) else ""
  return f"{cell}: {missing} more size{'s' * (missing > 1)}{spent}"


def larger(compute: float, rows: pd.DataFrame) -> str:
  """A run of each cell that spends so many FLOPs on as many rows as its largest one.

  At equal rows FLOPs and hours are taken to grow as N does.
  """
  parts = []
  for cell, runs in by_cell(having(rows, "N", "compute")):
    row = runs.loc[runs["N"].astype(float).idxmax()]
    times = compute / row["compute"]
    if times > 1:
      text = f"{cell} of {times * row['N']:.2g} parameters"
      if len(_seconds(runs.loc[[row.name]])):
        text += f" ({hours(times * row['wall_seconds'])})"
      parts.append(text)
  return f"{compute:.2g} FLOPs on as many rows: {' and '.join(parts)}"


def hours(seconds: float) -> str:
  if seconds < 3600:
    return f"{seconds / 60:.2g} minutes"
  return f"{seconds / 3600:{',.0f' if seconds >= 36000 else '.2g'}} hours"


def _seconds(rows: pd.DataFrame) -> pd.Series:
  return having(rows, "wall_seconds")["wall_seconds"].astype(float)
