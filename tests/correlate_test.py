"""analysis.correlate against known values and by simulation."""

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.curves.correlate import correlate_points


def test_perfect_and_monotone():
  x = np.arange(1.0, 7)
  assert correlate_points(x, 3 - 2 * x).r == pytest.approx(-1)
  c = correlate_points(x, np.exp(x))
  assert c.rho == pytest.approx(1) and c.r < 0.95


def test_fisher_interval_by_hand():
  # r = 0.5, n = 28: z = 0.5493, se = 0.2
  rng = np.random.default_rng(0)
  x, e = rng.normal(size=(2, 28))
  x -= x.mean()
  e -= e.mean()
  e -= x * (e @ x) / (x @ x)
  y = 0.5 * x / np.linalg.norm(x) + np.sqrt(0.75) * e / np.linalg.norm(e)
  c = correlate_points(x, y)
  assert c.r == pytest.approx(0.5)
  assert c.r_interval == pytest.approx((0.1560, 0.7357), abs=2e-4)


@pytest.mark.parametrize("method, studies", [("fisher", 400), ("bootstrap", 40)])
def test_intervals_cover(method, studies):
  rng = np.random.default_rng(1)
  hits = 0
  for seed in range(studies):
    x, e = rng.normal(size=(2, 30))
    lo, hi = correlate_points(x, 0.6 * x + 0.8 * e, method=method, seed=seed).r_interval
    hits += lo <= 0.6 <= hi
  assert 0.85 <= hits / studies <= 0.99


def test_bootstrap_repeats_by_seed():
  rng = np.random.default_rng(2)
  x, y = rng.normal(size=(2, 12))
  one, two = (correlate_points(x, y, method="bootstrap", seed=4) for _ in range(2))
  assert one == two
  assert one != correlate_points(x, y, method="bootstrap", seed=5)


def test_tables_with_missing_values():
  table = pd.DataFrame({"a": [1, 2, 3, 4, None], "b": [2, 4, 6, 8, 1]})
  assert analysis.correlate(table, x="a", y="b").n == 4
  assert "no c in the table" in analysis.correlate(table, x="a", y="c").refused
  assert "2 runs" in analysis.correlate(table[:2], x="a", y="b").refused
  flat = table.assign(b=1)
  assert "does not vary" in analysis.correlate(flat, x="a", y="b").reading
