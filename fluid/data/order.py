"""What is drawn when: functions of a place in the stream of examples, without a state.

N places; B global batch.
"""

import fractions
import math
import sys
from collections.abc import Sequence

import grain
import numpy as np

from fluid.config import ConfigError
from fluid.data.records import Records

# Of Philox4x32: multipliers and steps of the key (Salmon et al., 2011).
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_STEPS = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_WORD = np.uint64(32)
_LOW = np.uint64(2**32 - 1)


class Order:
  """Which record of which cache is at a place.

  Each cache runs through epochs of its own, each a new permutation if `shuffle`. What
  was left out when a cache was prepared is in none.

  Args:
    caches: to draw from.
    weights: shares of these; whatever their sum.
    epochs: None is endless; a number is for one cache alone.

  Attributes:
    examples: in an epoch of each cache.
  """

  def __init__(
    self,
    caches: Sequence[Records],
    weights: Sequence[float] = (1.0,),
    *,
    seed: int,
    shuffle: bool,
    epochs: int | None,
  ):
    self._usable = [records.usable for records in caches]
    found = [len(r if u is None else u) for r, u in zip(caches, self._usable)]
    self.examples, self._orders = found, []
    for number, (size, records) in enumerate(zip(found, caches)):
      if not size:
        raise ConfigError(f"no records in {records.cache}")
      order = grain.MapDataset.range(size)
      if shuffle:
        # No epoch of one has a seed of another's: grain counts them up from this one.
        order = order.shuffle(seed=(seed + number * 0x9E3779B9) % 2**32)
      self._orders.append(order.repeat(epochs))
    self._parts = whole(weights)

  def __len__(self) -> int:
    return len(self._orders[0]) if len(self._orders) == 1 else sys.maxsize

  def at(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of the cache, index of the record and epoch of each place, [N] each."""
    out = np.zeros((3, len(places)), np.int64)
    for row, place in enumerate(np.asarray(places).tolist()):
      cache, own = interleaved(place, self._parts)
      usable, index = self._usable[cache], self._orders[cache][own]
      index = index if usable is None else usable[index]
      out[:, row] = cache, index, own // self.examples[cache]
    return out[0], out[1], out[2]


def whole(weights: Sequence[float]) -> list[int]:
  """Whole numbers in the same proportions as these decimals, which are exact."""
  exact = [fractions.Fraction(str(weight)) for weight in weights]
  shared = math.lcm(*(f.denominator for f in exact))
  return [int(f * shared) for f in exact]


def interleaved(place: int, parts: Sequence[int]) -> tuple[int, int]:
  """Which of several streams is at a place of their mixture, and its own place.

  Each takes its share of the places that those before it leave, evenly spread: what it
  has had is never further than its number among them from its share. (Grain's mix
  rounds shares to hundredths of the least.)

  Args:
    parts: shares, in whole numbers.
  """
  rest, before, after = sum(parts), place, place + 1
  for number, part in enumerate(parts[:-1]):
    left, then = (n * (rest - part) // rest for n in (before, after))
    if then == left:
      return number, before - left
    rest, before, after = rest - part, left, then
  return len(parts) - 1, before


def draws(seed: int, ids: np.ndarray, epochs: np.ndarray) -> np.ndarray:
  """Uniform bits [N, 2] uint32 of (seed, id, epoch), whoever else is drawn.

  Philox4x32 of ten rounds, whose counter is id and epoch.
  """
  counters = np.zeros((4, len(ids)), np.uint64)
  counters[0] = np.asarray(ids, np.int64) & int(_LOW)
  counters[1] = np.asarray(epochs) & int(_LOW)
  key = np.array([seed, seed >> 32], object) % 2**32
  return philox(counters, key.astype(np.uint64))[:2].T.astype(np.uint32)


def philox(counters: np.ndarray, key: np.ndarray) -> np.ndarray:
  """Philox4x32-10 of counters [4, N] and a key [2] -> [4, N]; words in uint64."""
  c0, c1, c2, c3 = counters
  for _ in range(10):
    p, q = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
    c0, c1 = (q >> _WORD) ^ c1 ^ key[0], q & _LOW
    c2, c3 = (p >> _WORD) ^ c3 ^ key[1], p & _LOW
    key = (key + _STEPS) & _LOW
  return np.stack([c0, c1, c2, c3])
