"""How much of a set lies within another's reach, by nearest neighbours.

Precision and recall of Kynkaanniemi et al. (arXiv 1904.06991), density and coverage of
Naeem et al. (arXiv 2002.09797). Distances are float64, in blocks of rows; those of
ADM's evaluator are float16, which moves the third digit.

M sampled, N real images, D features.
"""

from collections.abc import Iterator

import numpy as np

_ROWS = 1024


def precision_recall(x: np.ndarray, y: np.ndarray, k: int = 3) -> tuple[float, float]:
  """Precision and recall of samples x [M, D] against real y [N, D].

  Precision: the share of samples that lie within the distance of some real image to its
  k-th neighbour; recall: the same with the sets exchanged.
  """
  precision, _, _ = _reached(x, y, radii(y, k))
  recall, _, _ = _reached(y, x, radii(x, k))
  return float(precision.mean()), float(recall.mean())


def density_coverage(x: np.ndarray, y: np.ndarray, k: int = 5) -> tuple[float, float]:
  """Density and coverage of samples x [M, D] against real y [N, D].

  Density: in how many of the real images' neighbourhoods a sample lies, over k;
  coverage: the share of real images that have a sample in theirs.
  """
  _, count, covered = _reached(x, y, radii(y, k))
  return float(count.mean() / k), float(covered.mean())


def radii(x: np.ndarray, k: int) -> np.ndarray:
  """Distances [N] to the k-th nearest of the others."""
  if len(x) <= k:
    raise ValueError(f"{k} neighbours of each need more than {len(x)} images")
  # An image is its own nearest, at distance 0.
  blocks = (np.partition(d, k, 1)[:, k] for d in _distances(x, x))
  return np.concatenate(list(blocks))


def _reached(x, y, reach) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Of x: whether some y reaches it, and how many do; of y: whether it reaches some."""
  hit, count, covers = [], [], np.zeros(len(y), bool)
  for d in _distances(x, y):
    inside = d <= reach
    hit.append(inside.any(1))
    count.append(inside.sum(1))
    covers |= inside.any(0)
  return np.concatenate(hit), np.concatenate(count), covers


def _distances(x, y) -> Iterator[np.ndarray]:
  """Blocks of rows of the distances between [M, D] and [N, D]."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  centre = y.mean(0)  # Near the origin the products cancel least.
  x, y = x - centre, y - centre
  squares = (y**2).sum(1)
  for i in range(0, len(x), _ROWS):
    part = x[i : i + _ROWS]
    d = (part**2).sum(1)[:, None] + squares - 2 * part @ y.T
    yield np.sqrt(np.maximum(d, 0))
