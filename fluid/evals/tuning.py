"""The best sampling options of a checkpoint, found with part of a grid's images.

The paper chose guidance and temperature for each model. Successive halving (Jamieson
and Talwalkar, arXiv 1502.07943): all points of the grid are judged by few images, the
better half by twice as many, and so on to the last ones by all. Images of a point are
the first ones of any larger number, and are not drawn again.
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
  if len(ends) != 3 or numbers[2] <= 0 or numbers[1] < numbers[0]:
    raise ConfigError(f"sweep '{text}': '{part}' is no range; write first:last:step")
  first, last, step = numbers
  count = math.floor((last - first) / step + 1e-9) + 1
  return [round(first + i * step, 10) for i in range(count)]


@dataclasses.dataclass(frozen=True)
class Found:
  """What a search found.

  Attributes:
    best: the point, and how it was judged by all images.
    judged: every judgement, {**point, 'images', 'value'}.
    drawn: images in all.
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
) -> Found:
  """Finds the best of `points`.

  Args:
    points: of a grid.
    judge: (point, images) -> its value by so many.
    images: of the last round; each round before it has half as many.
    lower: smaller values are better.
    rounds: (0: as many as halve the points to one or two, five at most).
  """
  rounds = rounds or min(max(1, math.ceil(math.log2(len(points)))), 5)
  left, judged, drawn = list(points), [], 0
  seen: dict[int, int] = {}
  for k in range(rounds):
    n = max(1, images >> (rounds - 1 - k))
    values = []
    for point in left:
      values.append(judge(point, n))
      judged.append({**point, "images": n, "value": values[-1]})
      i = points.index(point)
      drawn += n - seen.get(i, 0)
      seen[i] = n
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
