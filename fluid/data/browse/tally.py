"""Sums over tokens, a part of the examples at a time.

N examples, L tokens, C channels, V codes.
"""

import numpy as np


class Tally:
  """How codes are used, and what moments of channels are.

  Attributes:
    codes: int64 [V], how often each was met; None before there was any.
  """

  def __init__(self) -> None:
    self.codes: np.ndarray | None = None
    self._sums: np.ndarray | None = None  # [3, C]
    self._n = 0

  def add(self, rows: dict[str, np.ndarray], vocab: int = 0) -> None:
    """Tokens [N, L] of so many codes, or mean and std [N, L, C]."""
    if "tokens" in rows:
      counts = np.bincount(rows["tokens"].ravel(), minlength=vocab)
      self.codes = counts if self.codes is None else self.codes + counts
    elif "mean" in rows:
      mean, std = (rows[k].astype(np.float64) for k in ("mean", "std"))
      sums = np.stack([x.sum((0, 1)) for x in (mean, mean**2, std**2)])
      self._sums = sums if self._sums is None else self._sums + sums
      self._n += mean.shape[0] * mean.shape[1]

  @property
  def moments(self) -> np.ndarray | None:
    """Mean and std of means, root mean square of stds [3, C]; None without any."""
    if self._sums is None or not self._n:
      return None
    mean, square, posterior = self._sums / self._n
    return np.stack([mean, np.sqrt(np.maximum(square - mean**2, 0)), posterior**0.5])

  def use(self) -> tuple[int, float]:
    """How many codes were met, and the perplexity of their distribution."""
    counts = np.zeros(0) if self.codes is None else self.codes[self.codes > 0]
    share = counts / max(counts.sum(), 1)
    return len(counts), float(np.exp(-(share * np.log(share)).sum()))
