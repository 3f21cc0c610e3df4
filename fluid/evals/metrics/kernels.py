"""Maximum mean discrepancies: KID (Binkowski et al., arXiv 1801.01401) and CMMD.

Everything is float64 on the host. Of large sets the kernel is computed in blocks of
rows: its sums are what is kept.

M, N images of the two sets, D features, S bootstrap draws.
"""

import numpy as np

_ROWS = 2048  # Of a block.
_BOOTSTRAP = 4000  # Images up to which whole kernels are kept: 3 x 128 MB.


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Kernel of KID: (x . y / D + 1)^3, [M, D] and [N, D] -> [M, N]."""
  return (x @ y.T * (1 / x.shape[1]) + 1) ** 3


def kid(x: np.ndarray, y: np.ndarray) -> float:
  """Unbiased squared MMD over all pairs of [M, D] and [N, D].

  Raises:
    ValueError: a set of fewer than 2, which has no pair.
  """
  x, y = _paired(x), _paired(y)
  within = lambda z: _row_sums(z, z, own=False).sum() / (len(z) * (len(z) - 1))
  between = _row_sums(x, y).sum() / (len(x) * len(y))
  return float(within(x) + within(y) - 2 * between)


def _paired(x) -> np.ndarray:
  if len(x) < 2:
    raise ValueError(f"KID needs 2 images of each set or more, not {len(x)}")
  return np.asarray(x, np.float64)


def _row_sums(x, y, *, own=True) -> np.ndarray:
  """Sums of the kernel over y, [M]; without `own`, an image's pair with itself."""
  out = []
  for i in range(0, len(x), _ROWS):
    k = cubic(x[i : i + _ROWS], y)
    out.append(k.sum(1))
    if not own:
      out[-1] -= np.diagonal(k, i)
  return np.concatenate(out)


def kid_interval(
  x: np.ndarray, y: np.ndarray, *, samples: int = 200, seed: int = 0
) -> tuple[float, float]:
  """95 % bootstrap interval of `kid`, over the images of both sets.

  An image drawn twice is not paired with itself: such pairs would add a bias that the
  estimate does not have. Of more than 4,000 images, the deviation is that of the first
  term of the estimate's expansion (Hajek's projection) instead: what is left out falls
  as 1/N.
  """
  x, y = _paired(x), _paired(y)
  if max(len(x), len(y)) > _BOOTSTRAP:
    value, deviation = _projected(x, y)
    return value - 1.96 * deviation, value + 1.96 * deviation
  rng = np.random.default_rng(seed)
  draw = lambda n: rng.multinomial(n, np.full(n, 1 / n), samples).astype(np.float64)
  values = _weighted_mmd(_kernels(x, y), draw(len(x)), draw(len(y)))
  # Of few images a draw may be one image over and over, without any pair.
  low, high = np.nanquantile(values, (0.025, 0.975))
  return float(low), float(high)


def _projected(x, y) -> tuple[float, float]:
  """KID, and its standard deviation from each image's mean share in it."""
  m, n = len(x), len(y)
  xx, yy = (_row_sums(z, z, own=False) / (len(z) - 1) for z in (x, y))
  xy, yx = _row_sums(x, y) / n, _row_sums(y, x) / m
  value = xx.mean() + yy.mean() - xy.mean() - yx.mean()
  variance = 4 * (xx - xy).var(ddof=1) / m + 4 * (yy - yx).var(ddof=1) / n
  return float(value), float(np.sqrt(variance))


def _kernels(x, y):
  kxx, kyy = cubic(x, x), cubic(y, y)
  np.fill_diagonal(kxx, 0)
  np.fill_diagonal(kyy, 0)
  return kxx, cubic(x, y), kyy


def _weighted_mmd(kernels, wx, wy) -> np.ndarray:
  """MMD^2 [S] where image i of a set counts wx[s, i] times; diagonals are zero."""
  kxx, kxy, kyy = kernels
  pairs = lambda w: w.sum(1) ** 2 - (w**2).sum(1)  # Ordered pairs of distinct images.

  def within(w, k):
    n = pairs(w)
    return ((w @ k) * w).sum(1) / np.where(n > 0, n, np.nan)

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
    within = (pairs(cubic(a, a)) + pairs(cubic(b, b))) / (size * (size - 1))
    values.append(within - 2 * cubic(a, b).sum(0).sum() / size**2)
  return float(np.mean(values)), float(np.std(values))


def cmmd(x: np.ndarray, y: np.ndarray, *, sigma: float = 10.0) -> float:
  """1,000 times the squared MMD of unit rows with a Gaussian kernel, biased.

  Jayasumana et al. (arXiv 2401.09603), on CLIP's embeddings. Kernels of unit rows this
  wide are nearly 1: only their differences from 1 are summed, which in the paper's
  float32 costs 2 % of small values.
  """
  x, y = unit(x), unit(y)
  # |a - b|^2 = 2 - 2 a.b, and exp(-d / 2 sigma^2) - 1 keeps its digits near 0.
  less = lambda a, b: (
    sum(
      np.expm1((a[i : i + _ROWS] @ b.T - 1) / sigma**2).sum()
      for i in range(0, len(a), _ROWS)
    )
    / (len(a) * len(b))
  )
  return float(1000 * (less(x, x) + less(y, y) - 2 * less(x, y)))


def unit(x: np.ndarray) -> np.ndarray:
  """Rows [N, D] over their norms, in float64."""
  x = np.asarray(x, np.float64)
  return x / np.linalg.norm(x, axis=1, keepdims=True)
