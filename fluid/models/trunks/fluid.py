"""Fluid's trunk: one transformer for all cells (arXiv 2410.13863).

B batch, L image tokens, S slots, M slots of a step, D width.

One learned vector, `fill`, is the start token (raster) or the mask token (random), so
both orders have the same parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid import config
from fluid.config import rules
from fluid.models import layers
from fluid.models.plan import Plan, rows
from fluid.models.stack import matrices, parameters
from fluid.models.style import Given, Style
from fluid.models.trunks.base import Blocks
from fluid.tokenizers.base import TokenSpec


@dataclasses.dataclass(frozen=True)
class FluidConfig(Blocks):
  """One stack of pre-norm blocks: self-attention, cross-attention to the text, MLP.

  Attributes:
    mlp_ratio: hidden width of the MLP over the width.
    residual_init: factor on the initial weights of what writes to the residual stream
      (attention outputs, second MLP layers); 1 is MAR, 0.1 starts nearer to identity.
  """

  kind = "fluid"
  PARAMETERS = (
    *parameters("trunk"),
    (r"(fill|pos|pos_out)/w|norm_in/(bias|scale)", False, "embeddings"),
  )

  MATRICES = matrices("trunk")

  mlp_ratio: int = 4
  residual_init: float = 1.0

  def check(self, name):
    super().check(name)
    rules.positive(self, name, "mlp_ratio")

  @property
  def hidden(self):
    """See Blocks."""
    return self.mlp_ratio * self.width

  @property
  def style(self):
    """See Blocks."""
    return Style(cross=True)

  def initial(self, params):
    """Shrinks what writes to the residual stream, here and beside the text."""
    if self.residual_init == 1:
      return params

    def shrink(path, a):
      *_, layer, name = (k.key for k in path)
      return a * self.residual_init if layer in ("out", "down") and name == "w" else a

    blocks = {k: params[k] for k in ("trunk", "aligner") if k in params}
    return params | jax.tree_util.tree_map_with_path(shrink, blocks)

  def module(self, model: config.Model, spec: TokenSpec) -> nn.Module:
    """See fluid.models.trunks."""
    del model
    return FluidTrunk(self, spec)


class FluidTrunk(nn.Module):
  """See FluidConfig."""

  cfg: FluidConfig
  spec: TokenSpec

  def setup(self):
    n, d = self.spec.length, self.cfg.width
    self.fill = layers.Table((d,), (None,))
    self.pos = layers.Table((n, d), (None, None))
    # Positions once more where the trunk meets the head (MAR's second embedding).
    self.pos_out = layers.Table((n, d), (None, None))
    self.norm_in = layers.Norm()
    self.trunk = self.cfg.stack(self.cfg.layers, self.cfg.style)

  def start(self, cond, length: int = 0):
    """See fluid.models.trunks."""
    return self.trunk.start(cond.tokens, length)

  def __call__(self, x, plan: Plan, cond, kept=None, at=None, keys=None):
    """See fluid.models.trunks."""
    x = plan.show(x, self.fill())
    x = self.norm_in(x + rows(self.pos(), plan.targets, x.dtype))
    z, kept = self.trunk(
      x,
      Given(text=cond.tokens, text_mask=cond.mask, keys=keys),
      causal=plan.causal,
      kept=kept,
      first=plan.first,
      at=at,
    )
    targets = plan.targets if at is None else jnp.asarray(plan.targets)[at]
    return z + rows(self.pos_out(), targets, z.dtype), kept
