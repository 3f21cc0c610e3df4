"""Dropout with a key for each example, so that batches may be cut as one likes.

B batch, L tokens, D width (of a block, or of its MLP).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fluid.models.style import Style
from fluid.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Dropouts:
  """Keys of attention's [B], and functions on what a block's layers add or hold."""

  attention: Any = None
  attended: Any = None
  mlp: Any = None
  read: Any = None
  hidden: Any = None


def dropouts(keys, number, style: Style) -> Dropouts:
  """Of layer `number`; nothing without keys."""
  shares = style.dropout, style.hidden_dropout, style.attention_dropout
  if keys is None or not any((*shares, style.path_dropout)):
    return Dropouts()
  fold = jax.vmap(jax.random.fold_in, (0, None))
  keys = fold(keys, number)
  path = style.path_dropout
  if path and style.depth:
    path = path * number / max(style.depth - 1, 1)

  def of(index):
    def drop(x):
      x = dropout(x, fold(keys, index), style.dropout)
      return dropout(x, fold(keys, index + 1), path, whole=True)

    return drop

  hidden = lambda x: dropout(x, fold(keys, 7), style.hidden_dropout)
  return Dropouts(fold(keys, 0), of(1), of(3), of(5), hidden)


def dropout(x, keys, rate: float | jax.Array, *, whole: bool = False):
  """x [B, L, D] with a share of its values, or of its examples, zero; mean kept."""
  if keys is None or isinstance(rate, float) and not rate:
    return x
  shape = (1, 1) if whole else x.shape[1:]
  keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, shape))(keys)
  if sharding.explicit() and not whole:  # An MLP's width is split.
    keep = jax.reshard(keep, jax.typeof(x).sharding.spec)
  return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
