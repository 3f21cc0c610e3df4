"""Which of the paper's findings (arXiv 2410.13863) appear in a study: all computed.

Two variants are compared over pairs of finished runs that differ in nothing else of the
grid: same size and same order, or same size and same token type.
"""

import dataclasses

import numpy as np
import pandas as pd

from analysis.curves.correlate import correlate
from analysis.report.study import TAGS, Study
from analysis.runs.rows import cells_of, having

GOOD_R2 = 0.97
# Column, the level that the paper found better, the other; the column held equal.
Factor = tuple[str, str, str, str]
TOKENS: Factor = ("tokens", "continuous", "discrete", "order")
ORDER: Factor = ("order", "random", "raster", "tokens")
APPEARS, PARTLY = "appears", "appears in part"
ABSENT, OPEN = "does not appear", "cannot be said"


@dataclasses.dataclass(frozen=True)
class Finding:
  """A claim of the paper, a verdict on this study, and the numbers for it."""

  claim: str
  verdict: str
  evidence: str


def findings(study: Study) -> list[Finding]:
  """All findings, from the finished runs of a study."""
  runs = study.ended
  luck = at_chance(runs)
  # What GenEval says by luck is no evidence: not of order, nor beside other metrics.
  tested = runs.drop(columns=[c for c in runs if luck and c.startswith("geneval/")])
  lower, name = ("kid", "KID") if len(having(runs, "kid")) else ("fd", "FD")
  image = f"Image quality ({name}) is better with continuous than with discrete tokens"
  text = "GenEval is better with random than with raster order"
  by_geneval = [better(runs, text, "geneval/overall", ORDER), several_objects(runs)]
  if luck:
    by_geneval = [Finding(f.claim, OPEN, luck) for f in by_geneval]
  return [
    power_laws(study),
    better(runs, image, lower, TOKENS, low=True),
    *by_geneval,
    keeps_improving(tested, lower, name),
    loss_tells(tested, lower, name),
  ]


def at_chance(runs: pd.DataFrame) -> str:
  """'' where the GenEval of some run is above chance by its interval, else a sentence.

  Chance (geneval/chance) is the score of the same images under each other's prompts.
  Tables without it are taken at their word.
  """
  table = having(runs, "geneval/overall_lo", "geneval/chance")
  if table.empty or (table["geneval/overall_lo"] > table["geneval/chance"]).any():
    return ""
  best = table.loc[table["geneval/overall"].idxmax()]
  return (
    f"GenEval is at chance in every run: at best {best['geneval/overall']:.3f} "
    f"(interval from {best['geneval/overall_lo']:.3f}), "
    f"where chance scores {best['geneval/chance']:.3f}"
  )


def power_laws(study: Study) -> Finding:
  """Validation loss is a power law in model size, in every cell."""
  claim = "Validation loss is a power law in model size in all four cells"
  cells = cells_of(having(study.ended, "N", "val/loss"))
  results = {cell: study.fit(cell) for cell in cells}
  evidence = []
  for cell, f in results.items():
    text = f"{cell}: {f.reading}"
    if not f.refused:
      text += f", R² {f.r2:.3f} in log space"
      if f.held_out:
        text += f", {f.held_out.reading}"
    evidence.append(text)
  fitted = [f for f in results.values() if not f.refused]
  good = [f for f in fitted if f.r2 >= GOOD_R2 and f.params["a"] > 0]
  return Finding(
    claim,
    _verdict(len(good), len(fitted), enough=len(fitted) == 4),
    "; ".join(evidence) or "no finished run has a validation loss",
  )


def better(
  runs: pd.DataFrame, claim: str, metric: str, factor: Factor, *, low: bool = False
) -> Finding:
  """Whether level `a` of a factor beats level `b` in every matched pair.

  Args:
    runs: one row per run.
    claim: the sentence to judge.
    metric: column compared.
    factor: TOKENS or ORDER; the size is held equal as well.
    low: lower is better.
  """
  column, a, b, _ = factor
  table = having(runs, metric)
  if table.empty:
    return Finding(claim, OPEN, f"no finished run has {metric}")
  pairs = _pairs(table, metric, factor)
  if not pairs:
    return Finding(claim, OPEN, f"no pair of runs differs in {column} alone")
  wins = sum((x < y) if low else (x > y) for _, x, y in pairs)
  details = ", ".join(f"{where} {x:.3g} vs {y:.3g}" for where, x, y in pairs)
  return Finding(
    claim,
    _verdict(wins, len(pairs)),
    f"{metric}: {a} beats {b} in {wins} of {len(pairs)} pairs ({details})",
  )


