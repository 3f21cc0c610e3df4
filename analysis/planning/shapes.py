"""Shapes (layers, width, heads) of sizes that a ladder does not have, read off it.

Components grow as powers of the width (the trunk also with its layers), FLOPs as a
power of N: the exponents are those of the runs that there are. Expect it to be right
within some per cent; the trainer counts exactly.
"""

import dataclasses

import numpy as np
import pandas as pd

from analysis.runs.rows import having
from analysis.runs.rundir import TRAINED

NEEDED = ("layers", "width", "heads", "N", "flops_per_image", "batch",
          "tokens_per_image", *(f"N_{c}" for c in TRAINED))  # fmt: skip
_EXPONENTS = {"core": 2.0, "aligner": 2.0, "head": 2.0, "embeddings": 1.0}


@dataclasses.dataclass(frozen=True)
class Shape:
  """A size: what its config says, and what is expected of it."""

  layers: int
  width: int
  heads: int
  N: float
  flops_per_image: float

  def compute(self, images: float) -> float:
    """Training FLOPs of so many images."""
    return 3 * self.flops_per_image * images


class Ladder:
  """The shapes of one cell's runs.

  Args:
    runs: of one cell, with the columns of run directories.

  Raises:
    ValueError: the table has no shapes.
  """

  def __init__(self, runs: pd.DataFrame):
    missing = [c for c in NEEDED if c not in runs]
    rows = having(runs, *NEEDED)
    if missing or rows.empty:
      raise ValueError(
        "a sweep is planned from run directories, whose tables have layers, width and "
        f"N by component; this one lacks {', '.join(missing) or 'rows with them'}"
      )
    self.rows = rows.drop_duplicates(["layers", "width"]).sort_values("N")

  def nearest(self, n: float) -> pd.Series:
    """The run whose N is nearest."""
    return self.rows.loc[np.log(self.rows["N"] / n).abs().idxmin()]

  def parameters(self, layers: float, width, near: pd.Series):
    """N of a shape (or several: widths [n] -> [n]), from the components of a run."""
    wider = width / near["width"]
    total = 0.0
    for part in TRAINED:
      deeper = layers / near["layers"] if part == "core" else 1
      total += near[f"N_{part}"] * deeper * wider ** self._exponent(part)
    return total

  def shape(self, n: float) -> Shape:
    """The shape with about n parameters and the ladder's proportions."""
    near = self.nearest(n)
    aspect = np.log(self.rows["width"] / self.rows["layers"])
    want = float(np.interp(np.log(n), np.log(self.rows["N"]), aspect))
    candidates = []
    for layers in range(1, 4 * int(self.rows["layers"].max()) + 1):
      widths = np.geomspace(8, 16 * self.rows["width"].max(), 4000)
      sizes = self.parameters(layers, widths, near)
      width = float(np.interp(n, sizes, widths))
      heads = max(1, round(width * near["heads"] / near["width"]))
      width = 4 * heads * max(1, round(width / heads / 4))
      off = abs(np.log(self.parameters(layers, width, near) / n))
      candidates.append((abs(np.log(width / layers) - want) + 3 * off, layers, width, heads))  # fmt: skip  # noqa: E501
    _, layers, width, heads = min(candidates)
    return self.priced(layers, width, heads, near)

  def priced(self, layers: int, width: int, heads: int, near: pd.Series) -> Shape:
    """A shape with the N and FLOPs expected of it."""
    n = float(self.parameters(layers, width, near))
    rows = self.rows
    power = 1.0
    if len(rows) > 1:
      power = np.polyfit(np.log(rows["N"]), np.log(rows["flops_per_image"]), 1)[0]
    flops = float(near["flops_per_image"] * (n / near["N"]) ** power)
    return Shape(int(layers), int(width), int(heads), n, flops)

  def _exponent(self, part: str) -> float:
    rows = self.rows[self.rows[f"N_{part}"] > 0]
    if rows["width"].nunique() < 2:
      return _EXPONENTS[part]
    size = rows[f"N_{part}"] / (rows["layers"] if part == "core" else 1)
    return float(np.polyfit(np.log(rows["width"]), np.log(size), 1)[0])
