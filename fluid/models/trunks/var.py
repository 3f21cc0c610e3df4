"""VAR's trunk (Tian et al. 2024, arXiv 2404.02905): causal over scales, AdaLN.

B batch, L tokens of all scales, S slots, D width.
"""

import dataclasses

import numpy as np
from flax import linen as nn

from fluid.config import rules
from fluid.models import layers, rows
from fluid.models.block import ModulatedNorm
from fluid.models.plan import Plan
from fluid.models.stack import matrices, parameters
from fluid.models.style import MODULATIONS, Given, Style
from fluid.models.trunks.base import Blocks
from fluid.tokenizers.base import TokenSpec


@dataclasses.dataclass(frozen=True)
class VARConfig(Blocks):
  """Blocks whose attention sees the scales up to a slot's own.

  Attributes:
    unit_attention: queries and keys have length one (`attn_l2_norm`).
    shared_modulation: one projection of the class for all blocks (`shared_aln`).
    path_dropout: of the last block; it grows from 0 at the first.
  """

  kind = "var"
  follows = ("scales",)
  reads = "vector"
  PARAMETERS = (
    *parameters("trunk"),
    (r"(final/modulation|shared)/w", True, "core"),
    (r"(final/modulation|shared)/b", False, "core"),
    (r"(fill|pos|level)/w", False, "embeddings"),
  )
  DECAYS = r"label/w"
  MATRICES = matrices("trunk")

  unit_attention: bool = True
  shared_modulation: bool = False
  path_dropout: float = 0.0

  def check(self, name):
    super().check(name)
    rules.share(f"{name}path_dropout", self.path_dropout, open_end=True)

  @property
  def style(self):
    """See Blocks."""
    return Style(
      norm="plain",
      bias="not_keys",
      match="unit" if self.unit_attention else "dot",
      sharpness=1.0 if self.unit_attention else 0.25,
      modulation="shared" if self.shared_modulation else "own",
      path_dropout=self.path_dropout,
      depth=self.layers,
    )

  def module(self, model, spec):
    """See fluid.models.trunks."""
    del model
    return VARTrunk(self, spec)


class VARTrunk(nn.Module):
  """See VARConfig."""

  cfg: VARConfig
  spec: TokenSpec

  def setup(self):
    n, d, c = self.spec.length, self.cfg.width, self.cfg
    self.fill = layers.Table((d,), (None,))
    self.pos = layers.Table((n, d), (None, None))
    self.level = layers.Table((len(self.spec.scales), d), (None, None))
    self.trunk = c.stack(c.layers, c.style, final=False)
    if c.shared_modulation:
      axes = ("embed", None, None)
      self.shared = layers.Linear((d,), (MODULATIONS, d), axes)
    self.final = ModulatedNorm(d)

  def start(self, cond, length: int = 0):
    """See fluid.models.trunks."""
    return self.trunk.start(cond.vector[:, None], length) if length else {}

  def __call__(self, x, plan: Plan, cond, kept=None, at=None, keys=None):
    """See fluid.models.trunks."""
    del at  # Of causal orders, all slots that are run are wanted.
    vector = rows.like(cond.vector, x)[:, None]
    x = plan.show(x, vector + self.fill().astype(vector.dtype))
    sides = np.array(self.spec.scales)
    level = np.repeat(np.arange(len(sides)), sides**2)[plan.positions]
    x = x + (self.pos()[plan.positions] + self.level()[level]).astype(x.dtype)
    shared = self.cfg.shared_modulation
    about = self.shared(nn.silu(vector)) if shared else vector
    given = Given(vector=about, keys=keys)
    # Behind a cache all slots are of one scale, and see each other.
    z, kept = self.trunk(x, given, causal=plan.causal, kept=kept, first=plan.first)
    return self.final(z, vector), kept
