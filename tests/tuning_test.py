"""The search over sampling options: its grid, and how few images it needs."""

import numpy as np
import pytest

from fluid.errors import ConfigError
from fluid.evals import tuning


def test_grid():
  points = tuning.grid("guidance=1:2:0.5,temperature=0.9,1,weights=ema,raw")
  assert len(points) == 3 * 2 * 2
  assert points[0] == {"guidance": 1.0, "temperature": 0.9, "weights": "ema"}
  assert points[-1] == {"guidance": 2.0, "temperature": 1, "weights": "raw"}
  assert [p["t"] for p in tuning.grid("t=0.9:1.1:0.025")][-1] == 1.1
  for text, said in (
    ("", "no values"),
    ("3,guidance=1", "not understood at '3'"),
    ("guidance=1:2", "first:last:step"),
    ("guidance=2:1:1", "first:last:step"),
    ("guidance=1:inf:1", "'1:inf:1' is no range"),
    ("guidance=a:b:c", "'a:b:c' is no range"),
    ("guidance=", "no values"),
  ):
    with pytest.raises(ConfigError, match=said):
      tuning.grid(text)


@pytest.mark.parametrize("lower", [True, False])
def test_the_best_is_found_with_half_of_the_images(lower):
  """Of a noisy parabola, whose noise falls with the number of images."""
  points = tuning.grid("guidance=1:8:0.5")
  sign, asked = (1 if lower else -1), []

  def judge(point, n):
    asked.append((point["guidance"], n))
    noise = np.random.default_rng([int(10 * point["guidance"]), n]).normal()
    return sign * ((point["guidance"] - 4) ** 2 + noise / np.sqrt(n))

  found = tuning.search(points, judge, 512, lower=lower)
  assert abs(found.best["guidance"] - 4) <= 0.5 and found.inside
  assert found.value == found.judged[[
    (j["guidance"], j["images"]) for j in found.judged
  ].index((found.best["guidance"], 512))]["value"]  # fmt: skip
  assert found.drawn <= 0.5 * 512 * len(points)
  assert found.drawn == sum(n for _, n in asked)
  assert {g for g, _ in asked} == {p["guidance"] for p in points}


def test_an_end_of_an_axis_is_not_inside():
  points = tuning.grid("guidance=1:4:1,weights=ema,raw")
  found = tuning.search(points, lambda p, n: p["guidance"] + (p["weights"] == "ema"), 8)
  assert found.best == {"guidance": 1.0, "weights": "raw"} and not found.inside
