"""What evaluators share: the base of their configs, and what they need but a net."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import jax

from fluid import config
from fluid.parallel import distributed


class Evaluator(Protocol):
  """Measures parameters; made once, run at many steps."""

  def run(
    self, params: Any, step: int, weights: str = "ema"
  ) -> Iterator[tuple[str, float | str]]: ...


@dataclasses.dataclass(frozen=True)
class Evaluation(config.Part):
  """What every evaluator's config has.

  Attributes:
    every: steps between two evaluations (None: as config.eval_every says).
    raw: measure the raw weights beside the averaged ones.
  """

  every: int | None = None
  raw: bool = False

  def arguments(self) -> dict[str, Any]:
    """What the evaluator itself is made with."""
    return {k: v for k, v in vars(self).items() if k not in ("every", "raw")}

  def said(self) -> dict[str, Any]:
    """What records of its numbers say of these settings, JSON-able.

    Its seed as 'noise_seed': bootstraps have one of their own.
    """
    found = {k: v for k, v in self.arguments().items() if k not in ("seed", "sample")}
    return found | ({"noise_seed": self.seed} if hasattr(self, "seed") else {})

  def make(self, net, context: "EvalContext") -> Evaluator:
    """The evaluator; ConfigError for arguments that cannot be used here."""
    raise NotImplementedError


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
    records: what metrics say of their numbers, JSON-able; evaluators add to it.
    drawn, compiled: what was drawn last, which evaluators share, and the settings that
      samplers are compiled for (fluid.evals.samples.draw).
  """

  run: config.Run
  tokenizer: Any
  vocabulary: Any
  mesh: jax.sharding.Mesh
  workdir: pathlib.Path
  loader: Callable[[str, int], Iterable[dict]]
  track: Callable[..., Iterator] = distributed.track
  records: list[dict] = dataclasses.field(default_factory=list, repr=False)
  drawn: list = dataclasses.field(default_factory=list, repr=False)
  compiled: set = dataclasses.field(default_factory=set, repr=False)

  def __post_init__(self):
    self.workdir = pathlib.Path(self.workdir)
