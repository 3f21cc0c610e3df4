"""Sizes around the compute-optimal one of every budget.

  python -m analysis.plan --workdir analysis/results/toy_budgets --budget 8e12 \\
    --sizes 1 --config configs/toy_loss.py --override batch=32 --override accum=1 \\
    --override tokenizer.path=configs/tokenizers/shapes32-vq --sweep \\
    configs/sweeps/toy_budgets_next.py --predict \\
    analysis/results/toy_budgets/prediction.json
"""

from configs import grids

# name, cell, size, layers, width, heads, steps, warmup
POINTS = [
  ("discrete-raster-3.29e05-8e12", "discrete-raster", "3.29e+05", 3, 64, 2, 7898, 156),
]


def sweep():
  yield from grids.runs(
    "configs/toy_loss.py",
    POINTS,
    {"batch": 32, "accum": 1, "tokenizer.path": "configs/tokenizers/shapes32-vq"},
  )
