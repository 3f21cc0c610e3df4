"""Picking the rows of tables of runs."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

CELLS = ("continuous-random", "continuous-raster", "discrete-random", "discrete-raster")


def cells_of(table: pd.DataFrame) -> list[str]:
  """The cells of a table, those of the grid first and in its order."""
  present = list(table["cell"].dropna().unique()) if "cell" in table else []
  known = [c for c in CELLS if c in present]
  return known + sorted(c for c in present if c and c not in CELLS)


def by_cell(
  table: pd.DataFrame, sort: str = "", kind: str = ""
) -> Iterator[tuple[str, pd.DataFrame]]:
  """Every cell (of a token type) with its rows, in ascending order of a column."""
  for cell in cells_of(table):
    if cell.startswith(kind):
      rows = table[table["cell"] == cell]
      yield cell, rows.sort_values(sort) if sort else rows


def kinds_of(table: pd.DataFrame) -> list[str]:
  """The token types of a table's cells."""
  return list(dict.fromkeys(c.split("-")[0] for c in cells_of(table)))


def having(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
  """The rows with a finite number in every column (none if a column is absent)."""
  if any(c not in table for c in columns):
    return table.iloc[:0].reindex(columns=[*dict.fromkeys([*table, *columns])])
  values = table[list(columns)].apply(pd.to_numeric, errors="coerce")
  return table[np.isfinite(values.to_numpy(float)).all(1)]


def finished(runs: pd.DataFrame) -> pd.DataFrame:
  """The finished runs (all, where the table does not say)."""
  return runs[runs["status"] == "finished"] if "status" in runs else runs
