"""Sizes around the compute-optimal one of every budget.

  python -m analysis.plan --workdir analysis/results/toy_study --cell \\
    discrete-raster --around 7e4 --budget 4.64e11 --budget 1e12 --budget 2.15e12 \\
    --budget 4.64e12 --spacing 1.7 --config configs/toy_loss.py --sweep \\
    configs/sweeps/toy_budgets.py
"""

from configs import grids

# name, cell, size, layers, width, heads, steps, warmup
POINTS = [
  (
    "discrete-raster-2.08e04-4.64e11",
    "discrete-raster",
    "2.08e+04",
    1,
    12,
    1,
    1910,
    38,
  ),
  (
    "discrete-raster-3.81e04-4.64e11",
    "discrete-raster",
    "3.81e+04",
    1,
    20,
    1,
    1032,
    21,
  ),
  ("discrete-raster-7.2e04-4.64e11", "discrete-raster", "7.2e+04", 2, 28, 1, 542, 11),
  ("discrete-raster-1.23e05-4.64e11", "discrete-raster", "1.23e+05", 2, 40, 2, 314, 6),
  ("discrete-raster-2.01e05-4.64e11", "discrete-raster", "2.01e+05", 3, 48, 2, 188, 4),
  ("discrete-raster-3.81e04-1e12", "discrete-raster", "3.81e+04", 1, 20, 1, 2225, 44),
  ("discrete-raster-5.9e04-1e12", "discrete-raster", "5.9e+04", 1, 28, 1, 1429, 29),
  ("discrete-raster-1.05e05-1e12", "discrete-raster", "1.05e+05", 3, 32, 2, 799, 16),
  ("discrete-raster-1.65e05-1e12", "discrete-raster", "1.65e+05", 2, 48, 2, 505, 10),
  ("discrete-raster-3.29e05-1e12", "discrete-raster", "3.29e+05", 3, 64, 2, 247, 5),
  (
    "discrete-raster-4.81e04-2.15e12",
    "discrete-raster",
    "4.81e+04",
    1,
    24,
    1,
    3777,
    76,
  ),
  (
    "discrete-raster-8.77e04-2.15e12",
    "discrete-raster",
    "8.77e+04",
    2,
    32,
    2,
    2054,
    41,
  ),
  (
    "discrete-raster-1.65e05-2.15e12",
    "discrete-raster",
    "1.65e+05",
    2,
    48,
    2,
    1086,
    22,
  ),
  ("discrete-raster-2.61e05-2.15e12", "discrete-raster", "2.61e+05", 3, 56, 2, 670, 13),
  ("discrete-raster-4.04e05-2.15e12", "discrete-raster", "4.04e+05", 3, 72, 2, 431, 9),
  ("discrete-raster-7.2e04-4.64e12", "discrete-raster", "7.2e+04", 2, 28, 1, 5415, 108),
  (
    "discrete-raster-1.23e05-4.64e12",
    "discrete-raster",
    "1.23e+05",
    2,
    40,
    2,
    3138,
    63,
  ),
  ("discrete-raster-2.1e05-4.64e12", "discrete-raster", "2.1e+05", 2, 56, 2, 1804, 36),
  ("discrete-raster-4.04e05-4.64e12", "discrete-raster", "4.04e+05", 3, 72, 2, 930, 19),
  ("discrete-raster-6.75e05-4.64e12", "discrete-raster", "6.75e+05", 3, 96, 3, 556, 11),
]


def sweep():
  yield from grids.runs("configs/toy_loss.py", POINTS)
