"""Numbers as people write them: 10M, 1.3B, 350K, 1,000,000, 1_000_000, 1e9; 3,21.

K, M, B (G) and T are powers of a thousand. Thousands may be set apart by comma,
underscore or space; where the comma is the decimal sign, by point.

Separated by semicolons or tabs, a table may have either decimal sign. A column is read
as those of its values say that can be read in one way only (3,21 or 1,000,000), a
column of none as the others are, and one that is left with values such as 3,215 is
refused.
"""

import re

import pandas as pd

# Text even where it looks like a number.
_NAMES = ("run", "cell", "status", "note", "config_hash", "commit")
_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def _grammar(apart: str, decimal: str) -> re.Pattern:
  whole = rf"[1-9]\d{{0,2}}(?:(?P<apart>[{apart}])\d{{3}})(?:(?P=apart)\d{{3}})*|\d+"
  return re.compile(
    rf"(?P<sign>[+-]?)(?P<whole>{whole}|(?=[{decimal}]\d))(?:[{decimal}](?P<part>\d*))?"
    r"(?P<power>e[+-]?\d+)?\s?(?P<unit>[kmbgt]?)",
    re.IGNORECASE | re.ASCII,
  )


_GRAMMARS = {".": _grammar(r",_ ", "."), ",": _grammar(r"._ ", ",")}


def number(text: str, decimal: str = ".") -> float | None:
  """The value of a text, or None if it is no number.

  Args:
    text: such as '1.3B'.
    decimal: '.' or ','.
  """
  found = _GRAMMARS[decimal].fullmatch(text.strip())
  if not found:
    return None
  whole = re.sub(r"\D", "", found["whole"]) or "0"
  value = f"{found['sign']}{whole}.{found['part'] or 0}{found['power'] or ''}"
  return float(value) * _UNITS[found["unit"].upper()]


def numbers(table: pd.DataFrame, *, commas: bool = False) -> pd.DataFrame:
  """The table with its texts that are numbers as such; others stay as they are.

  Args:
    table: some of its columns are text.
    commas: whether a comma may be the decimal sign.

  Raises:
    ValueError: a column whose numbers can be read in two ways.
  """
  # Beside N a size is the name of one ('166M'); alone it may be what is asked for.
  names = (*_NAMES, "size") if "N" in table else _NAMES
  texts = {
    column: {v for v in table[column] if isinstance(v, str)}
    for column in table
    if column not in names
  }
  signs = {c: _signs(found) if commas else {"."} for c, found in texts.items()}
  usual = set().union(*signs.values())
  out = table.copy()
  for column, found in texts.items():
    sign = signs[column] or usual
    if len(sign) != 1:
      _refuse_ambiguous(column, found)
    values = {text: number(text, "," if sign == {","} else ".") for text in found}
    read = {text: value for text, value in values.items() if value is not None}
    if read:
      mixed = [read.get(v, v) if isinstance(v, str) else v for v in table[column]]
      out[column] = pd.Series(mixed, table.index, object).infer_objects()
  return out


def _signs(texts: set[str]) -> set[str]:
  """Decimal signs of those texts that are a number with one of both only."""
  signs = set()
  for text in texts:
    point, comma = number(text), number(text, ",")
    if (point is None) != (comma is None):
      signs.add("," if point is None else ".")
  return signs


def _refuse_ambiguous(column: str, texts: set[str]) -> None:
  for text in sorted(texts):
    point, comma = number(text), number(text, ",")
    if "," in text and point != comma and None not in (point, comma):
      raise ValueError(
        f"column '{column}' has {text}: {point:.12g} or {comma:.12g}? write it so"
      )
