"""Sizes around the compute-optimal one of every budget.

  python -m analysis.plan --workdir analysis/results/toy_study --cell \\
    discrete-raster --around 6e4 --budget 4.64e11 --budget 1e12 --budget 2.15e12 \\
    --budget 4.64e12 --spacing 1.6 --config configs/toy_loss.py --override batch=32 \\
    --override accum=1 --override tokenizer.path=configs/tokenizers/shapes32-vq \\
    --sweep configs/sweeps/toy_budgets.py
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
    7639,
    153,
  ),
  (
    "discrete-raster-3.81e04-4.64e11",
    "discrete-raster",
    "3.81e+04",
    1,
    20,
    1,
    4129,
    83,
  ),
  ("discrete-raster-5.9e04-4.64e11", "discrete-raster", "5.9e+04", 1, 28, 1, 2651, 53),
  (
    "discrete-raster-8.77e04-4.64e11",
    "discrete-raster",
    "8.77e+04",
    2,
    32,
    2,
    1773,
    35,
  ),
  ("discrete-raster-1.65e05-4.64e11", "discrete-raster", "1.65e+05", 2, 48, 2, 937, 19),
  ("discrete-raster-3.81e04-1e12", "discrete-raster", "3.81e+04", 1, 20, 1, 8898, 178),
  ("discrete-raster-5.9e04-1e12", "discrete-raster", "5.9e+04", 1, 28, 1, 5714, 114),
  ("discrete-raster-8.77e04-1e12", "discrete-raster", "8.77e+04", 2, 32, 2, 3822, 76),
  ("discrete-raster-1.23e05-1e12", "discrete-raster", "1.23e+05", 2, 40, 2, 2705, 54),
  ("discrete-raster-2.1e05-1e12", "discrete-raster", "2.1e+05", 2, 56, 2, 1555, 31),
  (
    "discrete-raster-4.81e04-2.15e12",
    "discrete-raster",
    "4.81e+04",
    1,
    24,
    1,
    15107,
    302,
  ),
  (
    "discrete-raster-8.77e04-2.15e12",
    "discrete-raster",
    "8.77e+04",
    2,
    32,
    2,
    8217,
    164,
  ),
  (
    "discrete-raster-1.23e05-2.15e12",
    "discrete-raster",
    "1.23e+05",
    2,
    40,
    2,
    5817,
    116,
  ),
  (
    "discrete-raster-2.01e05-2.15e12",
    "discrete-raster",
    "2.01e+05",
    3,
    48,
    2,
    3490,
    70,
  ),
  (
    "discrete-raster-3.29e05-2.15e12",
    "discrete-raster",
    "3.29e+05",
    3,
    64,
    2,
    2123,
    42,
  ),
  (
    "discrete-raster-7.2e04-4.64e12",
    "discrete-raster",
    "7.2e+04",
    2,
    28,
    1,
    21660,
    433,
  ),
  (
    "discrete-raster-1.23e05-4.64e12",
    "discrete-raster",
    "1.23e+05",
    2,
    40,
    2,
    12553,
    251,
  ),
  (
    "discrete-raster-2.02e05-4.64e12",
    "discrete-raster",
    "2.02e+05",
    3,
    48,
    2,
    7597,
    152,
  ),
  (
    "discrete-raster-3.29e05-4.64e12",
    "discrete-raster",
    "3.29e+05",
    3,
    64,
    2,
    4581,
    92,
  ),
  (
    "discrete-raster-4.87e05-4.64e12",
    "discrete-raster",
    "4.87e+05",
    3,
    80,
    2,
    3096,
    62,
  ),
]


def sweep():
  yield from grids.runs(
    "configs/toy_loss.py",
    POINTS,
    {"batch": 32, "accum": 1, "tokenizer.path": "configs/tokenizers/shapes32-vq"},
  )
