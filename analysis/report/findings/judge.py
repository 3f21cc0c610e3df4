"""What a finding is, and how numbers with 95 % intervals decide it.

n estimates.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis.report.study import ORDER_LOSS

APPEARS, PARTLY = "appears", "appears in part"
ABSENT, OPEN = "does not appear", "cannot be said"
TITLES = {"kid": "KID", "fd": "FD", "geneval/overall": "GenEval", ORDER_LOSS: "loss"}
NORMAL = 1.96  # standard errors to either end of a 95 % interval


@dataclasses.dataclass(frozen=True)
class Finding:
  """A claim of the paper, and what a study says of it.

  Attributes:
    claim: what is judged.
    test: how, in one sentence.
    verdict: APPEARS, PARTLY, ABSENT or OPEN.
    evidence: the numbers, a line each.
    needs: what would decide what is open, a line each.
  """

  claim: str
  test: str
  verdict: str
  evidence: tuple[str, ...]
  needs: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number and its 95 % interval, NaN where there is none."""

  value: float
  lo: float
  hi: float

  @property
  def sign(self) -> int:
    """+1 or -1 where the interval says which, else 0."""
    return int(self.lo > 0) - int(self.hi < 0)

  @property
  def half(self) -> float:
    """Width of the interval towards zero."""
    return self.value - self.lo if self.value > 0 else self.hi - self.value

  def map(self, rising: Callable) -> "Estimate":
    """A rising function of it."""
    with np.errstate(all="ignore"):
      return Estimate(*(float(rising(v)) for v in (self.value, self.lo, self.hi)))

  def __format__(self, spec: str) -> str:
    shown = [format(v, spec or ".3g") for v in (self.value, self.lo, self.hi)]
    if np.isnan([self.lo, self.hi]).any():
      return f"{shown[0]} (no interval)"
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def combine(weights: Sequence[float] | np.ndarray, parts: list[Estimate]) -> Estimate:
  """sum_i w_i part_i [n] of independent estimates.

  Each end adds in squares the distances to those ends of the parts that move the sum
  its way (MOVER, Zou and Donner 2008), so intervals need not be symmetric. Runs that
  are judged on the same prompts or real images vary together: of the difference of two
  the interval is too wide rather than too narrow, of a sum too narrow (see `mean`).
  """
  w = np.asarray(weights, float)
  value, lo, hi = np.array([(p.value, p.lo, p.hi) for p in parts]).T
  below, above = np.maximum(value - lo, 0), np.maximum(hi - value, 0)
  down, up = np.where(w > 0, (below, above), (above, below))
  total = float(w @ value)
  ends = total - np.linalg.norm(w * down), total + np.linalg.norm(w * up)
  return Estimate(total, *map(float, ends))


def mean(parts: list[Estimate]) -> Estimate:
  """The mean of estimates that share prompts or real images: its ends are their means.

  That is the interval if they vary wholly together, and too wide if they do not. Those
  of independent estimates (`combine`) would be too narrow: what some prompts are to all
  runs of a cell, more runs do not average out.
  """
  ends = np.mean([(p.value, p.lo, p.hi) for p in parts], axis=0)
  return Estimate(*map(float, ends))


def measured(rows: pd.DataFrame, metric: str) -> Estimate:
  """The mean of a metric over runs that differ in nothing but their seeds."""
  value = rows[metric].astype(float)
  lo = hi = pd.Series(np.nan, rows.index)
  if f"{metric}_lo" in rows and f"{metric}_hi" in rows:
    lo, hi = rows[f"{metric}_lo"], rows[f"{metric}_hi"]
  elif f"{metric}_sem" in rows:
    half = NORMAL * rows[f"{metric}_sem"]
    lo, hi = value - half, value + half
  return mean([Estimate(*map(float, row)) for row in zip(value, lo, hi)])


def verdict(signs: Sequence[int], overall: int = 0) -> str:
  """From parts that hold (+1), are reversed (-1) or open (0), and from their mean.

  Where most parts are open, the sign of the mean decides.
  """
  wins, losses = (sum(s == which for s in signs) for which in (1, -1))
  if 2 * (wins + losses) < len(signs) or not signs:
    return {1: PARTLY, -1: ABSENT}.get(overall, OPEN)
  if wins == len(signs):
    return APPEARS
  return PARTLY if wins > losses else ABSENT
