"""Sample grids of run directories: cutting them up again into images and prompts.

A run keeps samples/step_XXXXXXXX.png, a nearly square grid of tiles with gaps between
them, and samples/prompts.json, the prompt of each tile, row by row.
"""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
from PIL import Image

GAP = 2  # pixels between tiles, as fluid.evals.images draws them


@dataclasses.dataclass(frozen=True)
class Grid:
  """The newest samples of a run.

  Attributes:
    tiles: prompt -> its images, each [S, S, 3] uint8.
    step: training step they were drawn at.
    path: of the grid.
  """

  tiles: dict[str, list[np.ndarray]]
  step: int
  path: Path


def read(run: Path) -> Grid | None:
  """The newest grid (of averaged weights) of a run; None if none can be read."""
  folder = run / "samples"
  paths = [p for p in folder.glob("*.png") if re.fullmatch(r"step_\d+", p.stem)]
  try:
    path = max(paths)
    prompts = json.loads((folder / "prompts.json").read_text())
    images = cut(np.asarray(Image.open(path).convert("RGB")), len(prompts))
  except (ValueError, OSError):  # no grid, no prompts, or one being written
    return None
  tiles: dict[str, list] = {}
  for prompt, image in zip(prompts, images):
    tiles.setdefault(prompt, []).append(image)
  return Grid(tiles, int(path.stem.split("_")[1]), path)


def cut(pixels: np.ndarray, n: int) -> list[np.ndarray]:
  """Grid [H, W, 3] of n square tiles -> the tiles, row by row."""
  columns = math.ceil(math.sqrt(n))
  size, rest = divmod(pixels.shape[1] + GAP, columns)
  size -= GAP
  rows = math.ceil(n / columns)
  if rest or pixels.shape[0] != rows * (size + GAP) - GAP:
    raise ValueError(f"{pixels.shape[:2]} pixels are no grid of {n} square tiles")
  starts = [(i // columns * (size + GAP), i % columns * (size + GAP)) for i in range(n)]
  return [pixels[y : y + size, x : x + size] for y, x in starts]
