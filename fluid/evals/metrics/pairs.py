"""What is measured of pairs: an image and its reconstruction, an image and its text.

N pairs, H, W pixels, D features.
"""

import numpy as np
from scipy import ndimage

from fluid.evals.metrics.kernels import unit


def psnr(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Peak signal-to-noise ratios [N] in dB of uint8 images [N, H, W, 3]."""
  error = np.square(x.astype(np.float64) - y.astype(np.float64)).mean((1, 2, 3))
  with np.errstate(divide="ignore"):
    return 10 * np.log10(255**2 / error)


def ssim(x: np.ndarray, y: np.ndarray, *, window: str = "uniform") -> np.ndarray:
  """Structural similarities [N] of uint8 images [N, H, W, 3] (Wang et al. 2004).

  Args:
    window: 'uniform', 7 pixels wide with unbiased covariances, as scikit-image does by
      default and LlamaGen's tables have it; 'gaussian', of deviation 1.5 cut at 11
      pixels, as the paper. Means are over pixels whose window lies inside.
  """
  x, y = x.astype(np.float64), y.astype(np.float64)
  if window == "uniform":
    side, more = 7, 49 / 48
    local = lambda a: ndimage.uniform_filter(a, (1, side, side, 1))
  else:
    side, more = 11, 1.0
    local = lambda a: ndimage.gaussian_filter(a, (0, 1.5, 1.5, 0), radius=5)
  if min(x.shape[1:3]) < side:
    raise ValueError(f"SSIM's window of {side} pixels does not fit into {x.shape[1:3]}")
  mx, my = local(x), local(y)
  xx, yy, xy = (
    more * (local(a * b) - ma * mb)
    for a, b, ma, mb in ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my))
  )
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  value = (2 * mx * my + c1) * (2 * xy + c2)
  value /= (mx**2 + my**2 + c1) * (xx + yy + c2)
  edge = side // 2
  return value[:, edge:-edge, edge:-edge].mean((1, 2, 3))


def clip_cosines(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
  """Cosines [N] between features of images and of their texts [N, D]."""
  return (unit(images) * unit(texts)).sum(1)


def mean_interval(
  values: np.ndarray, *, samples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
  """Mean of independent values [N], and its 95 % bootstrap interval."""
  values = np.asarray(values, np.float64)
  rng = np.random.default_rng(seed)
  n = len(values)
  draws = [values[rng.integers(n, size=n)].mean() for _ in range(samples)]
  low, high = np.quantile(draws, (0.025, 0.975))
  return float(values.mean()), float(low), float(high)
