"""Published numbers beside ours: quality against size, and seconds per image."""

import numpy as np
import pandas as pd

from analysis import published
from analysis.curves.result import Fit
from analysis.report import style
from analysis.report.figures import pieces
from analysis.report.study import KEYS, PAPER, Study
from analysis.report.style import OTHER_COLOUR, Plot, cell_style, label, panels
from analysis.runs.rows import by_cell, having

# Published column -> form, input, our columns that say the same of our images.
FITS = {
  "fid_30k": ("power", "N", ("fid", "fd", "kid")),
  "geneval/overall": ("linear", "log10 N", ("geneval/overall",)),
}
_COLOUR = "#009E73"


def fits(s: Study | None = None) -> dict[str, Fit]:
  """Fluid's published FID (a power law) and GenEval (a line in log10 N) against N."""
  s = s or Study(pd.DataFrame())
  return {m: s.fit(PAPER, form=form, x=x, y=m) for m, (form, x, _) in FITS.items()}


def beside_ours(s: Study) -> Plot | None:
  """Table 1 as a figure: quality against size, Fluid with fits, others, ours."""
  table = published.table("fluid_table1")
  fluid, others = published.fluid(), table[table["cell"] != "Fluid"]
  figure, axes = panels(1, len(FITS), width=4.2, height=3.2)
  data, notes = [table], []
  for ax, (metric, result) in zip(axes[0], fits(s).items()):
    ax.plot(fluid["N"], fluid[metric], "D", color=_COLOUR, label="Fluid, published")
    grid = np.geomspace(fluid["N"].min() / 1.2, fluid["N"].max() * 1.2, 100)
    inputs = np.log10(grid) if result.form == "linear" else grid
    ax.plot(grid, result.predict(inputs), color=_COLOUR)
    ax.fill_between(grid, *result.band(inputs), color=_COLOUR, alpha=0.15, lw=0)
    notes.append(result.reading)
    rows = having(others, "N", metric)
    ax.plot(rows["N"], rows[metric], "x", color=OTHER_COLOUR, label="others, published")
    for _, row in rows.iterrows():
      right = row["N"] > fluid["N"].max() / 1.4  # where a name would leave the panel
      at, side = ((-5, -2), "right") if right else ((3, 3), "left")
      ax.annotate(
        row["run"], (row["N"], row[metric]), xytext=at, ha=side, fontsize=6,
        textcoords="offset points", color=OTHER_COLOUR,
      )  # fmt: skip
    # Only the same metric on the same images belongs on the axis of the published one.
    same = metric.removesuffix("_30k")
    ours = having(s.ended, "N", same)
    ours = ours[ours.get("source", "") == "coco"] if len(ours) else ours
    for cell, mine in by_cell(ours, "N"):
      ax.plot(mine["N"], mine[same], label=cell, **cell_style(cell))
      data.append(mine)
    pieces.log_axes(ax)
    ax.set(xlabel=label("N"), ylabel=label(metric))
  style.legend_above(figure)
  return Plot(
    "published",
    "Published: quality against size (Table 1 of the paper)",
    "Lines: fits to Fluid's printed rows, with 95 % bands. " + "; ".join(notes) + ". "
    "Our runs join these axes when they are evaluated on MS-COCO captions.",
    figure,
    pd.concat(data),
  )


def seconds(s: Study) -> Plot | None:
  """Table 2 as a figure: seconds per image against size, ours and published."""
  column = "sample/seconds_per_image"
  ours = having(s.ended, "N", column)
  if ours.empty:
    return None
  paper = having(published.table("fluid_table1"), "N", "seconds_per_image")
  figure, axes = panels(1, 1, width=4.6, height=3.2)
  ax = axes[0][0]
  ax.plot(paper["N"], paper["seconds_per_image"], "D-", color=_COLOUR, label="Fluid, published")  # fmt: skip  # noqa: E501
  for cell, rows in by_cell(ours, "N"):
    pieces.points(ax, rows, "N", column, cell)
  pieces.log_axes(ax, y=True)
  ax.set(xlabel=label("N"), ylabel=label(column))
  ax.legend()
  return Plot(
    "seconds_per_image",
    "Seconds per image against size (Table 2 of the paper)",
    "Published: continuous-random at 256 px on the paper's hardware; ours on the "
    "hardware of the study.",
    figure,
    pieces.known(ours, *KEYS, column),
  )
