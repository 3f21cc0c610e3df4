"""RAR's trunk (Yu et al. 2024, arXiv 2411.00776): causal, told where it is to predict.

The sequence is a start, the class, and the tokens in whatever order; each input has its
own position and that of the target that follows.

B batch, L image tokens, S slots, D width.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from fluid.models import layers, rows
from fluid.models.block import ModulatedNorm
from fluid.models.plan import Plan
from fluid.models.plan import rows as rows_of
from fluid.models.stack import matrices, parameters
from fluid.models.style import Given, Style
from fluid.models.trunks.base import Dropping
from fluid.parallel import sharding
from fluid.tokenizers.base import TokenSpec


@dataclasses.dataclass(frozen=True)
class RARConfig(Dropping):
  """Blocks with AdaLN from class and step, and normalised queries and keys."""

  kind = "rar"
  follows = ("next", "permuted")
  reads = "vector"
  PARAMETERS = (
    *parameters("trunk"),
    (r"final/modulation/(w|b)", False, "core"),
    (r"start_token/w", True, "embeddings"),
    (r"(pos|pos_target|time)/w", False, "embeddings"),
  )
  MATRICES = matrices("trunk")

  @property
  def style(self):
    """See Blocks."""
    return Style(
      mlp="gelu",
      match="layer",
      modulation="own",
      dropout=self.dropout,
      hidden_dropout=self.dropout,
      attention_dropout=self.attention_dropout,
    )

  def module(self, model, spec):
    """See fluid.models.trunks."""
    del model
    return RARTrunk(self, spec)


class RARTrunk(nn.Module):
  """See RARConfig."""

  cfg: RARConfig
  spec: TokenSpec

  def setup(self):
    n, d, c = self.spec.length, self.cfg.width, self.cfg
    self.start_token = layers.Table((d,), (None,))
    self.pos = layers.Table((2 + n, d), (None, None))  # Of start, class, tokens.
    self.pos_target = layers.Table((n, d), (None, None))
    self.time = layers.Table((1 + n, d), (None, None))  # Of start and slots.
    self.trunk = c.stack(c.layers, c.style, final=False)
    self.final = ModulatedNorm(d)

  def start(self, cond, length: int = 0):
    """See fluid.models.trunks; with a length, the start token is run."""
    if not length:
      return {}
    x, vector = self._first(cond.vector)
    kept = self.trunk.start(x, 1 + length)
    return self.trunk(x, Given(vector=vector), causal=True, kept=kept)[1]

  def _first(self, vector):
    """Input and AdaLN's vector of the start token, each [B, 1, D]."""
    dtype, shape = vector.dtype, (len(vector), 1, vector.shape[1])
    x = self.start_token() + self.pos()[0]
    time = self.time()[0].astype(dtype)
    x = jnp.broadcast_to(x.astype(dtype), shape)
    return sharding.by_rows(x), vector[:, None] + time

  def __call__(self, x, plan: Plan, cond, kept=None, at=None, keys=None):
    """See fluid.models.trunks."""
    del at  # Of causal orders, all slots that are run are wanted.
    slots = plan.first + jnp.arange(plan.targets.shape[-1])
    vector = rows.like(cond.vector, x)
    x = plan.show(x, vector[:, None].astype(x.dtype))
    x = x + rows_of(self.pos(), plan.positions + 2, x.dtype)
    x = x + rows_of(self.pos_target(), plan.targets, x.dtype)
    about = vector[:, None] + rows_of(self.time(), 1 + slots, x.dtype)
    if kept:
      given, first = Given(vector=about), 1 + plan.first
      z, kept = self.trunk(x, given, causal=True, kept=kept, first=first)
    else:
      before, of_it = self._first(vector)
      x = jnp.concatenate([before, x], 1)
      given = Given(vector=jnp.concatenate([of_it, about], 1), keys=keys)
      z, _ = self.trunk(x, given, causal=True)
      z = z[:, 1:]
    return self.final(z, about), kept
