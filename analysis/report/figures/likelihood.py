"""Likelihood of both orders: nats per image, and the loss by what is known."""

import numpy as np
import pandas as pd

from analysis.report import style
from analysis.report.figures import pieces
from analysis.report.study import KEYS, TENTHS, Study, loss_known
from analysis.report.style import Plot, panels
from analysis.runs.rows import by_cell, having


def against_size(s: Study) -> Plot | None:
  """Nats per image of discrete tokens against model size, both orders on one axis."""
  table = having(s.ended, "N", "val/nats")
  if table.empty:
    return None
  figure, axes = panels(1, 1, width=4.6, height=3.2)
  pieces.cells(axes[0][0], table, "N", "val/nats")
  axes[0][0].legend()
  return Plot(
    "nats_vs_size",
    "Likelihood of the tokens of an image against model size",
    "Of discrete tokens, given the text. Raster order: exact. Random order: an upper "
    "bound, the mean over orders (arXiv 2110.02037). Bars: 1.96 standard errors over "
    "images and what was drawn for them.",
    figure,
    pieces.known(table, *KEYS, "val/nats", "val/nats_sem", "val/nats_count"),
  )


def by_known(s: Study) -> Plot | None:
  """Loss against the share of tokens known: the largest run of each cell."""
  columns = [c for c in loss_known() if c in s.ended]
  table = s.ended
  if not columns or (table := table[table[columns].notna().any(axis=1)]).empty:
    return None
  figure, axes, kinds = pieces.panel_per_tokens(table)
  share = pd.Series((np.arange(TENTHS) + 0.5) / TENTHS, loss_known())
  data = []
  for ax, kind in zip(axes[0], kinds):
    for cell, rows in by_cell(table, "N" if "N" in table else "", kind):
      row = rows.iloc[-1]
      line = row[columns].astype(float).dropna()
      name = f"{cell}, {row['size']}"
      ax.plot(share[line.index], line, label=name, **style.cell_style(cell))
      said = {"run": row["run"], "cell": cell, "size": row["size"]}
      known = share[line.index].to_numpy()
      data.append(pd.DataFrame(said | {"known": known, "loss": line.to_numpy()}))
    ax.set(xlabel="share of tokens known", ylabel=pieces.loss_label(kind), xlim=(0, 1))
    ax.set_title(f"{kind} tokens")
    ax.legend()
  return Plot(
    "loss_known",
    "Validation loss against the share of tokens known",
    "The largest run of each cell, by tenths. Random order knows tokens at any place, "
    "raster order those before: its share is a place in the image as well.",
    figure,
    pd.concat(data),
  )
