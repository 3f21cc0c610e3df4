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
PAPER = "Fluid, published"  # beside the cells: the rows that the paper printed


@dataclasses.dataclass(frozen=True)
class Study:
  """The tables of a study.

  Attributes:
    runs, evals, samplings: of analysis.load.
    workdir: where samples are found.
  """

  runs: pd.DataFrame
  evals: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
  samplings: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
  workdir: Path = Path()
  _fits: dict[tuple, Fit] = dataclasses.field(default_factory=dict, init=False)

  @classmethod
  def read(cls, workdir: str | Path) -> "Study":
    """Reads a folder (see analysis.load), every file of it once."""
    workdir = local(workdir)
    found = tables(workdir)
    return cls(found["run"], found["eval"], found["sampling"], workdir)

  @functools.cached_property
  def ended(self) -> pd.DataFrame:
    """The finished runs: the others have no place among results."""
    return finished(self.runs)

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
      table = self.ended if rows == "run" else self.curves
      table = table[table["cell"] == who]
    if "N" not in table:
      return table
    return table.assign(**{"log10 N": np.log10(table["N"].astype(float))})

  def fit(
    self, who: str, *, form: str = "power", x: str | None = None, y: str | None = None
  ) -> Fit:
    """`curves.fit.fit` on the rows `of` a cell; made once, whoever asks for it."""
    key = who, form, x or FORMS[form].columns[0], y or FORMS[form].y
    if key not in self._fits:
      self._fits[key] = fit(self.of(who, FORMS[form].rows), form=form, x=x, y=y)
    return self._fits[key]
