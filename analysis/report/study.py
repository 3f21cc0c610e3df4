"""A study: its tables, read once, and its fits, made once."""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pandas as pd

from analysis import published
from analysis.curves.fit import fit
from analysis.curves.forms import FORMS
from analysis.curves.result import Fit
from analysis.runs.load import tables
from analysis.runs.remote import local
from analysis.runs.rows import finished, having

METRICS = ("geneval/overall", "fid", "kid", "fd")
# Columns to read a metric by: what chance scores, what the tokenizer alone scores.
CHANCE = {"geneval/overall": "geneval/chance"}
CEILING = {"geneval/overall": "geneval/tokenizer", "kid": "kid_tokenizer"}
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
KEYS = ["run", "cell", "size", "status", "step", "N", "compute"]
# What both orders of a token type share a scale in (Study.compared): of these columns
# the first that as many of its finished runs have as any. KNOWN is the mean over the
# tenths of tokens known, so that no distribution of masks weighs one share of known
# tokens more than another; nothing tells its standard error.
ORDER_LOSS, KNOWN, DENSITY = "val/order_loss", "val/loss_known", "val/density_nats"
_ORDER_LOSSES = {"discrete": ["val/nats"], "continuous": [DENSITY, KNOWN, "val/loss"]}
TENTHS = 10  # that the evaluation of likelihood tells apart
PAPER = "Fluid, published"  # beside the cells: the rows that the paper printed


@dataclasses.dataclass(frozen=True)
class Study:
  """The tables of a study.

  Attributes:
    runs, evals, samplings, metrics: of analysis.load.
    workdir: where samples are found.
  """

  runs: pd.DataFrame
  evals: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
  samplings: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
  metrics: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
  workdir: Path = Path()
  _fits: dict[tuple, Fit] = dataclasses.field(default_factory=dict, init=False)

  @classmethod
  def read(cls, workdir: str | Path) -> "Study":
    """Reads a folder (see analysis.load), every file of it once."""
    workdir = local(workdir)
    found = tables(workdir)
    runs, evals, samplings, metrics = (
      found[kind] for kind in ("run", "eval", "sampling", "metric")
    )
    return cls(runs, evals, samplings, metrics, workdir)

  @functools.cached_property
  def ended(self) -> pd.DataFrame:
    """The finished runs: the others have no place among results."""
    return finished(self.runs)

  @functools.cached_property
  def compared(self) -> pd.DataFrame:
    """The finished runs with ORDER_LOSS, ORDER_LOSS_sem and ORDER_LOSS_count."""
    runs = self.ended
    if "tokens" not in runs:
      needed = [*runs, "tokens", "order", "cell", ORDER_LOSS]
      return runs.reindex(columns=[*dict.fromkeys(needed)])
    known = [c for c in loss_known() if c in runs]
    runs = runs.assign(**{KNOWN: runs[known].mean(axis=1)} if known else {})
    parts = []
    for tokens, columns in _ORDER_LOSSES.items():
      rows = runs[runs["tokens"] == tokens]
      best = max(columns, key=lambda c: len(having(rows, c)))
      ends = {e: rows.get(f"{best}{e}", np.nan) for e in ("", "_sem", "_count")}
      parts.append(rows.assign(**{f"{ORDER_LOSS}{e}": v for e, v in ends.items()}))
    return pd.concat(parts).loc[runs.index]

  @functools.cached_property
  def by_density(self) -> bool:
    """Whether orders of continuous tokens are compared by DENSITY, not by a loss."""
    rows = having(self.compared, DENSITY, ORDER_LOSS)
    return bool(len(rows)) and bool((rows[DENSITY] == rows[ORDER_LOSS]).any())

  @functools.cached_property
  def curves(self) -> pd.DataFrame:
    """The evaluated steps, without what an untrained model scores."""
    rows = having(self.evals, "compute", "val/loss")
    return rows[rows["compute"] > 0] if len(rows) else rows

  def of(self, who: str, rows: str = "run") -> pd.DataFrame:
    """The finished runs of a cell (rows='eval': their curves), or those of PAPER."""
    if who == PAPER:
      table = published.fluid()
    else:
      table = self.compared if rows == "run" else self.curves
      table = table[table["cell"] == who]
    logs = {f"log10 {c}": c for c in ("N", "compute") if c in table}
    return table.assign(
      **{k: np.log10(table[c].astype(float)) for k, c in logs.items()}
    )

  def fit(
    self, who: str, *, form: str = "power", x: str | None = None, y: str | None = None
  ) -> Fit:
    """`curves.fit.fit` on the rows `of` a cell; made once, whoever asks for it."""
    key = who, form, x or FORMS[form].columns[0], y or FORMS[form].y
    if key not in self._fits:
      self._fits[key] = fit(self.of(who, FORMS[form].rows), form=form, x=x, y=y)
    return self._fits[key]


def loss_known() -> list[str]:
  """Columns of the loss by tenths of tokens known."""
  return [f"val/loss_known{i}" for i in range(TENTHS)]


def lower_metric(runs: pd.DataFrame) -> tuple[str, str]:
  """The distance of images that the runs have, lower is better: column and name."""
  return ("kid", "KID") if len(having(runs, "kid")) else ("fd", "FD")
