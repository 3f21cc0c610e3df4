"""The best sampling options of a checkpoint, found with part of a grid's images.

The paper chose guidance and temperature for each model. Successive halving (Jamieson
and Talwalkar, arXiv 1502.07943): all points of the grid are judged by few images, the
better half by twice as many, and so on to the last one by all.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fluid.errors import ConfigError

Point = dict[str, Any]


def grid(text: str) -> list[Point]:
  """'guidance=1:8:0.5,temperature=0.9,1.1,weights=ema,raw' -> all combinations.

  Raises:
    ConfigError: something that is no range and no list of values.
  """
  axes: dict[str, list] = {}
  name = ""
  for part in filter(None, text.split(",")):
    key, sign, value = part.partition("=")
    if sign:
      name, axes[key] = key, []
    elif not name:
      raise ConfigError(
        f"sweep '{text}' is not understood at '{part}'; write "
        "guidance=1:8:0.5,temperature=0.9,1.1"
      )
    if value or not sign:
      axes[name] += _values(value if sign else part, text)
  if not axes or not all(axes.values()):
    raise ConfigError(f"sweep '{text}' has no values; write guidance=1:8:0.5")
  return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]


def _values(part: str, text: str) -> list:
  ends = part.split(":")
  try:
    numbers = [float(end) for end in ends]
  except ValueError:
    if len(ends) > 1:
      raise ConfigError(
        f"sweep '{text}': '{part}' is no range; write first:last:step"
      ) from None
    return [part]
  if len(ends) == 1:
    return [int(part)] if part.isdigit() else numbers
  good = len(ends) == 3 and np.isfinite(numbers).all() and numbers[2] > 0
  if not good or numbers[1] < numbers[0]:
    raise ConfigError(f"sweep '{text}': '{part}' is no range; write first:last:step")
  first, last, step = numbers
  count = math.floor((last - first) / step + 1e-9) + 1
  return [round(first + i * step, 10) for i in range(count)]


def evaluator(by: str) -> str:
  """Which evaluator gives the value `by`."""
  return "geneval" if by.startswith("geneval/") else "distribution"


def judged(part: Any, images: int = 0) -> tuple[int, int]:
  """Images of the last round, and the fewest that a judgement takes.

  Args:
    part: config of the evaluator.
    images: that were asked for (0: as many as `part` has).
  """
  if part.kind == "distribution":
    return images or part.examples, 2
  least = 6 * part.k  # Images of a prompt of each tag.
  return images or least * part.n, least


def drawn(points: Sequence[Point], images: int) -> int:
  """Images of a whole search, of which the last round has `images`."""
  return search(points, lambda point, n: 0.0, images).drawn


@dataclasses.dataclass(frozen=True)
class Found:
  """What a search found.

  Attributes:
    best: the point, and how it was judged by all images.
    judged: every judgement, {**point, 'images', 'value'}.
    drawn: images in all, those of every judgement.
    inside: the best is at no end of an axis that has more than two values; where it is
      at one, better ones may lie beyond.
  """

  best: Point
  value: float
  judged: list[dict]
  drawn: int
  inside: bool


def search(
  points: Sequence[Point],
  judge: Callable[[Point, int], float],
  images: int,
  *,
  lower: bool = True,
  rounds: int = 0,
  least: int = 1,
) -> Found:
  """Finds the best of `points`.

  Args:
    points: of a grid.
    judge: (point, images) -> its value by so many.
    images: of the last round; each round before it has half as many.
    lower: smaller values are better.
    rounds: (0: as many as halve the points to one, six at most).
    least: images that a judgement takes.

  Raises:
    ConfigError: there would be fewer in the first round.
  """
  rounds = rounds or min(1 + math.ceil(math.log2(len(points))), 6)
  if images >> (rounds - 1) < least:
    raise ConfigError(
      f"a sweep of {len(points)} points by {images} images begins with "
      f"{images >> (rounds - 1)}, and {least} are needed: ask for "
      f"{least << (rounds - 1)} images or fewer points"
    )
  left, judged, drawn = list(points), [], 0
  for k in range(rounds):
    n = images >> (rounds - 1 - k)
    values = []
    for point in left:
      values.append(judge(point, n))
      judged.append({**point, "images": n, "value": values[-1]})
      drawn += n
    order = np.argsort(values if lower else [-v for v in values], kind="stable")
    keep = len(left) if k == rounds - 1 else max(1, math.ceil(len(left) / 2))
    left = [left[i] for i in order[:keep]]
    best, value = left[0], values[order[0]]
  return Found(best, value, judged, drawn, _inside(best, points))


def _inside(best: Point, points: Sequence[Point]) -> bool:
  for name, value in best.items():
    axis = list(dict.fromkeys(p[name] for p in points))
    numbers = all(isinstance(v, int | float) for v in axis)
    if numbers and len(axis) > 2 and value in (min(axis), max(axis)):
      return False
  return True
