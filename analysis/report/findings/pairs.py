"""Findings on a choice of the grid: pairs of runs that differ in nothing else.

Same size and same order, or same size and same token type.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.report.findings import cost
from analysis.report.findings.judge import (
  NORMAL,
  OPEN,
  TITLES,
  Estimate,
  Finding,
  combine,
  mean,
  measured,
  verdict,
)
from analysis.report.study import DENSITY, KNOWN, ORDER_LOSS, TAGS, Study, lower_metric
from analysis.runs.rows import having

# Column, the level that the paper found better, the other; the column held equal.
Factor = tuple[str, str, str, str]
TOKENS: Factor = ("tokens", "continuous", "discrete", "order")
ORDER: Factor = ("order", "random", "raster", "tokens")
WITHOUT = "val/loss of random order weighs masks by how often training draws them"
NO_ERROR = f"nothing tells the standard error of the mean of {KNOWN}*"
SEVERAL, SINGLE = ("two_object", "position", "color_attr"), ("single_object", "colors")


def kid_of_tokens(s: Study) -> Finding:
  metric, name = lower_metric(s.ended)
  claim = f"Image quality ({name}) is better with continuous than with discrete tokens"
  return better(s.ended, claim, metric, TOKENS, low=True)


def geneval_of_tokens(s: Study) -> Finding:
  claim = "GenEval is better with continuous than with discrete tokens"
  return better(s.ended, claim, "geneval/overall", TOKENS)


def geneval_of_orders(s: Study) -> Finding:
  claim = "GenEval is better with random than with raster order"
  return better(s.ended, claim, "geneval/overall", ORDER)


def loss_of_orders(s: Study) -> Finding:
  continuous = "nats of a bound on the density" if s.by_density else "diffusion loss"
  claim = (
    "Random order has the lower loss "
    f"(discrete: nats per image, a bound against exact; continuous: {continuous})"
  )
  # A density may be above one, and its nats negative: they differ, and have no ratio.
  relative = not s.by_density
  f = better(s.compared, claim, ORDER_LOSS, ORDER, low=True, relative=relative)
  needs = f.needs
  for tokens, column in (("discrete", "val/nats"), ("continuous", DENSITY)):
    rows = s.compared[s.compared["tokens"] == tokens]
    if len(rows) and having(rows, column).empty:
      without = NO_ERROR if len(having(rows, KNOWN)) else WITHOUT
      needs += (f"{tokens}: an evaluation of likelihood (evals.likelihood): {without}",)
  return dataclasses.replace(f, needs=needs)


def better(
  runs: pd.DataFrame,
  claim: str,
  metric: str,
  factor: Factor,
  *,
  low: bool = False,
  relative: bool = False,
) -> Finding:
  """Whether level `a` of a factor beats level `b` in every matched pair.

  Args:
    runs: one row per run.
    claim: the sentence to judge.
    metric: column compared.
    factor: TOKENS or ORDER; the size is held equal as well.
    low: lower is better.
    relative: differences are shares, for pairs in different units.
  """
  column, a, b, other = factor
  title = TITLES[metric]
  test = (
    f"{title} of {a} minus that of {b} at equal size and {other}: a pair counts where "
    "the interval of its difference excludes zero; where most do not, their mean does"
  )
  table = having(runs, metric)
  found = list(matched(table, metric, factor))
  if not found:
    why = f"no pair of finished runs differs in {column} alone and has {title}"
    return Finding(claim, test, OPEN, (why,), (f"{title} of such a pair",))
  unit = np.log if relative else lambda v: v
  shares = np.expm1 if relative else lambda v: v
  form = "+.1%" if relative else "+.3g"
  lines, parts = [], []
  for where, x, y, note in found:
    parts.append(combine((1, -1), [x.map(unit), y.map(unit)]))
    lines.append(f"{where}: {x} against {y}, {parts[-1].map(shares):{form}}{note}")
  overall, sense = mean(parts), -1 if low else 1
  signs = [sense * p.sign for p in parts]
  wins, losses, even = (signs.count(which) for which in (1, -1, 0))
  head = (
    f"mean difference {overall.map(shares):{form}}; {a} is better in {wins}, worse in "
    f"{losses}, open in {even} of {len(signs)} pairs"
  )
  needs = cost.images(overall, _of(table, column, a, b), metric, "the mean difference")
  return Finding(
    claim, test, verdict(signs, sense * overall.sign), (head, *lines), needs
  )


def matched(
  table: pd.DataFrame, metric: str, factor: Factor
) -> Iterator[tuple[str, Estimate, Estimate, str]]:
  """What is equal, the metric at levels a and b, and a note where rows are unequal."""
  column, a, b, other = factor
  if table.empty:
    return
  for (size, level), rows in table.groupby(["size", other], sort=False):
    one, two = rows[rows[column] == a], rows[rows[column] == b]
    if len(one) and len(two):
      where = f"{level} {size}"
      yield where, measured(one, metric), measured(two, metric), _unequal(one, two)


def several_objects(s: Study) -> Finding:
  """Random order helps prompts with several objects more than single objects."""
  claim = "Random order helps most where a prompt names several objects"
  test = (
    "the gain of random over raster, a mean over pairs of equal size and tokens, is "
    f"above zero for {', '.join(SEVERAL)}, and above that for {', '.join(SINGLE)}"
  ).replace("_", " ")
  runs = tag_intervals(s.ended)
  gains = {}
  for tag in TAGS:
    table = having(runs, f"geneval/{tag}")
    if pairs := list(matched(table, f"geneval/{tag}", ORDER)):
      gains[tag] = mean([combine((1, -1), [x, y]) for _, x, y, _ in pairs])
  several, single = ([gains[t] for t in ts if t in gains] for ts in (SEVERAL, SINGLE))
  if not several or not single:
    why = "no pairs of runs with GenEval per tag"
    return Finding(claim, test, OPEN, (why,), ("GenEval of such a pair",))
  gain, alone = (combine(np.full(len(g), 1 / len(g)), g) for g in (several, single))
  more = combine((1, -1), [gain, alone])  # the tags have prompts of their own
  tags = ", ".join(f"{t.replace('_', ' ')} {g:+.3f}" for t, g in gains.items())
  evidence = (
    f"gain for several objects {gain:+.3f}; more than for single ones {more:+.3f}",
    f"by tag: {tags}",
  )
  runs = having(s.ended, "geneval/overall")
  needs = (
    *cost.images(gain, runs, "geneval/overall", "the gain for several objects"),
    *cost.images(more, runs, "geneval/overall", "what it is more than for single ones"),
  )
  return Finding(claim, test, verdict([gain.sign, more.sign]), evidence, needs)


def tag_intervals(table: pd.DataFrame) -> pd.DataFrame:
  """Adds 95 % intervals of GenEval's tags, which follow from the one of their mean.

  The variance of a tag's share p is p (1 - p) / n, that of the mean of T tags the sum
  over T^2: the interval of the mean gives n, the number of independent images a tag
  (images of one prompt are not). Shares are moved to the middle by one image either
  way, as in Agresti and Coull: none of 64 is no certainty.
  """
  columns = [f"geneval/{t}" for t in TAGS if f"geneval/{t}" in table]
  ends = ("geneval/overall_lo", "geneval/overall_hi")
  if not columns or not set(ends) <= set(table):
    return table
  p = table[columns].to_numpy(float)  # [runs, T]
  low, high = (table[c].to_numpy(float)[:, None] for c in ends)
  with np.errstate(all="ignore"):
    error = len(columns) * (high - low) / (2 * NORMAL)
    n = (p * (1 - p)).sum(1, keepdims=True) / error**2
    q = (p * n + 1) / (n + 2)
    half = NORMAL * np.sqrt(q * (1 - q) / n)
  names = [f"{c}{end}" for end in ("_lo", "_hi") for c in columns]
  both = np.concatenate([p - half, p + half], 1)
  return table.assign(**dict(zip(names, both.T)))


def _of(table: pd.DataFrame, column: str, *levels: str) -> pd.DataFrame:
  return table[table[column].isin(levels)]


def _unequal(one: pd.DataFrame, two: pd.DataFrame) -> str:
  """A note where the runs of a pair were not trained on as many rows."""
  if not {"step", "batch"} <= set(one):
    return ""
  a, b = (rows_of(t).mean() for t in (one, two))
  return f" (trained on {a / b:.2g} times the rows)" if abs(a / b - 1) > 0.05 else ""


def rows_of(runs: pd.DataFrame) -> pd.Series:
  """Rows that runs were trained on.

  A row is an image under one mask: random order may show an image under several.
  """
  masks = runs["masks"].fillna(1) if "masks" in runs else 1
  return (runs["step"] * runs["batch"] * masks).astype(float)
