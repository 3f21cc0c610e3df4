"""Grids of samples, written as PNG beside their prompts.

Legend: N images, H, W pixels.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image

from fluid import files
from fluid.config import ConfigError, rules
from fluid.evals import samples
from fluid.evals.base import Evaluation


def grid(images: np.ndarray, columns: int = 0, gap: int = 2) -> np.ndarray:
  """uint8 [N, H, W, 3] -> one uint8 image, row by row (0 columns: about square)."""
  n, h, w, _ = images.shape
  columns = columns or math.ceil(math.sqrt(n))
  rows = math.ceil(n / columns)
  shape = (rows * (h + gap) - gap, columns * (w + gap) - gap, 3)
  out = np.full(shape, 255, np.uint8)
  for i, image in enumerate(images):
    y, x = i // columns * (h + gap), i % columns * (w + gap)
    out[y : y + h, x : x + w] = image
  return out


@dataclasses.dataclass(frozen=True)
class ImagesConfig(Evaluation):
  """Writes WORKDIR/samples/step_########[_raw].png and prompts.json.

  Where raw weights are drawn as well ('raw': True), step_########_ema_raw.png has both
  side by side, the average on the left: a young one explains most black images.

  Attributes:
    prompts: texts, or where to take n from: 'val' (captions of that split) or
      'geneval' (evenly from evals.geneval, sharing the images that it draws).
    n: images.
    seed: of the noise.
    sample: overrides of config.sample.
  """

  kind = "images"

  prompts: str | tuple[str, ...] = "val"
  n: int = 16
  seed: int = 0
  sample: dict[str, Any] = dataclasses.field(default_factory=dict)

  def check(self, name):
    rules.positive(self, name, "n")
    if not self.prompts:
      raise ConfigError(f"config key '{name}prompts' is empty: name texts, or 'val'")

  def make(self, net, context):
    """See Evaluation."""
    return Images(net, context, **self.arguments())


class Images:
  """See ImagesConfig."""

  def __init__(self, net, context, *, prompts, n, seed, sample):
    self.net, self.context, self.seed, self.sample = net, context, seed, sample
    self.prompts, self.pick = prompts, None
    self._ema = (-1, None)  # (step, grid)
    if isinstance(prompts, str):
      settings = {"n": n, "first": 0} if prompts == "val" else {}
      lines = samples.metadata(context, prompts, **settings)
      self.prompts = [line["prompt"] for line in lines]
      self.pick = np.linspace(0, len(lines) - 1, min(n, len(lines))).round().astype(int)

  def run(
    self, params, step: int, weights: str = "ema"
  ) -> Iterator[tuple[str, float | str]]:
    """Writes the grid; yields nothing but the time that drawing took."""
    images, timing = samples.draw(
      self.net,
      self.context,
      params,
      step,
      self.prompts,
      seed=self.seed,
      **self.sample,
    )
    pick = range(len(images)) if self.pick is None else self.pick
    if jax.process_index():
      return
    folder = self.context.workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}{'_raw' * (weights == 'raw')}.png"
    drawn = grid(images[np.asarray(pick)])
    Image.fromarray(drawn).save(path)
    if weights == "ema":
      self._ema = step, drawn
    elif self._ema[0] == step:
      both = grid(np.stack([self._ema[1], drawn]), columns=2, gap=8)
      Image.fromarray(both).save(folder / f"step_{step:08d}_ema_raw.png")
    named = [self.prompts[i] for i in pick]
    files.write_json(folder / "prompts.json", named)
    yield from timing.items()
