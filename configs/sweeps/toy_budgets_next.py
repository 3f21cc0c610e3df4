"""Sizes around the compute-optimal one of every budget.

  python -m analysis.plan --workdir analysis/results/toy_budgets --budget 2e12 \\
    --sizes 3 --spacing 1.7 --config configs/toy_loss.py --sweep \\
    configs/sweeps/toy_budgets_next.py --predict \\
    analysis/results/toy_budgets/prediction.json
"""

POINTS = [
  dict(
    name="discrete-raster-3.11e04-2e12",
    config="configs/toy_loss.py:tokens=discrete,order=raster",
    overrides={
      "model.size": "3.11e+04",
      "model.layers": 1,
      "model.width": 16,
      "model.heads": 1,
      "steps": 24933,
      "eval_every": 6233,
      "checkpoint_every": 6233,
      "optim.warmup": 828,
    },
  ),
  dict(
    name="discrete-raster-4.95e04-2e12",
    config="configs/toy_loss.py:tokens=discrete,order=raster",
    overrides={
      "model.size": "4.95e+04",
      "model.layers": 1,
      "model.width": 24,
      "model.heads": 1,
      "steps": 14616,
      "eval_every": 3654,
      "checkpoint_every": 3654,
      "optim.warmup": 484,
    },
  ),
  dict(
    name="discrete-raster-8.84e04-2e12",
    config="configs/toy_loss.py:tokens=discrete,order=raster",
    overrides={
      "model.size": "8.84e+04",
      "model.layers": 2,
      "model.width": 32,
      "model.heads": 2,
      "steps": 7660,
      "eval_every": 1915,
      "checkpoint_every": 1915,
      "optim.warmup": 261,
    },
  ),
]


def sweep():
  yield from POINTS
