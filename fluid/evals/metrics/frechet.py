"""Frechet distances, from statistics that stream, merge and are kept as others do.

Everything is float64 on the host: in float32 a Frechet distance is off by 0.05 to 0.1
where there are fewer images than features.

N images, D features.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Statistics:
  """Count, mean [D] and covariance [D, D] of features that arrive in batches.

  Batches are merged by the pairwise update, which equals the two-pass formula. Those
  that were read from others' files have no count (0), and take no more features.
  """

  count: int = 0
  mean: np.ndarray | float = 0.0
  scatter: np.ndarray | float = 0.0  # sum of (x - mean)(x - mean)'
  given: np.ndarray | None = None  # A covariance that came without a count.

  def add(self, features: np.ndarray) -> "Statistics":
    """Merges features [N, D]; returns self."""
    x = np.asarray(features, np.float64)
    if not len(x):
      return self
    mean = x.mean(0)
    return self.merge(Statistics(len(x), mean, (x - mean).T @ (x - mean)))

  def merge(self, other: "Statistics") -> "Statistics":
    """Merges statistics of other images; returns self."""
    if self.given is not None or other.given is not None:
      raise ValueError("statistics without a count cannot be merged")
    if not other.count:
      return self
    shift, total = other.mean - self.mean, self.count + other.count
    weight = self.count * other.count / total
    self.scatter = self.scatter + other.scatter + weight * np.outer(shift, shift)
    self.mean = self.mean + shift * (other.count / total)
    self.count = total
    return self

  @property
  def covariance(self) -> np.ndarray:
    """Unbiased (ddof 1)."""
    if self.given is not None:
      return self.given
    if self.count < 2:
      raise ValueError(f"a covariance needs 2 images or more, not {self.count}")
    return np.asarray(self.scatter) / (self.count - 1)

  @property
  def width(self) -> int:
    """D."""
    return np.size(self.mean)


def frechet_distance(
  a: Statistics, b: Statistics, root: np.ndarray | None = None
) -> float:
  """|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of two Gaussians.

  `root` is that of S_b, where it is known.
  """
  root = root_of(b) if root is None else root
  # S_a S_b has the eigenvalues of this symmetric matrix: no complex square root.
  cross = np.linalg.eigvalsh(root @ a.covariance @ root)
  trace = np.trace(a.covariance) + np.trace(b.covariance)
  shift = np.sum((a.mean - b.mean) ** 2)
  return float(shift + trace - 2 * np.sqrt(np.clip(cross, 0, None)).sum())


def root_of(a: Statistics) -> np.ndarray:
  """The symmetric square root of a covariance [D, D]."""
  values, vectors = np.linalg.eigh(a.covariance)
  return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def frechet_infinity(
  x: np.ndarray, b: Statistics, *, points: int = 15, seed: int = 0
) -> tuple[float, np.ndarray]:
  """The Frechet distance that infinitely many images would have.

  Its bias falls as 1/N: a line through those of `points` numbers of images, each drawn
  anew without replacement, is followed to 0 (Chong and Forsyth, arXiv 1911.07023).
  Numbers of images are those of dgm-eval: from a tenth of all, within 2,000 and 5,000,
  to all; of fewer than 4,000 images from half of them on.

  Args:
    x: features [N, D] of the images judged.
    b: of the reference.

  Returns:
    The intercept, and the points [points, 2]: N and its distance.
  """
  n = len(x)
  first = min(5000, max(n // 10, min(2000, n // 2)))
  rng = np.random.default_rng(seed)
  rows, root = [], root_of(b)
  for size in np.linspace(first, n, points).round().astype(int):
    chosen = x[rng.permutation(n)[:size]]
    rows.append((size, frechet_distance(Statistics().add(chosen), b, root)))
  found = np.array(rows, np.float64)
  slope_and_intercept = np.polyfit(1 / found[:, 0], found[:, 1], 1)
  return float(slope_and_intercept[1]), found
