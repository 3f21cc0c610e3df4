"""Evaluators: what is measured of a checkpoint, found by name in config.evals.

  evaluator = EVALS[name](net, context, **arguments)
  for name, value in evaluator.run(params, step): ...

`run` takes parameters and yields numbers or strings under the names they have in
metrics.jsonl; `weights` says whether they are the average ('ema') or 'raw', which
matters to what is written to files. A new evaluator is one file and one entry of EVALS.
"""

import dataclasses
import inspect
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax

from fluid import config
from fluid.evals.images import Images
from fluid.evals.loss import Loss
from fluid.evals.samples import Distribution, GenEval
from fluid.parallel import distributed


class Evaluator(Protocol):
  """Measures parameters; made once, run at many steps."""

  def run(
    self, params: Any, step: int, weights: str = "ema"
  ) -> Iterator[tuple[str, float | str]]: ...


EVALS: dict[str, Callable[..., Evaluator]] = {
  "loss": Loss,
  "images": Images,
  "geneval": GenEval,
  "distribution": Distribution,
}


@dataclasses.dataclass
class EvalContext:
  """What evaluators need besides the net.

  Attributes:
    run: the whole config.
    tokenizer, vocabulary: of the run.
    mesh: batches are laid out over it; it is the active mesh while `run` is iterated.
    workdir: where samples are written.
    loader: (split, global batch) -> the split's batches, this process's rows, with
      their number; each iteration is one pass.
    track: (batches, name, how many) -> the same batches: between them it says how far
      the work is, and may end it (fluid.console.progress.track).
    drawn, compiled: what was drawn last, which evaluators share, and the settings that
      samplers are compiled for (fluid.evals.samples.draw).
  """

  run: config.Run
  tokenizer: Any
  vocabulary: Any
  mesh: jax.sharding.Mesh
  workdir: pathlib.Path
  loader: Callable[[str, int], Iterable[dict]]
  track: Callable[[Iterable, str, int], Iterator] = distributed.track
  drawn: list = dataclasses.field(default_factory=list, repr=False)
  compiled: set = dataclasses.field(default_factory=set, repr=False)

  def __post_init__(self):
    self.workdir = pathlib.Path(self.workdir)


def make(net, context: EvalContext) -> dict[str, Evaluator]:
  """The evaluators of context.run.evals; 'every' and 'raw' are left to the caller.

  Raises:
    ConfigError: an evaluator or an argument that does not exist, naming what does.
  """
  out = {}
  for name, arguments in context.run.evals.items():
    if name not in EVALS:
      raise config.ConfigError(
        f"unknown config key 'evals.{name}'; choose from {', '.join(EVALS)}"
      )
    known = list(inspect.signature(EVALS[name]).parameters)[2:]
    arguments = {k: v for k, v in arguments.items() if k not in ("every", "raw")}
    for key in arguments:
      if key not in known:
        raise config.ConfigError(
          f"unknown config key 'evals.{name}.{key}'; '{name}' knows "
          f"every, raw, {', '.join(known)}"
        )
    out[name] = EVALS[name](net, context, **arguments)
  return out
