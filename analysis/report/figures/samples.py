"""Samples of the cells side by side."""

import textwrap

import numpy as np
import pandas as pd

from analysis.report.study import Study
from analysis.report.style import Plot, panels
from analysis.runs import samples
from analysis.runs.rows import by_cell

MAX_PROMPTS = 8


def sheet(s: Study) -> Plot | None:
  """The largest run of each cell with samples, side by side for the same prompts."""
  columns = []
  for _, rows in by_cell(s.runs):
    rows = rows.sort_values("N", ascending=False) if "N" in rows else rows
    for _, row in rows.iterrows():
      folder = s.workdir / "runs" / row["run"]
      grid = samples.read(folder if folder.is_dir() else s.workdir)
      if grid:
        columns.append((f"{row['cell']}\n{row['size']}, step {grid.step}", row, grid))
        break
  if not columns:
    return None
  prompts = list(columns[0][2].tiles)
  shared = [p for p in prompts if all(p in g.tiles for *_, g in columns)] or prompts
  shared = shared[:MAX_PROMPTS]
  figure, axes = panels(len(shared), len(columns) + 1, width=1.8, height=1.2)
  for i, prompt in enumerate(shared):
    for ax in axes[i]:
      ax.set_axis_off()
    words = textwrap.fill(prompt, 22)
    axes[i][0].text(1, 0.5, words, ha="right", va="center", fontsize=8)
    for ax, (title, _, grid) in zip(axes[i][1:], columns):
      tiles = grid.tiles.get(prompt, [])[:2]
      if tiles:
        gap = np.full((tiles[0].shape[0], 2, 3), 255, np.uint8)
        strip = [piece for tile in tiles for piece in (gap, tile)][1:]
        ax.imshow(np.concatenate(strip, 1), interpolation="nearest")
      if i == 0:
        ax.set_title(title)
  data = [{"run": r["run"], "step": g.step, "prompt": p} for _, r, g in columns for p in shared]  # fmt: skip  # noqa: E501
  return Plot(
    "samples",
    "Samples for the same prompts",
    "The largest run of each cell that has samples.",
    figure,
    pd.DataFrame(data),
  )
