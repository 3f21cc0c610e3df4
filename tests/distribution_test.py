import json

import numpy as np
import pytest

from fluid.evals import distribution as dist


def statistics(x):
  return dist.Statistics().add(x)


@pytest.fixture(scope="module")
def golden(fixtures):
  """The reference numbers and the seeded features they were made from."""
  want = json.loads((fixtures / "metric_goldens.json").read_text())
  rs = np.random.RandomState(20241013)
  a = rs.randn(32, 32) / np.sqrt(32)
  x = np.maximum(rs.randn(1000, 32) @ a, 0).astype(np.float32)
  y = np.maximum(rs.randn(1200, 32) @ a * 1.1 + 0.05, 0).astype(np.float32)
  assert x.astype(np.float64).sum() == pytest.approx(want["sanity"]["X_sum"], rel=1e-6)
  return want, x, y


def test_frechet_golden(golden):
  want, x, y = golden
  got = dist.frechet_distance(statistics(x), statistics(y))
  assert got == pytest.approx(want["fid_torch_fidelity"], rel=1e-6)
  assert got == pytest.approx(want["fid_pytorch_fid_f64mean"], rel=1e-9)


def test_kid_golden(golden):
  want, x, y = golden
  mean, std = dist.kid_subsets(x, y, subsets=10, size=500)
  # Both in float32: another CPU's products alone move it by 1e-6.
  assert mean == pytest.approx(want["kid"]["kernel_inception_distance_mean"], rel=3e-6)
  assert std == pytest.approx(want["kid"]["kernel_inception_distance_std"], rel=3e-6)


def test_kid_of_all_images_is_what_subsets_scatter_around(golden):
  _, x, y = golden
  mean, std = dist.kid_subsets(x, y, subsets=100, size=500)
  assert abs(dist.kid(x, y) - mean) < 3 * std / np.sqrt(100)
  whole, spread = dist.kid_subsets(x, y[:1000], subsets=2, size=1000)
  assert dist.kid(x, y[:1000]) == pytest.approx(whole, rel=1e-4) and spread < 1e-6


def test_frechet_of_diagonal_gaussians_in_closed_form():
  rng = np.random.RandomState(0)
  d = 7
  stats, means, scales = [], [], []
  for _ in range(2):
    mean, scale = rng.randn(d), rng.rand(d) + 0.1
    stats.append(dist.Statistics(11, mean, np.diag(scale**2) * 10))
    means.append(mean)
    scales.append(scale)
  want = ((means[0] - means[1]) ** 2).sum() + ((scales[0] - scales[1]) ** 2).sum()
  assert dist.frechet_distance(*stats) == pytest.approx(want, rel=1e-10)


def test_frechet_of_a_set_and_itself_is_zero():
  x = np.random.RandomState(0).randn(50, 80)  # Singular: fewer images than features.
  assert abs(dist.frechet_distance(statistics(x), statistics(x))) < 1e-5


def test_streaming_equals_two_passes_in_any_batches_and_order():
  rng = np.random.RandomState(0)
  x = rng.randn(100, 6) * 3 + 1e4  # A large mean: the one-pass formula would cancel.
  stats = dist.Statistics()
  for part in np.split(x[rng.permutation(100)], [1, 17, 50]):
    stats.add(part)
  assert stats.count == 100
  np.testing.assert_allclose(stats.mean, x.mean(0), rtol=1e-12)
  np.testing.assert_allclose(stats.covariance, np.cov(x.T), rtol=1e-9)


def test_kid_is_the_plain_double_sum():
  rng = np.random.RandomState(0)
  x, y = rng.randn(9, 4), rng.randn(7, 4) + 0.5
  k = lambda a, b: (a @ b / 4 + 1) ** 3
  xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
  yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
  xy = np.mean([k(a, b) for a in x for b in y])
  assert dist.kid(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)
  assert dist.kid(x[::-1], y) == pytest.approx(dist.kid(x, y), rel=1e-10)


def test_kid_is_unbiased_and_its_interval_covers():
  values, covered = [], 0
  for seed in range(40):
    rng = np.random.RandomState(seed)
    x, y = rng.randn(60, 8), rng.randn(60, 8)
    values.append(dist.kid(x, y))
    low, high = dist.kid_interval(x, y)
    covered += low <= 0 <= high
  assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(40)
  assert covered >= 33  # 95 % in expectation


def test_too_few_images_are_refused():
  with pytest.raises(ValueError, match="2 images"):
    _ = statistics(np.zeros((1, 3))).covariance
  with pytest.raises(ValueError, match="subsets of 10"):
    dist.kid_subsets(np.zeros((5, 3)), np.zeros((20, 3)), size=10)
