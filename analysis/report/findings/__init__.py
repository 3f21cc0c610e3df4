"""Which of the paper's findings (arXiv 2410.13863) appear in a study: all computed.

A new finding is a function of a Study in this folder, and an entry of FINDINGS. All of
them judge by 95 % intervals: what an interval leaves open is said to be open, and then
what it would take (findings.cost). The intervals are those of the evaluations (prompts,
images); of how much a second seed of training moves a run they know only what the
scatter of runs around a fit tells.

  python -m analysis.findings --workdir DIR [--workdir DIR2] --out docs/findings.md
"""

import dataclasses
from collections.abc import Callable

from analysis.report.findings import cost, crossing, pairs, sizes
from analysis.report.findings.judge import (
  ABSENT,
  APPEARS,
  OPEN,
  PARTLY,
  Estimate,
  Finding,
)
from analysis.report.study import Study
from analysis.runs.rows import having

__all__ = ["ABSENT", "APPEARS", "FINDINGS", "OPEN", "PARTLY", "Finding", "findings"]

FINDINGS: dict[str, Callable[[Study], Finding]] = {
  "power_laws": sizes.power_laws,
  "predicted": sizes.predicted,
  "kid_tokens": pairs.kid_of_tokens,
  "geneval_tokens": pairs.geneval_of_tokens,
  "geneval_sizes": sizes.geneval_rises,
  "geneval_order": pairs.geneval_of_orders,
  "several_objects": pairs.several_objects,
  "keeps_improving": sizes.keeps_improving,
  "loss_tells": sizes.loss_tells,
  "loss_order": pairs.loss_of_orders,
  "kid_crossing": crossing.of_kid,
  "loss_crossing": crossing.of_loss,
  "geneval_crossing": crossing.of_geneval,
}
# Those that GenEval decides alone.
_GENEVAL = [name for name in FINDINGS if "geneval" in name] + ["several_objects"]


def findings(study: Study) -> dict[str, Finding]:
  """Name -> finding, from the finished runs of a study."""
  luck, needs = at_chance(study)
  runs = study.runs
  if luck:  # What GenEval says by luck is no evidence, also not beside other metrics.
    columns = [c for c in runs if c.startswith("geneval/")]
    study = dataclasses.replace(study, runs=runs.drop(columns=columns))
  found = {name: judge(study) for name, judge in FINDINGS.items()}
  if luck:
    for name in _GENEVAL:
      f = found[name]
      found[name] = Finding(f.claim, f.test, OPEN, (luck,), needs)
  return found


def at_chance(study: Study) -> tuple[str, tuple[str, ...]]:
  """Whether GenEval is luck: ('', ()) where some run is above chance by its interval.

  Chance (geneval/chance) is the score of the same images under each other's prompts.
  Tables without it are taken at their word.

  Returns:
    A sentence that says so, and what it would take.
  """
  table = having(study.ended, "geneval/overall_lo", "geneval/chance")
  if table.empty or (table["geneval/overall_lo"] > table["geneval/chance"]).any():
    return "", ()
  best = table.loc[[table["geneval/overall"].idxmax()]]
  score, low, chance = (
    float(best[f"geneval/{c}"].iloc[0]) for c in ("overall", "overall_lo", "chance")
  )
  luck = (
    f"GenEval is at chance in every run: at best {score:.3f} "
    f"(interval from {low:.3f}), where chance scores {chance:.3f}"
  )
  above = Estimate(score - chance, low - chance, score - chance + (score - low))
  return luck, (
    "longer training, until some run is above chance: no curve leads there from "
    "points that are luck",
    *cost.images(above, best, "geneval/overall", "the best run above chance"),
  )
