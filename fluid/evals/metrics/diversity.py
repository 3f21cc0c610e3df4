"""What a set of images is worth on its own: Inception Score and Vendi score.

N images, D features, C classes.
"""

import numpy as np

from fluid.evals.metrics.kernels import unit


def inception_score(
  logits: np.ndarray,
  *,
  splits: int = 10,
  split: int = 0,
  seed: int | None = 2020,
) -> tuple[float, float]:
  """exp of the mean KL between a row's softmax and the mean one (arXiv 1606.03498).

  Args:
    logits: [N, C], without the last layer's bias where published numbers are meant.
    splits: parts of about one size, whose scores are averaged.
    split: images of a part, in place of `splits`; the last has what is left (ADM's
      evaluator: 5,000).
    seed: of the order in which images are dealt out (torch-fidelity's is 2020); None:
      that of the rows, as ADM's evaluator.

  Returns:
    Mean and standard deviation over the parts.

  Raises:
    ValueError: fewer images than parts.
  """
  x = np.asarray(logits, np.float64)
  if not split and len(x) < splits:
    raise ValueError(f"{splits} parts need {splits} images or more, not {len(x)}")
  if seed is not None:
    x = x[np.random.RandomState(seed).permutation(len(x))]
  x = x - x.max(1, keepdims=True)
  log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
  n, scores = len(x), []
  ends = [i * n // splits for i in range(splits + 1)]
  if split:
    ends = [*range(0, n, split), n]
  for start, stop in zip(ends, ends[1:]):
    part = log_p[start:stop]
    p = np.exp(part)
    mean = np.log(np.maximum(p.mean(0), np.finfo(np.float64).tiny))
    scores.append(np.exp((p * (part - mean)).sum(1).mean()))
  return float(np.mean(scores)), float(np.std(scores))


def vendi(x: np.ndarray, q: float = 1.0) -> float:
  """The effective number of different rows of [N, D] (arXiv 2210.02410).

  exp of the Renyi entropy of order q of the eigenvalues of X X' / N, with unit rows.
  """
  x = unit(x)
  # X X' and X' X have the same eigenvalues but for zeros.
  gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x
  values = np.linalg.eigvalsh(gram / len(x))
  values = values[values > 1e-12]
  if q == 1:
    return float(np.exp(-(values * np.log(values)).sum()))
  return float(np.exp(np.log((values**q).sum()) / (1 - q)))
