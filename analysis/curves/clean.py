"""What of a table can be used: rows are left out, or the table refused, with reasons.

Left out: values that are not numbers, a run's earlier rows, the same run twice.
Refused: rows of several cells or data sets, one run with two different results.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd

from analysis.curves.result import FitError

# Losses of rows that differ in one of these are different quantities.
_ONE_OF = ("cell", "source", "image_size")


def need(
  table: pd.DataFrame,
  columns: Iterable[str],
  name: str = "the table",
  flags: Mapping[str, str] = MappingProxyType({}),
) -> None:
  """Raises a FitError that names a column which is absent, and those that are not.

  Args:
    table: to have the columns.
    columns: their names.
    name: of the table.
    flags: column -> the argument that names another in its place.
  """
  for column in columns:
    if column not in table:
      how = f"; name yours by {flags[column]}" if column in flags else ""
      raise FitError(
        f"{name} has no column '{column}'; it has {columns_of(table)}{how}"
      )


def columns_of(table: pd.DataFrame) -> str:
  """The names of the columns, as text."""
  return ", ".join(map(str, table)) or "none"


def clean(
  table: pd.DataFrame, columns: Sequence[str], *, rows: str = "run", cell: bool = True
) -> tuple[pd.DataFrame, list[str], str]:
  """The usable rows of a table.

  Args:
    table: one row per run, or per run and step.
    columns: inputs and, last, the output: all have to be finite numbers.
    rows: 'run' (the last step of each counts) or 'eval' (all steps do).
    cell: whether rows of several cells are refused.

  Returns:
    The rows, warnings, and why the table cannot be used ('' if it can).
  """
  values = table[list(columns)].apply(pd.to_numeric, errors="coerce")
  good = np.isfinite(values.to_numpy(float)).all(1)
  warnings = []
  if not good.all():
    bad = [c for c in columns if not np.isfinite(values[c].to_numpy(float)).all()]
    warnings.append(f"left out, no finite {' or '.join(bad)}: {_names(table, ~good)}")
  kept = table[good].assign(**{c: values.loc[good, c] for c in columns})
  refused = _mixed(kept) if cell else ""
  if "run" in kept and not refused:
    kept, more, refused = _once(kept, list(columns), rows)
    warnings += more
  return kept, warnings, refused


def _mixed(table: pd.DataFrame) -> str:
  for column in _ONE_OF:
    if column in table:
      found = sorted(map(str, table[column].dropna().unique()))
      if len(found) > 1:
        return f"the rows mix {column.replace('_', ' ')}s: {', '.join(found)}"
  return ""


def _once(table, columns, rows):
  """Every run once (or once per step)."""
  warnings = []
  key = ["run", "step"] if rows == "eval" and "step" in table else ["run"]
  if key == ["run"] and "step" in table:
    last = table.groupby("run")["step"].transform("max") == table["step"]
    if not last.all():
      warnings.append(f"only the last step counts of {_names(table, ~last)}")
      table = table[last]
  same = table.duplicated(key + columns)
  if same.any():
    warnings.append(f"left out, twice in the table: {_names(table, same)}")
    table = table[~same]
  twice = table.duplicated(key)
  if twice.any() and key != ["run"]:
    twice &= table.duplicated(key, keep=False)
  if twice.any():
    return table, warnings, f"two different rows for run {_names(table, twice)}"
  if rows == "run" and "config_hash" in table:
    again = table["config_hash"].notna() & table.duplicated(
      ["config_hash", *columns[:-1]]
    )
    if again.any():
      warnings.append(f"left out, same config as another run: {_names(table, again)}")
      table = table[~again]
  return table, warnings, ""


def _names(table: pd.DataFrame, mask) -> str:
  """The runs (or numbers of rows, from 1) where mask holds, at most eight of them."""
  picked = table.loc[mask, "run"] if "run" in table else table.index[mask] + 1
  names = [str(n) for n in dict.fromkeys(picked)]
  more = f" and {len(names) - 8} more" if len(names) > 8 else ""
  return ("" if "run" in table else "row ") + ", ".join(names[:8]) + more
