"""Published numbers beside ours: quality against size, and seconds per image."""

import numpy as np
import pandas as pd

from analysis import published, style
from analysis.clean import cells_of, having
from analysis.figures import study
from analysis.figures.study import Study
from analysis.fit import Fit, fit
from analysis.style import OTHER_COLOUR, Plot, cell_style, label, panels

# Published column -> form, input, our columns that say the same of our images.
FITS = {
  "fid_30k": ("power", "N", ("fid", "fd", "kid")),
  "geneval/overall": ("linear", "log10 N", ("geneval/overall",)),
}
_COLOUR = "#009E73"


def fits() -> dict[str, Fit]:
  """Fluid's published FID (a power law) and GenEval (a line in log10 N) against N."""
  rows = with_log(published.fluid())
  return {
    metric: fit(rows, form=form, x=x, y=metric) for metric, (form, x, _) in FITS.items()
  }


def with_log(table: pd.DataFrame) -> pd.DataFrame:
  return table.assign(**{"log10 N": np.log10(table["N"].astype(float))})


def beside_ours(s: Study) -> Plot | None:
  """Table 1 as a figure: quality against size, Fluid with fits, others, ours."""
  table = published.table("fluid_table1")
  fluid, others = published.fluid(), table[table["cell"] != "Fluid"]
  figure, axes = panels(1, len(FITS), width=4.2, height=3.2)
  data, notes = [table], []
  for ax, (metric, result) in zip(axes[0], fits().items()):
    ax.plot(fluid["N"], fluid[metric], "D", color=_COLOUR, label="Fluid, published")
    grid = np.geomspace(fluid["N"].min() / 1.2, fluid["N"].max() * 1.2, 100)
    inputs = np.log10(grid) if result.form == "linear" else grid
    ax.plot(grid, result.predict(inputs), color=_COLOUR)
    ax.fill_between(grid, *result.band(inputs), color=_COLOUR, alpha=0.15, lw=0)
    notes.append(result.reading)
    rows = having(others, "N", metric)
    ax.plot(rows["N"], rows[metric], "x", color=OTHER_COLOUR, label="others, published")
    for _, row in rows.iterrows():
      ax.annotate(
        row["run"], (row["N"], row[metric]), xytext=(3, 3), fontsize=6,
        textcoords="offset points", color=OTHER_COLOUR,
      )  # fmt: skip
    # Only the same metric on the same images belongs on the axis of the published one.
    ours = having(s.ended, "N", metric.removesuffix("_30k"))
    ours = ours[ours.get("source", "") == "coco"] if len(ours) else ours
    for cell in cells_of(ours):
      mine = ours[ours["cell"] == cell].sort_values("N")
      ax.plot(mine["N"], mine[metric.removesuffix("_30k")], label=cell, **cell_style(cell))  # fmt: skip  # noqa: E501
      data.append(mine)
    study.log_axes(ax)
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
  for cell in cells_of(ours):
    rows = ours[ours["cell"] == cell].sort_values("N")
    study.points(ax, rows, "N", column, cell)
  study.log_axes(ax, y=True)
  ax.set(xlabel=label("N"), ylabel=label(column))
  ax.legend()
  return Plot(
    "seconds_per_image",
    "Seconds per image against size (Table 2 of the paper)",
    "Published: continuous-random at 256 px on the paper's hardware; ours on the "
    "hardware of the study.",
    figure,
    study.known(ours, *study.KEYS, column),
  )
