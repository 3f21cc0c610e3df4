"""Plan: what an order asks of a trunk, in one pass.

B batch, L tokens of an image, S slots of the sequence, D width.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fluid.parallel.sharding import spec

# Indices of slots and tokens: a constant [S] as numpy, which costs no gather where it
# counts up, or one row an example [B, S].
Index = np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which token is input where, and which is the target of each output.

  Attributes:
    read: token whose embedding is the input of each slot ([S] or [B, S]); -1: none.
    known: [B, S], False where a slot shows the trunk's fill vector (start or mask) in
      place of its token (None: wherever there is one to read).
    positions: position of the token that each slot reads; -1: none.
    targets: token that each output predicts, and its position.
    predicted: [B, S], outputs that count in the loss.
    causal: slot i sees the slots up to i; else all see all. Sizes of blocks: a slot
      sees those of its own block and of those before.
    first: slot number of the first one, where the plan is of later slots alone: behind
      a cache that holds those before.
    most: the most slots of a row that show their token (None: all may): a trunk may
      leave out the others.
  """

  read: Index
  positions: Index
  targets: Index
  predicted: jax.Array | None = None
  known: jax.Array | None = None
  causal: bool | tuple[int, ...] = False
  first: int | jax.Array = 0
  most: int | None = None

  def show(self, x: jax.Array, fill: jax.Array) -> jax.Array:
    """Embedded tokens [B, L, D], fill [D] or [B, 1, D] -> inputs [B, S, D]."""
    fill, read, known = fill.astype(x.dtype), self.read, self.known
    constant = isinstance(read, np.ndarray) and known is None
    if constant and np.array_equal(read, np.arange(x.shape[1]) - 1):
      # Raster order's: a start before all tokens but the last, without a gather.
      return jnp.concatenate([jnp.zeros_like(x[:, :1]) + fill, x[:, :-1]], 1)
    if not isinstance(read, np.ndarray) or (read < 0).any():
      there = jnp.asarray(read) >= 0
      known = there if known is None else known & there
      read = jnp.maximum(jnp.asarray(read), 0)
    x = take(x, read)
    return x if known is None else jnp.where(known[..., None], x, fill)

  def each(self, change: Callable) -> "Plan":
    """With its arrays that have rows of examples changed."""
    fields = {k: v for k, v in vars(self).items() if getattr(v, "ndim", 0) == 2}
    return dataclasses.replace(self, **{k: change(v) for k, v in fields.items()})

  def of_targets(self, tokens: jax.Array) -> jax.Array:
    """Tokens [B, L, ...] -> what each output predicts [B, S, ...]."""
    return take(tokens, self.targets)


def take(x: jax.Array, index: Index) -> jax.Array:
  """Rows of x [B, L, ...] at `index` [S] or [B, S] -> [B, S, ...]."""
  if isinstance(index, np.ndarray) and counts_up(index, x.shape[1]):
    return x
  index = jnp.asarray(index)
  if index.ndim == 1:
    return x[:, index]
  index = index.reshape(index.shape + (1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, 1)


def rows(table: jax.Array, index: Index, dtype) -> jax.Array:
  """Rows of a table [L, D] at `index` -> [S, D] or [B, S, D]."""
  table = table.astype(dtype)
  if isinstance(index, np.ndarray) and counts_up(index, len(table)):
    return table
  if index.ndim == 1:
    return table[index]
  return table.at[index].get(out_sharding=spec("batch", None, None))


def counts_up(index: np.ndarray, n: int) -> bool:
  """Whether `index` is 0, 1, ..., n - 1."""
  return np.array_equal(index, np.arange(n))
