"""Base of every trunk's config, and of those whose trunk is stacks of blocks."""

import dataclasses
from typing import Any, ClassVar

from flax import linen as nn

from fluid import config
from fluid.config import rules
from fluid.models import attention
from fluid.models.stack import Stack
from fluid.models.style import Style
from fluid.tokenizers.base import TokenSpec

PLAIN = Style()


@dataclasses.dataclass(frozen=True)
class Trunk(config.Part):
  """See fluid.models.trunks.

  Attributes:
    width: D, of what it takes from and gives to head and condition.
    heads: of attention.
    PARAMETERS: (pattern of a name, whether weights decay, component) of its own.
    DECAYS: pattern of names of other parts' parameters that decay beside this trunk.
    MATRICES: (pattern, axes of the inputs, axes of the outputs) of those that are
      matrices, one for each index of their other axes: what Muon works on.
    follows: patterns of orders whose plans it can follow.
    reads: of a condition's Cond, the field that it needs.
    skips: whether slots that do not show their token cost it less (Plan.most).
  """

  PARAMETERS: ClassVar[tuple] = ()
  DECAYS: ClassVar[str] = ""
  MATRICES: ClassVar[tuple] = ()
  follows: ClassVar[tuple[str, ...]] = ("next", "masked")
  reads: ClassVar[str] = "tokens"
  skips: ClassVar[bool] = False

  width: int = 768
  heads: int = 12

  def check(self, name: str) -> None:
    rules.positive(self, name, "width", "heads")
    rules.multiple(f"{name}width", self.width, f"{name}heads", self.heads)

  def stack(self, layers: int) -> Stack:
    """Blocks of this width that a condition may put beside the trunk."""
    return Stack(layers, self.width, self.heads, 4 * self.width, PLAIN)

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


@dataclasses.dataclass(frozen=True)
class Blocks(Trunk):
  """A trunk that is made of stacks of blocks.

  Attributes:
    layers: of the stack.
    attention: kernel: 'xla', 'splash' (TPU), 'cudnn' (GPU), or 'auto' by the platform.
    remat: 'none', 'block' (save only block inputs) or 'dots' (save matmul outputs).
    scan: scan over layers (one compiled block) instead of unrolling them.
  """

  layers: int = 12
  attention: str = config.free("auto")
  remat: str = config.free("block")
  scan: bool = config.free(True)

  def check(self, name):
    super().check(name)
    rules.positive(self, name, "layers")
    rules.choice(f"{name}attention", self.attention, attention.KERNELS)
    rules.choice(f"{name}remat", self.remat, ("none", "block", "dots"))

  @property
  def hidden(self) -> int:
    """Width of the MLPs."""
    return 4 * self.width

  @property
  def style(self) -> Style:
    """Of its blocks."""
    return PLAIN

  def on(self, platform, dtype):
    """With the kernel that 'auto' stands for on a platform."""
    kernel = attention.choose(self.attention, platform, self.width // self.heads, dtype)
    return dataclasses.replace(self, attention=kernel)

  def plain(self):
    """See Trunk."""
    return dataclasses.replace(self, attention="xla", remat="none")

  def stack(self, layers, style=PLAIN, *, final=True):
    """Blocks of this width; by default such as a condition may put beside the trunk."""
    return Stack(
      layers,
      self.width,
      self.heads,
      self.hidden,
      style,
      scan=self.scan,
      remat=self.remat,
      kernel=self.attention,
      final=final,
    )


@dataclasses.dataclass(frozen=True)
class Dropping(Blocks):
  """One whose blocks drop what they add and attention's weights in training.

  Attributes:
    hidden_width: of the MLPs (0: 4 x width).
    dropout, attention_dropout: see Style; the first may be of embeddings, or inside
      the MLPs, as well.
  """

  hidden_width: int = 0
  dropout: float = 0.1
  attention_dropout: float = 0.1

  def check(self, name):
    super().check(name)
    for field in ("dropout", "attention_dropout"):
      rules.share(f"{name}{field}", getattr(self, field), open_end=True)

  @property
  def hidden(self):
    """See Blocks."""
    return self.hidden_width or super().hidden
