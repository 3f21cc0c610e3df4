"""LlamaGen's trunk (Sun et al. 2024, arXiv 2406.06525): Llama on image tokens.

The condition is a prefix: its last token is where the first image token is predicted.

B batch, T prefix tokens, L image tokens, S slots, D width, K head width.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fluid.config import rules
from fluid.models import dropout, rows
from fluid.models.plan import Plan
from fluid.models.stack import matrices, parameters
from fluid.models.style import Given, Style
from fluid.models.trunks.base import Blocks
from fluid.parallel import sharding
from fluid.tokenizers.base import TokenSpec


@dataclasses.dataclass(frozen=True)
class LlamaGenConfig(Blocks):
  """Causal blocks with RMSNorm, SwiGLU and 2-D rotary positions, without biases.

  Attributes:
    multiple: the MLP's width is 8/3 D, rounded up to a multiple of this.
    theta: base of the rotary frequencies.
    epsilon: of the norms.
    dropout: of embeddings and of what blocks add.
  """

  kind = "llamagen"
  follows = ("next",)
  PARAMETERS = parameters("trunk")
  DECAYS = r"(label|head/table)/w"
  MATRICES = matrices("trunk")

  multiple: int = 256
  theta: float = 10_000.0
  epsilon: float = 1e-5
  dropout: float = 0.1

  def check(self, name):
    super().check(name)
    rules.positive(self, name, "multiple", "theta", "epsilon")
    rules.share(f"{name}dropout", self.dropout, open_end=True)
    rules.multiple(f"{name}width", self.width, "4 x heads", 4 * self.heads)

  @property
  def hidden(self):
    """See Blocks."""
    return -(-(8 * self.width // 3) // self.multiple) * self.multiple

  @property
  def style(self):
    """See Blocks."""
    return Style(
      norm="rms",
      epsilon=self.epsilon,
      mlp="swiglu",
      bias="none",
      dropout=self.dropout,
    )

  def module(self, model, spec):
    """See fluid.models.trunks."""
    del model
    return LlamaGenTrunk(self, spec)


def turns(grid: tuple[int, int], width: int, theta: float) -> np.ndarray:
  """Cosines and sines of the rotary positions.

  The first half of a head's pairs turns with the row, the second with the column.
  Queries and keys of no position, such as the prefix's, become zero: so they do in the
  published models.

  Args:
    grid: rows and columns.
    width: K, of a head.
    theta: base.

  Returns:
    [2, 1 + L, K/2]; number 0 is no position.
  """
  half = width // 2
  rates = theta ** -(np.arange(0, half, 2)[: half // 2] / half)
  row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  angles = np.concatenate([np.outer(row, rates), np.outer(column, rates)], -1)
  table = np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
  return np.pad(table, ((0, 0), (1, 0), (0, 0)))


class LlamaGenTrunk(nn.Module):
  """See LlamaGenConfig."""

  cfg: LlamaGenConfig
  spec: TokenSpec

  def setup(self):
    self.trunk = self.cfg.stack(self.cfg.layers, self.cfg.style)

  def start(self, cond, length: int = 0):
    """See fluid.models.trunks; with a length, the prefix but its last is run."""
    if not length:
      return {}
    tokens, mask = _padded_before(cond)
    front = tokens.shape[1] - 1
    kept = self.trunk.start(tokens, front + length)
    if not front:
      return kept
    given = Given(mask=_slots(mask, length), turns=self._turns(front, []))
    return self.trunk(tokens[:, :-1], given, causal=True, kept=kept)[1]

  def __call__(self, x, plan: Plan, cond, kept=None, at=None, keys=None):
    """See fluid.models.trunks."""
    del at  # Of causal orders, all slots that are run are wanted.
    passes = x.shape[0] // cond.tokens.shape[0]
    prefix, mask = (rows.repeat(a, passes) for a in _padded_before(cond))
    front = prefix.shape[1] - 1
    x = plan.show(x, prefix[:, -1:])
    if kept:
      given = Given(
        mask=_slots(mask, self.spec.length), turns=self._turns(0, plan.positions)
      )
      first = front + plan.first
      return self.trunk(x, given, causal=True, kept=kept, first=first)
    mask = _slots(mask, x.shape[1])
    x = jnp.concatenate([prefix[:, :-1], x], 1)
    x = dropout.dropout(x, keys, self.cfg.dropout)
    given = Given(mask=mask, turns=self._turns(front, plan.positions), keys=keys)
    z, kept = self.trunk(x, given, causal=True)
    return z[:, front:], kept

  def _turns(self, front: int, positions):
    """Of so many prefix tokens, and of slots that read tokens at `positions`."""
    width = self.cfg.width // self.cfg.heads
    table = turns(self.spec.grid, width, self.cfg.theta)
    index = jnp.concatenate([jnp.zeros(front, int), jnp.asarray(positions, int) + 1])
    return tuple(jnp.asarray(a)[index] for a in table)


def _padded_before(cond):
  """Tokens and mask of a condition, with those that are padding first."""
  if cond.tokens.shape[1] == 1:
    return cond.tokens, cond.mask
  index = jnp.argsort(cond.mask, axis=1, stable=True)
  tokens = jnp.take_along_axis(cond.tokens, index[..., None], 1)
  return tokens, jnp.take_along_axis(cond.mask, index, 1)


def _slots(mask, slots: int):
  """Keys of prefix and slots that may be attended [B, T - 1 + slots]; None for all."""
  if mask.shape[1] == 1:
    return None
  ones = sharding.by_rows(jnp.ones((len(mask), slots), bool))
  return jnp.concatenate([mask[:, :-1], ones], 1)
