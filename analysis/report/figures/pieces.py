"""The pieces that figures are drawn with."""

import matplotlib
import numpy as np
import pandas as pd

from analysis.report import style
from analysis.report.study import CEILING, CHANCE
from analysis.report.style import cell_style, panels
from analysis.runs.rows import by_cell, having, kinds_of


def points(ax, rows, x, y, cell, *, line: bool = True, name: str | None = None):
  """Points of one cell with error bars from NAME_lo and NAME_hi or NAME_sem."""
  error = None
  if f"{y}_lo" in rows and f"{y}_hi" in rows:
    error = np.stack([rows[y] - rows[f"{y}_lo"], rows[f"{y}_hi"] - rows[y]])
  elif f"{y}_sem" in rows:
    error = 1.96 * np.stack([rows[f"{y}_sem"]] * 2)
  if error is not None:
    error = np.nan_to_num(np.clip(error.astype(float), 0, None))
  look = cell_style(cell) | {"linestyle": "-" if line else "none"}
  ax.errorbar(rows[x], rows[y], error, label=name or cell, capsize=2, **look)


def cells(ax, table, x, y):
  """A panel of the points of every cell, between chance and ceiling."""
  drawn = having(table, x, y)
  for cell, rows in by_cell(drawn, x):
    points(ax, rows, x, y, cell)
  marks(ax, drawn, y)
  log_axes(ax)
  ax.set(xlabel=style.label(x), ylabel=style.label(y, table))


def fitted(ax, result, grid, colour):
  """A fit's curve and its 95 % band, of one input."""
  ax.plot(grid, result.predict(grid), color=colour)
  ax.fill_between(grid, *result.band(grid), color=colour, alpha=0.15, lw=0)


def marks(ax, table, metric):
  """Lines at what chance and the tokenizers score."""
  if len(rows := having(table, CHANCE.get(metric, ""))):
    ax.axhline(rows[CHANCE[metric]].mean(), color=style.OTHER_COLOUR, linestyle=":")
  if len(rows := having(table, CEILING.get(metric, ""))):
    for cell, ceiling in rows.groupby("cell")[CEILING[metric]].mean().items():
      if cell.endswith("random"):  # Both orders have the same tokenizer.
        ax.axhline(ceiling, color=style.cell_style(cell)["color"], linestyle="--", lw=1)


def panel_per_tokens(table, *, rows: int = 1):
  """-> figure, axes [rows, kinds], kinds: losses of two heads never share an axis."""
  kinds = kinds_of(table)
  return *panels(rows, len(kinds), width=4.2, height=3.2), kinds


def loss_label(kind: str) -> str:
  return f"validation loss\n({style.UNITS[kind]})" if kind in style.UNITS else "loss"


def log_axes(ax, *, y: bool = False):
  """Logarithmic x (and y), with labels that also divide less than a decade."""
  ax.set_xscale("log")
  _divide(ax.xaxis, *ax.get_xlim())
  if y:
    ax.set_yscale("log")
    _divide(ax.yaxis, *ax.get_ylim())


def _divide(axis, low: float, high: float) -> None:
  """Places the labels of a logarithmic axis, and writes them without powers of ten."""
  ticker = matplotlib.ticker
  # Sizes span about a decade, in which powers of ten would label one point, and losses
  # less than one.
  subs = (1, 2, 5) if high < 200 * low else (1,)
  within = axis.axis_name == "y" and high < 5 * low
  even = ticker.MaxNLocator(6, steps=[1, 2, 2.5, 5, 10])
  axis.set_major_locator(even if within else ticker.LogLocator(subs=subs))
  plain = ticker.StrMethodFormatter("{x:.4g}")
  counts = ticker.EngFormatter(sep="")
  counts.ENG_PREFIXES = counts.ENG_PREFIXES | {9: "B"}  # As sizes are written: 1.3B.
  axis.set_major_formatter(counts if low >= 1000 else plain)
  axis.set_minor_formatter(ticker.NullFormatter())
  if within:
    axis.set_minor_locator(ticker.NullLocator())


def known(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
  """The columns that the table has."""
  return table[[c for c in dict.fromkeys(columns) if c in table]]
