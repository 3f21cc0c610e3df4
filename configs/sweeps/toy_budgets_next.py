"""Sizes around the compute-optimal one of every budget.

  python -m analysis.plan --workdir analysis/results/toy_budgets --budget 2e12 \\
    --sizes 3 --spacing 1.7 --config configs/toy_loss.py --sweep \\
    configs/sweeps/toy_budgets_next.py --predict \\
    analysis/results/toy_budgets/prediction.json
"""

from configs import grids

# name, cell, size, layers, width, heads, steps, warmup
POINTS = [
  ("discrete-raster-3.11e04-2e12", "discrete-raster", "3.11e+04", 1, 16, 1, 24933, 828),
  ("discrete-raster-4.95e04-2e12", "discrete-raster", "4.95e+04", 1, 24, 1, 14616, 484),
  ("discrete-raster-8.84e04-2e12", "discrete-raster", "8.84e+04", 2, 32, 2, 7660, 261),
]


def sweep():
  yield from grids.runs("configs/toy_loss.py", POINTS)
