"""Compute-optimal sizes, of studies that spend several budgets or have long curves."""

import numpy as np
import pandas as pd

from analysis.report.figures import pieces
from analysis.report.study import Study
from analysis.report.style import Plot, cell_style, label
from analysis.runs.rows import cells_of, having


def allocation(s: Study) -> Plot | None:
  """Compute-optimal size against compute, by isoFLOP parabolas or the envelope."""
  found = []
  for form, table in (("isoflop", s.ended), ("envelope", s.curves)):
    for cell in cells_of(having(table, "N", "compute", "val/loss")):
      result = s.fit(cell, form=form)
      if not result.refused:
        found.append((cell, result))
  if not found:
    return None
  cells = list(dict.fromkeys(c for c, _ in found))
  figure, axes, kinds = pieces.panel_per_tokens(pd.DataFrame({"cell": cells}))
  notes, data = [], []
  for ax, kind in zip(axes[0], kinds):
    for cell, result in found:
      if not cell.startswith(kind):
        continue
      look = cell_style(cell)
      ax.plot(result.x[0], result.y, label=f"{cell}, {result.form}", ls="", **look)
      grid = np.geomspace(result.x.min(), result.x.max() * 3, 100)
      pieces.fitted(ax, result, grid, look["color"])
      notes.append(f"{cell} ({result.form}): {result.reading}")
      data.append(result.table.assign(cell=cell, form=result.form))
    pieces.log_axes(ax, y=True)
    ax.set(xlabel=label("compute"), ylabel="compute-optimal parameters N*")
    ax.legend()
  return Plot(
    "frontier",
    "Compute-optimal size against compute",
    "; ".join(notes) + ".",
    figure,
    pd.concat(data),
  )
