"""Sample grids of run directories: cutting them up and laying cells side by side.

A run keeps samples/step_XXXXXXXX.png, rows x cols tiles, and samples/prompts.json
{prompts, rows, cols, image_size}; a prompt belongs to a tile, or to a row of tiles.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
from PIL import Image


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
  """The newest grid of a run folder, None if it has none that can be read."""
  paths = sorted((run / "samples").glob("step_*.png"))
  try:
    layout = json.loads((run / "samples" / "prompts.json").read_text())
    pixels = np.asarray(Image.open(paths[-1]).convert("RGB"))
    tiles = cut(pixels, layout["rows"], layout["cols"], layout["image_size"])
  except (IndexError, FileNotFoundError, json.JSONDecodeError, KeyError, OSError):
    return None
  prompts, columns = layout["prompts"], layout["cols"]
  by_prompt: dict[str, list] = {}
  for i, tile in enumerate(tiles):
    k = i if len(prompts) > layout["rows"] else i // columns
    if k < len(prompts):
      by_prompt.setdefault(prompts[k], []).append(tile)
  return Grid(by_prompt, int(paths[-1].stem.split("_")[-1]), paths[-1])


def cut(pixels: np.ndarray, rows: int, columns: int, size: int) -> list[np.ndarray]:
  """Grid [H, W, 3] -> its tiles [size, size, 3], row by row; finds the gaps itself."""
  starts = []
  for length, n in zip(pixels.shape[:2], (rows, columns)):
    spare = length - n * size
    if spare < 0:
      raise KeyError(f"{n} tiles of {size} do not fit into {length} pixels")
    if spare and spare % (n + 1) == 0:  # gaps around every tile
      gap, first = spare // (n + 1), spare // (n + 1)
    else:  # gaps between tiles
      gap, first = (spare // (n - 1) if n > 1 else 0), 0
    starts.append([first + i * (size + gap) for i in range(n)])
  return [pixels[y : y + size, x : x + size] for y in starts[0] for x in starts[1]]
