"""Sizes around the compute-optimal one of every budget.

  python -m analysis.plan --workdir analysis/results/toy_study --cell \\
    discrete-raster --around 1e5 --budget 1e11 --budget 2.15e11 --budget 4.64e11 \\
    --budget 1e12 --spacing 1.8 --config configs/toy_loss.py --sweep \\
    configs/sweeps/toy_budgets.py
"""

from configs import grids

# name, cell, size, layers, width, heads, steps, warmup
POINTS = [
  ("discrete-raster-2.9e04-1e11", "discrete-raster", "2.9e+04", 1, 16, 1, 1174, 39),
  ("discrete-raster-5.9e04-1e11", "discrete-raster", "5.9e+04", 1, 28, 1, 571, 19),
  ("discrete-raster-8.77e04-1e11", "discrete-raster", "8.77e+04", 2, 32, 2, 382, 13),
  ("discrete-raster-1.65e05-1e11", "discrete-raster", "1.65e+05", 2, 48, 3, 202, 7),
  ("discrete-raster-3.29e05-1e11", "discrete-raster", "3.29e+05", 3, 64, 2, 99, 3),
  (
    "discrete-raster-4.81e04-2.15e11",
    "discrete-raster",
    "4.81e+04",
    1,
    24,
    1,
    1511,
    50,
  ),
  ("discrete-raster-8.77e04-2.15e11", "discrete-raster", "8.77e+04", 2, 32, 2, 822, 27),
  ("discrete-raster-1.5e05-2.15e11", "discrete-raster", "1.5e+05", 3, 40, 2, 478, 16),
  ("discrete-raster-2.61e05-2.15e11", "discrete-raster", "2.61e+05", 3, 56, 2, 268, 9),
  ("discrete-raster-4.87e05-2.15e11", "discrete-raster", "4.87e+05", 3, 80, 2, 143, 5),
  ("discrete-raster-7.2e04-4.64e11", "discrete-raster", "7.2e+04", 2, 28, 1, 2166, 72),
  (
    "discrete-raster-1.23e05-4.64e11",
    "discrete-raster",
    "1.23e+05",
    2,
    40,
    2,
    1255,
    42,
  ),
  ("discrete-raster-2.1e05-4.64e11", "discrete-raster", "2.1e+05", 2, 56, 2, 722, 24),
  ("discrete-raster-4.04e05-4.64e11", "discrete-raster", "4.04e+05", 3, 72, 2, 372, 12),
  ("discrete-raster-6.75e05-4.64e11", "discrete-raster", "6.75e+05", 3, 96, 3, 222, 7),
  ("discrete-raster-8.77e04-1e12", "discrete-raster", "8.77e+04", 2, 32, 2, 3822, 127),
  ("discrete-raster-1.65e05-1e12", "discrete-raster", "1.65e+05", 2, 48, 3, 2020, 67),
  ("discrete-raster-3.29e05-1e12", "discrete-raster", "3.29e+05", 3, 64, 2, 987, 33),
  ("discrete-raster-5.31e05-1e12", "discrete-raster", "5.31e+05", 3, 84, 3, 611, 20),
  ("discrete-raster-1.03e06-1e12", "discrete-raster", "1.03e+06", 4, 108, 3, 315, 10),
]


def sweep():
  yield from grids.runs("configs/toy_loss.py", POINTS)