def several_objects(runs: pd.DataFrame) -> Finding:
  """Random order helps prompts with several objects more than single objects."""
  claim = "Random order helps most where a prompt names several objects"
  gains = {}
  for tag in TAGS:
    pairs = _pairs(having(runs, f"geneval/{tag}"), f"geneval/{tag}", ORDER)
    if pairs:
      gains[tag] = float(np.mean([x - y for _, x, y in pairs]))
  several = [gains[t] for t in ("two_object", "position", "color_attr") if t in gains]
  single = [gains[t] for t in ("single_object", "colors") if t in gains]
  if not several or not single:
    return Finding(claim, OPEN, "no pairs of runs with GenEval per tag")
  text = ", ".join(f"{t.replace('_', ' ')} {g:+.3f}" for t, g in gains.items())
  won = np.mean(several) > max(0.0, float(np.mean(single)))
  text = f"mean gain of random over raster: {text}"
  return Finding(claim, APPEARS if won else ABSENT, text)


def keeps_improving(runs: pd.DataFrame, lower: str, name: str) -> Finding:
  """Random order on continuous tokens improves with size in every metric."""
  claim = "Random order on continuous tokens (Fluid) keeps improving with size"
  cell = _cell(runs, "continuous-random")
  evidence, steps, good = [], 0, 0
  signs = (("val/loss", "validation loss", -1), ("geneval/overall", "GenEval", 1))
  for metric, title, sign in (*signs, (lower, name, -1)):
    rows = having(cell, "N", metric).sort_values("N")
    if len(rows) < 2:
      continue
    gains = sign * np.diff(rows[metric].to_numpy(float))
    steps, good = steps + len(gains), good + int((gains > 0).sum())
    values = " → ".join(f"{v:.3g}" for v in rows[metric])
    evidence.append(f"{title} {values}")
  if not evidence:
    return Finding(claim, OPEN, "fewer than two finished sizes of continuous-random")
  return Finding(
    claim, _verdict(good, steps), f"{'; '.join(evidence)} (smallest to largest)"
  )


def loss_tells(runs: pd.DataFrame, lower: str, name: str) -> Finding:
  """Validation loss predicts the metrics; the paper has r = 0.917 and -0.931."""
  claim = (
    "Validation loss predicts the metrics of Fluid "
    "(paper: r = 0.917 with FID, -0.931 with GenEval)"
  )
  cell = _cell(runs, "continuous-random")
  signs = {lower: (name, 1), "geneval/overall": ("GenEval", -1)}
  evidence, strong, known = [], 0, 0
  for metric, (title, sign) in signs.items():
    c = correlate(cell, x="val/loss", y=metric)
    evidence.append(f"{title}: {c.reading}")
    if not c.refused:
      known += 1
      strong += int(sign * c.r >= 0.8)
  return Finding(claim, _verdict(strong, known), "; ".join(evidence))


def _cell(runs: pd.DataFrame, cell: str) -> pd.DataFrame:
  return runs[runs["cell"] == cell] if "cell" in runs else runs.iloc[:0]


def _pairs(table, metric: str, factor: Factor) -> list[tuple[str, float, float]]:
  """Matched (what is equal, value at level a, value at level b)."""
  column, a, b, other = factor
  if table.empty:
    return []
  means = table.groupby(["size", other, column], sort=False)[metric].mean()
  pairs = []
  for size, level in dict.fromkeys((s, o) for s, o, _ in means.index):
    if (size, level, a) in means.index and (size, level, b) in means.index:
      x, y = float(means[size, level, a]), float(means[size, level, b])
      pairs.append((f"{level} {size}", x, y))
  return pairs


def _verdict(good: int, total: int, *, enough: bool = True) -> str:
  if not total:
    return OPEN
  if good == total:
    return APPEARS if enough else PARTLY
  return PARTLY if good > total / 2 else ABSENT
