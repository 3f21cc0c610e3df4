"""What orders share: their base, what their samplers may call, stages of decoding.

B batch, L tokens, S slots, D width, M tokens decoded in one step.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

import jax

from fluid import config
from fluid.models.plan import Plan
from fluid.tokenizers.base import TokenSpec


@dataclasses.dataclass(frozen=True)
class Stage:
  """What differs between decoding steps but is compiled in.

  Attributes:
    guided: the unconditional pass runs as well.
    draw: options of the head at this step.
  """

  guided: bool
  draw: config.Draw


def stage(options: config.Sample, known: float) -> Stage:
  """The stage of a step before which the share `known` of the tokens is decoded."""
  guided = options.guidance_from <= known < options.guidance_to
  return Stage(options.guidance != 1 and guided, options.head.at(known))


class Decoding(Protocol):
  """What an order's sampler may call; condition and parameters are already inside.

  With guidance, the trunk runs on 2B rows, conditional first; tokens have B rows.
  """

  keys: jax.Array  # [B]
  length: int
  scales: Any  # Of several: the fixed part of a tokenizer, latents.Latents.

  def blank(self) -> jax.Array:
    """Tokens [B, L, ...], all zero."""

  def start(self, *, past: bool) -> Any:
    """What the trunk keeps; with `past`, room for the slots that were run."""

  def run(self, tokens, plan: Plan, kept, *, guided=True, at=None) -> tuple[Any, Any]:
    """Tokens that the plan reads [B, L or M, ...] -> trunk outputs, what is kept.

    Outputs of all slots of the plan, or of the slots `at` [B, M] alone; without
    `guided`, of the conditional rows alone.
    """

  def draw(self, z, positions, stage: Stage, *, known, decoded) -> tuple[Any, Any]:
    """Trunk outputs at positions [B, M] -> tokens [B, M, ...], scores as of a head.

    `known` and `decoded` are the shares of tokens known before and after this step, for
    the guidance schedule.
    """

  def noise(self, positions) -> jax.Array:
    """Gumbel noise of positions [B, M], beside that of their draws: [B, M]."""


@dataclasses.dataclass(frozen=True)
class Order(config.Part):
  """Base of orders; see the package's docstring.

  Attributes:
    Draw: its options in config section 'sample'.
    pattern: what its plans ask of a trunk: 'next' (causal, one token after another,
      always in one sequence), 'permuted' (causal, in any sequence), 'masked' (all see
      all, hidden tokens in their own slots) or 'scales' (causal by blocks).
  """

  Draw: ClassVar[type] = config.Draw
  pattern: ClassVar[str] = "next"

  @property
  def passes(self) -> int:
    """Plans, each a row of the trunk, that a training step draws for an example."""
    return 1

  def check_draw(self, draw: Any, name: str) -> None:
    """Raises ConfigError for options of 'sample' that this order cannot follow."""

  def likelihood(self) -> "Order":
    """The order of the same model by whose plans likelihoods are measured.

    The tokens of an image times the mean loss of those that one of its plans predicts
    must be -log p(image) in expectation, or a bound of it.

    Raises:
      ConfigError: there is none.
    """
    raise config.ConfigError(f"order '{self.kind}' has no likelihood")

  def known(self, predicted: jax.Array) -> jax.Array:
    """Outputs that a plan predicts [B, S] -> the share of tokens that each knows."""
    raise NotImplementedError

  def plan(self, keys: jax.Array, step: Any, spec: TokenSpec) -> Plan:
    """Keys [B] -> the plan of a training pass at a training step (None: evaluation)."""
    raise NotImplementedError

  def sample(self, net: Decoding, options: config.Sample) -> jax.Array:
    """-> tokens [B, L, ...]."""
    raise NotImplementedError
