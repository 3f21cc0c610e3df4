"""Evaluators: what is measured of a checkpoint, by name in config.evals.

  evaluator = config.evals[name].make(net, context)
  for name, value in evaluator.run(params, step): ...

`run` takes parameters and yields numbers or strings under the names they have in
metrics.jsonl; `weights` says whether they are the average ('ema') or 'raw', which
matters to what is written to files. A new evaluator is one file, with its config, and
one row of EVALS.
"""

from typing import Any

from fluid.evals.base import EvalContext, Evaluation, Evaluator
from fluid.evals.distribution import DistributionConfig, ReconstructionConfig
from fluid.evals.geneval.evaluator import GenEvalConfig
from fluid.evals.images import ImagesConfig
from fluid.evals.loss import LikelihoodConfig, LossConfig

EVALS: dict[str, Any] = {
  "loss": LossConfig,
  "likelihood": LikelihoodConfig,
  "images": ImagesConfig,
  "geneval": GenEvalConfig,
  "distribution": DistributionConfig,
  "reconstruction": ReconstructionConfig,
}

__all__ = ["EVALS", "EvalContext", "Evaluation", "Evaluator", "make"]


def make(net, context: EvalContext) -> dict[str, Evaluator]:
  """The evaluators of context.run.evals, by name."""
  return {k: part.make(net, context) for k, part in context.run.evals.items()}
