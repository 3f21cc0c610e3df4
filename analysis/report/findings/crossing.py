"""Whether one level of the grid overtakes the other with size, by fitted curves.

Runs of a study differ in size and have equal rows: what their curves say of more
compute is of larger models on as many rows, not of longer training.

m points of compute.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.curves.result import Fit
from analysis.report.findings import cost
from analysis.report.findings.judge import Estimate, Finding, verdict
from analysis.report.findings.pairs import ORDER, TOKENS, Factor, rows_of
from analysis.report.study import ORDER_LOSS, Study, lower_metric
from analysis.runs.rows import having

HORIZON = 100  # times the largest compute: curves are not asked what is beyond
POINTS = 401
POWER, LINEAR = ("power", "compute"), ("linear", "log10 compute")


def of_kid(s: Study) -> Finding:
  metric, name = lower_metric(s.ended)
  return _crossing(s, TOKENS, name, *POWER, metric, low=True)


def of_loss(s: Study) -> Finding:
  # Nats of a density may be negative: no power law.
  linear = ("continuous",) if s.by_density else ()
  return _crossing(s, ORDER, "loss", *POWER, ORDER_LOSS, low=True, linear=linear)


def of_geneval(s: Study) -> Finding:
  return _crossing(s, ORDER, "GenEval", *LINEAR, "geneval/overall")


def _crossing(
  s: Study,
  factor: Factor,
  name: str,
  form: str,
  x: str,
  y: str,
  *,
  low: bool = False,
  linear: Sequence[str] = (),
) -> Finding:
  column, a, b, other = factor
  claim = (
    f"{a.capitalize()} {column} overtakes {b} in {name} as size grows, at equal rows"
  )
  claim = claim.replace("tokens overtakes", "tokens overtake")
  curves = f"{form} in {x}" + "".join(f"; {v}: {' in '.join(LINEAR)}" for v in linear)
  test = (
    f"a curve ({curves}) through the finished runs of each cell, which differ in "
    f"size and not in rows: {a} is ahead at the largest compute that both reach, by "
    "the interval of the gap; it does not overtake where it is behind and no larger "
    f"model on as many rows, up to {HORIZON} times the compute, could change it"
  )
  signs, evidence = [], []
  needs: list[str] = []
  table = having(s.compared, "compute", y)
  for level in dict.fromkeys(s.compared[other].dropna()):
    rows = table[table[other] == level]
    pair = {c: rows[rows[column] == c] for c in (a, b)}
    if short := [c for c, r in pair.items() if r.empty]:
      signs.append(0)
      evidence.append(f"{level}: no finished run of {' and '.join(short)} has {name}")
      needs.append(f"{level}: {name} of finished runs of {a} and {b}")
      continue
    cells = [r["cell"].iloc[0] for r in pair.values()]
    shape, over = LINEAR if level in linear else (form, x)
    one, two = (s.fit(cell, form=shape, x=over, y=y) for cell in cells)
    if one.refused or two.refused:
      signs.append(0)
      evidence.append(f"{level}: no curves ({one.refused or two.refused})")
      needs += [cost.more_sizes(len(r), 4, r, r["cell"].iloc[0]) for r in pair.values()]
      continue
    gaps = _gaps(one, two, -1 if low else 1)
    signs.append(gaps.sign)
    evidence.append(f"{level}: {gaps.reading(name, a, b)}{_unequal(rows)}")
    needs += gaps.needs(level, len(one.y), rows)
  evidence = evidence or [f"no finished run has {name} and compute"]
  return Finding(claim, test, verdict(signs), tuple(evidence), tuple(needs))


@dataclasses.dataclass(frozen=True)
class _Gaps:
  """One curve minus another.

  Attributes:
    compute: from the least to HORIZON times the largest that both reach [m].
    value, half: the gap and half its 95 % interval [m]; of logarithms where `log`.
    last: index of the largest compute that both reach.
    sense: -1 where lower is better, else 1.
    log: whether the curves are fitted in logarithms.
  """

  compute: np.ndarray
  value: np.ndarray
  half: np.ndarray
  last: int
  sense: int
  log: bool

  @property
  def here(self) -> Estimate:
    """At the largest compute that both reach."""
    value, half = self.value[self.last], self.half[self.last]
    return Estimate(*map(float, (value, value - half, value + half)))

  @property
  def sign(self) -> int:
    """+1: the first is ahead; -1: behind, and no compute could change it."""
    if self.sense * self.here.sign > 0:
      return 1
    best = self.sense * self.value + self.half
    return -1 if (best[self.last :] < 0).all() else 0

  @property
  def crossing(self) -> float:
    """The compute from which the first is ahead, NaN where there is none."""
    ahead = self.sense * self.value > 0
    up = np.flatnonzero(~ahead[:-1] & ahead[1:])
    return float(self.compute[up[0] + 1]) if len(up) else np.nan

  def reading(self, name: str, a: str, b: str) -> str:
    top, end = self.compute[[self.last, -1]]
    gap = f"{self.here.map(np.expm1):+.1%}" if self.log else f"{self.here:+.3f}"
    text = f"at {top:.3g} FLOPs the {name} of {a} is {gap} from that of {b}; "
    if np.isfinite(self.crossing):
      beyond = " (extrapolated)" if self.crossing > top else ""
      text += f"the curves say that {a} overtakes at {self.crossing:.2g}{beyond}"
    else:
      text += f"the curves have no overtaking from {self.compute[0]:.2g} to {end:.2g}"
    even = self.compute[np.abs(self.value) <= self.half]
    if not len(even):
      return f"{text}, and their intervals exclude one"
    return f"{text}; the gap's interval holds zero from {even[0]:.2g} to {even[-1]:.2g}"

  def needs(self, level: str, n: int, rows: pd.DataFrame) -> list[str]:
    """Sizes at which the curves cross or might, and seeds to tell them apart."""
    if self.sign:
      return []
    # Behind here, and no crossing: to where the gap could have closed.
    open_ = (np.abs(self.value) <= self.half)[self.last :]
    might = self.compute[self.last :][open_]
    reach = self.crossing
    if self.here.sign and not np.isfinite(reach) and len(might):
      reach = float(might[0])
    beyond = self.compute[self.last] < reach
    more = [cost.larger(reach, rows)] if beyond else []
    seeds = cost.seeds(self.here, n, rows, "the gap at the largest compute")
    return [f"{level}: {line}" for line in (*more, *seeds)]


def _unequal(runs: pd.DataFrame) -> str:
  """A note where the curves are not of size alone."""
  seen = rows_of(having(runs, "step", "batch"))
  if seen.empty or seen.max() <= 1.05 * seen.min():
    return ""
  return f" (the runs have unequal rows, {seen.min():.3g} to {seen.max():.3g})"


def _gaps(one: Fit, two: Fit, sense: int) -> _Gaps:
  """Of two fits of one form to compute or, a linear one, to its log10."""
  log = one.curve.log
  outer = (lambda v: v) if log else (lambda v: 10**v)
  low = outer(max(one.x.min(), two.x.min()))
  top = outer(min(one.x.max(), two.x.max()))
  compute = np.geomspace(min(low, top), HORIZON * top, POINTS)
  x = compute if log else np.log10(compute)
  lines = [one.curve.inner(f.predict(x)) for f in (one, two)]
  ends = [one.curve.inner(f.band(x)[1]) for f in (one, two)]
  half = np.hypot(ends[0] - lines[0], ends[1] - lines[1])
  last = int(np.searchsorted(compute, top * (1 - 1e-9)))
  return _Gaps(compute, lines[0] - lines[1], half, last, sense, log)
