"""Compute-optimal sizes, of studies that spend several budgets or have long curves."""

import numpy as np
import pandas as pd

from analysis.clean import cells_of, having
from analysis.figures import study
from analysis.figures.study import Study
from analysis.fit import fit
from analysis.style import Plot, cell_style, label


def allocation(s: Study) -> Plot | None:
  """Compute-optimal size against compute, by isoFLOP parabolas or the envelope."""
  found = []
  for form, table in (("isoflop", s.ended), ("envelope", s.evals)):
    rows = having(table, "N", "compute", "val/loss")
    rows = rows[rows["compute"] > 0] if len(rows) else rows
    for cell in cells_of(rows):
      result = fit(rows[rows["cell"] == cell], form=form)
      if not result.refused:
        found.append((cell, result))
  if not found:
    return None
  cells = list(dict.fromkeys(c for c, _ in found))
  figure, axes, kinds = study.panel_per_tokens(pd.DataFrame({"cell": cells}))
  notes, data = [], []
  for ax, kind in zip(axes[0], kinds):
    for cell, result in found:
      if not cell.startswith(kind):
        continue
      look = cell_style(cell)
      ax.plot(result.x[0], result.y, label=f"{cell}, {result.form}", ls="", **look)
      grid = np.geomspace(result.x.min(), result.x.max() * 3, 100)
      study.fitted(ax, result, grid, look["color"])
      notes.append(f"{cell} ({result.form}): {result.reading}")
      data.append(result.table.assign(cell=cell, form=result.form))
    study.log_axes(ax)
    ax.set_yscale("log")
    ax.set(xlabel=label("compute"), ylabel="compute-optimal parameters N*")
    ax.legend()
  return Plot(
    "frontier",
    "Compute-optimal size against compute",
    "; ".join(notes) + ".",
    figure,
    pd.concat(data),
  )
