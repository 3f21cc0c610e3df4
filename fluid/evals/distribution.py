"""Distances between two sets of feature vectors: Frechet distance and KID; numpy only.

Everything is float64 on the host: in float32 a Frechet distance is off by 0.05 to 0.1
where there are fewer images than features.

Legend: M, N images of the two sets, D features, S bootstrap draws.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass
class Statistics:
  """Count, mean [D] and covariance [D, D] of features that arrive in batches.

  Batches are merged by the pairwise update, which equals the two-pass formula.
  """

  count: int = 0
  mean: np.ndarray | float = 0.0
  scatter: np.ndarray | float = 0.0  # sum of (x - mean)(x - mean)'

  def add(self, features: np.ndarray) -> "Statistics":
    """Merges features [N, D]; returns self."""
    x = np.asarray(features, np.float64)
    mean = x.mean(0)
    shift, total = mean - self.mean, self.count + len(x)
    weight = self.count * len(x) / total
    self.scatter = (
      self.scatter + (x - mean).T @ (x - mean) + weight * np.outer(shift, shift)
    )
    self.mean = self.mean + shift * (len(x) / total)
    self.count = total
    return self

  @property
  def covariance(self) -> np.ndarray:
    """Unbiased (ddof 1)."""
    if self.count < 2:
      raise ValueError(f"a covariance needs 2 images or more, not {self.count}")
    return np.asarray(self.scatter) / (self.count - 1)


def frechet_distance(a: Statistics, b: Statistics) -> float:
  """|mu_a - mu_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of two Gaussians."""
  values, vectors = np.linalg.eigh(a.covariance)
  root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
  # S_a S_b has the eigenvalues of this symmetric matrix: no complex square root.
  cross = np.linalg.eigvalsh(root @ b.covariance @ root)
  trace = np.trace(a.covariance) + np.trace(b.covariance)
  shift = np.sum((a.mean - b.mean) ** 2)
  return float(shift + trace - 2 * np.sqrt(np.clip(cross, 0, None)).sum())


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Cubic kernel of KID: (x . y / D + 1)^3, [M, D] and [N, D] -> [M, N]."""
  return (x @ y.T * (1 / x.shape[1]) + 1) ** 3


def kid(x: np.ndarray, y: np.ndarray) -> float:
  """Unbiased squared MMD over all pairs of [M, D] and [N, D]."""
  ones = np.ones((1, len(x))), np.ones((1, len(y)))
  return float(_weighted_mmd(_kernels(x, y), *ones)[0])


def kid_interval(
  x: np.ndarray, y: np.ndarray, *, samples: int = 200, seed: int = 0
) -> tuple[float, float]:
  """95 % bootstrap interval of `kid`, over the images of both sets.

  An image drawn twice is not paired with itself: such pairs would add a bias that the
  estimate does not have.
  """
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.multinomial(n, np.full(n, 1 / n), samples).astype(np.float64)
  values = _weighted_mmd(_kernels(x, y), draw(len(x)), draw(len(y)))
  low, high = np.quantile(values, (0.025, 0.975))
  return float(low), float(high)


def _kernels(x, y):
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  kxx, kyy = kernel(x, x), kernel(y, y)
  np.fill_diagonal(kxx, 0)
  np.fill_diagonal(kyy, 0)
  return kxx, kernel(x, y), kyy


def _weighted_mmd(kernels, wx, wy) -> np.ndarray:
  """MMD^2 [S] where image i of a set counts wx[s, i] times; diagonals are zero."""
  kxx, kxy, kyy = kernels
  pairs = lambda w: w.sum(1) ** 2 - (w**2).sum(1)  # Ordered pairs of distinct images.
  within = lambda w, k: ((w @ k) * w).sum(1) / pairs(w)
  between = ((wx @ kxy) * wy).sum(1) / (wx.sum(1) * wy.sum(1))
  return within(wx, kxx) + within(wy, kyy) - 2 * between


def kid_subsets(
  x: np.ndarray,
  y: np.ndarray,
  *,
  subsets: int = 100,
  size: int = 1000,
  seed: int = 2020,
) -> tuple[float, float]:
  """Mean and deviation of KID over random subsets, as torch-fidelity reports it.

  For comparison with published numbers: the kernel is evaluated in the features' own
  type (float32 there, which alone moves the result by 1e-6).
  """
  if size > min(len(x), len(y)):
    raise ValueError(
      f"KID subsets of {size} images cannot be drawn from {len(x)} and {len(y)}"
    )
  rng = np.random.RandomState(seed)
  pairs = lambda k: (k.sum(1) - np.diagonal(k)).sum()
  values = []
  for _ in range(subsets):
    a, b = (z[rng.choice(len(z), size, replace=False)] for z in (x, y))
    within = (pairs(kernel(a, a)) + pairs(kernel(b, b))) / (size * (size - 1))
    values.append(within - 2 * kernel(a, b).sum(0).sum() / size**2)
  return float(np.mean(values)), float(np.std(values))
