"""Is the toy study's rate the right one at every width? Four cells, s and l.

Half of it, all of it, twice and four times it, for a fifth of the study's steps:

  python -m launch.sweep --config configs/sweeps/toy_rates.py --workdir runs/rates \
    --on local --jobs 2
"""

import itertools

from configs import toy

FACTORS = (0.5, 1.0, 2.0, 4.0)


def sweep():
  for size, factor in itertools.product(("s", "l"), FACTORS):
    rates = {"optim.lr": 2e-3 * factor, "optim.muon": 5e-3 * factor, "optim.ema": 0.995}
    short = {"steps": 2000, "eval_every": 500, "checkpoint_every": 1000}
    yield from toy.cells(
      (size,), rates | short, suffix=f"-x{factor:g}", file="configs/toy_loss.py"
    )
