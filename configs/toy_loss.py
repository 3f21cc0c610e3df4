"""configs/toy.py with validation loss as its one evaluation: for studies of budgets."""

import ml_collections

from configs import toy


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The arguments of configs/toy.py."""
  run = toy.get_config(arg)
  run.evals = {"loss": run.evals.loss}
  return run
