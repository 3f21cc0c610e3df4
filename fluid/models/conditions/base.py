"""What every condition gives a trunk, and the base of its config."""

import dataclasses
from typing import ClassVar

import jax
from flax import linen as nn
from flax import struct

from fluid import config
from fluid.config import rules


@struct.dataclass
class Cond:
  """A trunk takes what it can use: cross-attention or a prefix, or AdaLN.

  Attributes:
    tokens: [B, T, D].
    mask: [B, T], True where there is a token; every row has one.
    vector: [B, D].
  """

  tokens: jax.Array
  mask: jax.Array
  vector: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Condition(config.Part):
  """See fluid.models.conditions.

  Attributes:
    drop: share of examples trained with the null condition, for guidance.
    texts: kinds of text encoder it takes.
    gives: fields of Cond that a trunk can read, beside the mask.
    PARAMETERS, MATRICES: of its own, as of a trunk.
  """

  texts: ClassVar[tuple[str, ...]] = ()
  gives: ClassVar[tuple[str, ...]] = ("tokens",)
  PARAMETERS: ClassVar[tuple] = ()
  MATRICES: ClassVar[tuple] = ()

  drop: float = 0.1

  @property
  def null(self) -> bool:
    """Whether it has a null condition, for guidance."""
    return True

  def check(self, name: str) -> None:
    rules.share(f"{name}drop", self.drop, open_end=True)

  def module(self, model: config.Model, text: config.Part, vocab: int) -> nn.Module:
    """See fluid.models.conditions."""
    raise NotImplementedError
