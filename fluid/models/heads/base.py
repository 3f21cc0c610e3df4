"""Base of every head's config."""

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn

from fluid import config
from fluid.tokenizers.base import TokenSpec


@dataclasses.dataclass(frozen=True)
class Head(config.Part):
  """See fluid.models.heads.

  Attributes:
    tokens: kind of the token space it fits, 'discrete' or 'continuous'.
    scores: it knows the probability of what it draws.
    scaled: it reads the latents of several scales in the place of tokens.
    PARAMETERS: (pattern of a name, whether weights decay, component) of its own.
    OFTEN: pattern of parameters that each token reads many times: while sampling they
      lie whole on every device.
    Draw: its options in config section 'sample'.
  """

  tokens: ClassVar[str] = ""
  scores: ClassVar[bool] = False
  scaled: ClassVar[bool] = False
  PARAMETERS: ClassVar[tuple] = ()
  OFTEN: ClassVar[str] = ""
  Draw: ClassVar[type] = config.Draw

  def check_draw(self, draw: Any, name: str) -> None:
    """Raises ConfigError for options of 'sample' that this head cannot follow."""

  def module(self, model: config.Model, spec: TokenSpec) -> nn.Module:
    """See fluid.models.heads."""
    raise NotImplementedError
