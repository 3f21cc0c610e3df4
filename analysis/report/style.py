"""One look for all figures: colours that stay apart for colour-blind eyes, and saving.

A figure is three files of one name: PNG (screens), SVG (print) and the CSV behind it.
"""

import dataclasses
import io
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette; random filled circles, raster open squares, so that print
# without colour can be read as well.
CELL_COLOURS = {
  "continuous-random": "#0072B2",
  "continuous-raster": "#56B4E9",
  "discrete-random": "#D55E00",
  "discrete-raster": "#E69F00",
}
OTHER_COLOUR = "#555555"
LABELS = {
  "N": "trainable parameters N",
  "compute": "training compute (FLOPs)",
  "step": "training step",
  "val/loss": "validation loss",
  "val/nats": "nats per image (lower is better)",
  "geneval/overall": "GenEval overall (higher is better)",
  "fid": "FID (lower is better)",
  "fid_30k": "FID-30K (lower is better)",
  "kid": "KID (lower is better)",
  "fd": "FD (lower is better)",
  "sample/seconds_per_image": "seconds per image",
  "guidance": "guidance scale",
  "temperature": "temperature",
  "aligner_layers": "blocks of the text aligner",
}
UNITS = {"continuous": "diffusion loss", "discrete": "cross-entropy, nats per token"}
RC: dict[Any, Any] = {
  "font.size": 9,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "grid.alpha": 0.25,
  "axes.titlesize": 9.5,
  "legend.frameon": False,
  "legend.fontsize": 8,
  "svg.hashsalt": "fluid",
  "savefig.dpi": 150,
}


@dataclasses.dataclass(frozen=True)
class Plot:
  """A drawn figure: what it shows, in words, and the numbers behind it."""

  name: str
  title: str
  caption: str
  figure: Figure
  data: pd.DataFrame

  def save(self, folder: Path) -> Path:
    """Writes NAME.png, NAME.svg and NAME.csv; returns the path of the PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    self.data.to_csv(folder / f"{self.name}.csv", index=False)
    with matplotlib.rc_context(RC):
      # Without a date, the same data give the same bytes.
      svg = folder / f"{self.name}.svg"
      self.figure.savefig(svg, metadata={"Date": None})
      self.figure.set_layout_engine("none")  # it is laid out by now
      self.figure.savefig(folder / f"{self.name}.png")
    return folder / f"{self.name}.png"

  def _repr_png_(self) -> bytes:
    """A notebook shows it so."""
    with matplotlib.rc_context(RC), io.BytesIO() as file:
      self.figure.savefig(file, dpi=100)
      return file.getvalue()


def panels(rows: int, columns: int, *, width: float = 3.6, height: float = 2.9):
  """A figure of panels -> (figure, axes [rows, columns])."""
  figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
  FigureCanvasAgg(figure)
  return figure, figure.subplots(rows, columns, squeeze=False)


def legend_above(figure: Figure, title: str | None = None) -> None:
  """One legend for all panels, outside of them."""
  entries: dict[str, Any] = {}
  for ax in figure.axes:
    for handle, name in zip(*ax.get_legend_handles_labels()):
      entries.setdefault(name, handle)
  # As many columns as the figure is wide, for letters of about 0.065 inches; panels
  # keep their height.
  longest = max((len(str(name)) for name in entries), default=0)
  columns = int(figure.get_figwidth() / (0.55 + 0.065 * longest))
  columns = max(min(len(entries), columns), 1)
  rows = -(-len(entries) // columns)
  figure.set_figheight(figure.get_figheight() + 0.17 * max(rows - 1, 0))
  place: dict[str, Any] = {"loc": "outside upper center", "ncols": columns}
  figure.legend(entries.values(), entries.keys(), title=title, **place)


def cell_style(cell: str) -> dict:
  """Keyword arguments of matplotlib for the points of a cell."""
  colour = CELL_COLOURS.get(cell, OTHER_COLOUR)
  raster = cell.endswith("raster")
  face = "white" if raster else colour
  return {"color": colour, "marker": "s" if raster else "o", "markerfacecolor": face}


def label(name: str, table: pd.DataFrame | None = None) -> str:
  """Axis label of a column; distances are named after their feature network."""
  text = LABELS.get(name, name)
  if name in ("kid", "fd") and table is not None and "features" in table:
    names = table["features"].dropna().unique()
    if len(names) == 1:
      text = text.replace(name.upper(), f"{name.upper()}-{names[0]}")
  return text
