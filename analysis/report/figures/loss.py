"""Validation loss against size, compute and training.

Losses of the diffusion head and of the categorical head are different quantities: they
never share an axis.
"""

import matplotlib
import numpy as np
import pandas as pd

from analysis.report import style
from analysis.report.figures import pieces
from analysis.report.study import KEYS, Study
from analysis.report.style import Plot, cell_style, label, panels
from analysis.runs.rows import by_cell, cells_of, having


def against_size(s: Study) -> Plot | None:
  """Validation loss at the end of training against model size, with fits."""
  return _against(s, "N", "val_loss_vs_size", "model size")


def against_compute(s: Study) -> Plot | None:
  """Validation loss at the end of training against training compute, with fits."""
  return _against(s, "compute", "val_loss_vs_compute", "training compute")


def _against(s: Study, x: str, name: str, what: str) -> Plot | None:
  table = having(s.ended, x, "val/loss")
  if table.empty:
    return None
  figure, axes, kinds = pieces.panel_per_tokens(table)
  notes, data = [], []
  for ax, kind in zip(axes[0], kinds):
    for cell, rows in by_cell(table, x, kind):
      colour = cell_style(cell)["color"]
      pieces.points(ax, rows, x, "val/loss", cell, line=False)
      result = s.fit(cell, x=x)
      rows = pieces.known(rows, *KEYS, "val/loss", "val/loss_sem")
      if result.refused:
        notes.append(f"{cell}: no power law ({result.refused})")
        ax.plot(rows[x], rows["val/loss"], ":", color=colour)
      else:
        grid = np.geomspace(rows[x].min(), rows[x].max() * 1.2, 100)
        pieces.fitted(ax, result, grid, colour)
        notes.append(f"{cell}: {result.reading}, R² (log) {result.r2:.3f}")
        rows = rows.assign(fitted=result.predict(rows[x]))
      data.append(rows)
    pieces.log_axes(ax, y=True)
    ax.set(xlabel=label(x), ylabel=pieces.loss_label(kind))
    ax.set_title(f"{kind} tokens")
    ax.legend()
  return Plot(
    name,
    f"Validation loss against {what}",
    "Lines: power law fitted per cell, with its 95 % band. " + "; ".join(notes) + ".",
    figure,
    pd.concat(data),
  )


def curves(s: Study) -> Plot | None:
  """Validation loss during training against compute, a panel per cell."""
  return per_cell(
    s.curves,
    "compute",
    ["val/loss"],
    "val_loss_curves",
    "Validation loss during training against compute",
    "A line per model size. Compute is 3 x forward FLOPs x images seen.",
  )


def per_cell(table, x, metrics, name, title, caption, *, log=True) -> Plot | None:
  """Curves over training: a column per cell, a row per metric, a line per size."""
  cells = cells_of(table) if len(table) else []
  if not cells or not metrics:
    return None
  figure, axes = panels(len(metrics), len(cells), width=3.0, height=2.5)
  sizes = table.groupby("size")["N"].max().sort_values().index if "N" in table else []
  shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(len(sizes), 1)))
  colours = dict(zip(sizes, shades))
  for i, metric in enumerate(metrics):
    for ax, cell in zip(axes[i], cells):
      rows = having(table[table["cell"] == cell], x, metric)
      for size in [s for s in sizes if s in set(rows["size"])]:
        curve = rows[rows["size"] == size].sort_values(x)
        ax.plot(curve[x], curve[metric], ".-", color=colours[size], label=size)
      if log:
        pieces.log_axes(ax, y=metric == "val/loss")
      ax.set(xlabel=label(x), ylabel=label(metric, table))
      if i == 0:
        ax.set_title(cell)
  style.legend_above(figure, "size")
  return Plot(
    name, title, caption, figure, pieces.known(table, *KEYS, "time", *metrics)
  )
