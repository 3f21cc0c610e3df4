"""MaskGIT's trunk (Chang et al. 2022, arXiv 2202.04200): BERT, the class in front.

B batch, L image tokens, D width.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from fluid.config import rules
from fluid.models import dropout, layers
from fluid.models import rows as passes_of
from fluid.models.plan import Plan
from fluid.models.stack import matrices, parameters
from fluid.models.style import Given, Style
from fluid.models.trunks.base import Dropping
from fluid.tokenizers.base import TokenSpec

_NORMS = "norm_in|norm_out"


@dataclasses.dataclass(frozen=True)
class MaskGITConfig(Dropping):
  """Post-norm blocks, and a transform before the logits.

  Attributes:
    epsilon: of the norms.
  """

  kind = "maskgit"
  follows = ("masked",)
  reads = "vector"
  PARAMETERS = (
    *parameters("trunk"),
    (r"transform/w", True, "core"),
    (rf"transform/b|({_NORMS})/(bias|scale)", False, "core"),
    (r"(fill|pos)/w", False, "embeddings"),
  )
  MATRICES = matrices("trunk")

  epsilon: float = 1e-12

  def check(self, name):
    super().check(name)
    rules.positive(self, name, "epsilon")

  @property
  def style(self):
    """See Blocks."""
    return Style(
      epsilon=self.epsilon,
      post=True,
      dropout=self.dropout,
      attention_dropout=self.attention_dropout,
    )

  def module(self, model, spec):
    """See fluid.models.trunks."""
    del model
    return MaskGITTrunk(self, spec)


class MaskGITTrunk(nn.Module):
  """See MaskGITConfig."""

  cfg: MaskGITConfig
  spec: TokenSpec

  def setup(self):
    n, d, c = self.spec.length, self.cfg.width, self.cfg
    self.fill = layers.Table((d,), (None,))
    self.pos = layers.Table((1 + n, d), (None, None))
    self.norm_in = layers.Norm(epsilon=c.epsilon)
    self.trunk = c.stack(c.layers, c.style, final=False)
    self.transform = layers.Linear((d,), (d,), (None, "embed"))
    self.norm_out = layers.Norm(epsilon=c.epsilon)

  def start(self, cond, length: int = 0):
    """See fluid.models.trunks: nothing is kept, as all positions change."""
    del cond, length
    return {}

  def __call__(self, x, plan: Plan, cond, kept=None, at=None, keys=None):
    """See fluid.models.trunks."""
    x = plan.show(x, self.fill())
    vector = passes_of.like(cond.vector, x)
    x = jnp.concatenate([vector[:, None].astype(x.dtype), x], 1)
    x = self.norm_in(x + self.pos().astype(x.dtype))
    x = dropout.dropout(x, keys, self.cfg.dropout)
    z, _ = self.trunk(x, Given(keys=keys), at=None if at is None else 1 + at)
    z = z[:, 1:] if at is None else z
    return self.norm_out(nn.gelu(self.transform(z))), kept
