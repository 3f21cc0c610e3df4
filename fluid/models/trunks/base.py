"""Base of every trunk's config."""

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn

from fluid import config
from fluid.config import rules
from fluid.models.stack import Stack
from fluid.tokenizers.base import TokenSpec


@dataclasses.dataclass(frozen=True)
class Trunk(config.Part):
  """See fluid.models.trunks.

  Attributes:
    width: D, of what it takes from and gives to head and condition.
    heads: of attention.
    PARAMETERS: (pattern of a name, whether weights decay, component) of its own.
    MATRICES: (pattern, axes of the inputs, axes of the outputs) of those that are
      matrices, one for each index of their other axes: what Muon works on.
  """

  PARAMETERS: ClassVar[tuple] = ()
  MATRICES: ClassVar[tuple] = ()

  width: int = 768
  heads: int = 12

  def check(self, name: str) -> None:
    rules.positive(self, name, "width", "heads")
    rules.multiple(f"{name}width", self.width, f"{name}heads", self.heads)

  def stack(self, layers: int, *, cross: bool = False) -> Stack:
    """Blocks of this width that a condition may put beside the trunk."""
    return Stack(layers, self.width, self.heads, 4 * self.width, cross=cross)

  def on(self, platform: str, dtype: str) -> "Trunk":
    """As it is run on a platform with activations of a type."""
    del platform, dtype
    return self

  def plain(self) -> "Trunk":
    """Without kernels that hide their products, and without recomputation."""
    return self

  def initial(self, params: Any) -> Any:
    """The whole net's initial parameters, where it has a say in them."""
    return params

  def module(self, model: config.Model, spec: TokenSpec) -> nn.Module:
    """See fluid.models.trunks."""
    raise NotImplementedError
