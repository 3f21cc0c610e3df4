"""Metrics against the numbers of reference implementations, and in closed form."""

import json

import numpy as np
import pytest

from fluid.evals.metrics import diversity, frechet, kernels, neighbours, pairs

# Of the images in test_pairs, by scikit-image 0.26.
PSNR = (21.00905811766079, 21.05459429371254)
SSIM_UNIFORM = (0.7682513638350481, 0.8471211784589389)
SSIM_GAUSSIAN = (0.7884551577758424, 0.854753691833523)


def statistics(x):
  return frechet.Statistics().add(x)


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
  got = frechet.frechet_distance(statistics(x), statistics(y))
  assert got == pytest.approx(want["fid_torch_fidelity"], rel=1e-6)
  assert got == pytest.approx(want["fid_pytorch_fid_f64mean"], rel=1e-9)


def test_kid_golden(golden):
  want, x, y = golden
  mean, std = kernels.kid_subsets(x, y, subsets=10, size=500)
  # Both in float32: another CPU's products alone move it by 1e-6.
  assert mean == pytest.approx(want["kid"]["kernel_inception_distance_mean"], rel=3e-6)
  assert std == pytest.approx(want["kid"]["kernel_inception_distance_std"], rel=3e-6)


def test_kid_of_all_images_is_what_subsets_scatter_around(golden):
  _, x, y = golden
  mean, std = kernels.kid_subsets(x, y, subsets=100, size=500)
  assert abs(kernels.kid(x, y) - mean) < 3 * std / np.sqrt(100)
  whole, spread = kernels.kid_subsets(x, y[:1000], subsets=2, size=1000)
  assert kernels.kid(x, y[:1000]) == pytest.approx(whole, rel=1e-4) and spread < 1e-6


def test_frechet_of_diagonal_gaussians_in_closed_form():
  rng = np.random.RandomState(0)
  d = 7
  stats, means, scales = [], [], []
  for _ in range(2):
    mean, scale = rng.randn(d), rng.rand(d) + 0.1
    stats.append(frechet.Statistics(11, mean, np.diag(scale**2) * 10))
    means.append(mean)
    scales.append(scale)
  want = ((means[0] - means[1]) ** 2).sum() + ((scales[0] - scales[1]) ** 2).sum()
  assert frechet.frechet_distance(*stats) == pytest.approx(want, rel=1e-10)


def test_frechet_of_a_set_and_itself_is_zero():
  x = np.random.RandomState(0).randn(50, 80)  # Singular: fewer images than features.
  assert abs(frechet.frechet_distance(statistics(x), statistics(x))) < 1e-5


def test_streaming_equals_two_passes_in_any_batches_and_order():
  rng = np.random.RandomState(0)
  x = rng.randn(100, 6) * 3 + 1e4  # A large mean: the one-pass formula would cancel.
  stats = frechet.Statistics()
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
  assert kernels.kid(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)
  assert kernels.kid(x[::-1], y) == pytest.approx(kernels.kid(x, y), rel=1e-10)


def test_kid_is_unbiased_and_its_interval_covers():
  values, covered = [], 0
  for seed in range(40):
    rng = np.random.RandomState(seed)
    x, y = rng.randn(60, 8), rng.randn(60, 8)
    values.append(kernels.kid(x, y))
    low, high = kernels.kid_interval(x, y)
    covered += low <= 0 <= high
  assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(40)
  assert covered >= 33  # 95 % in expectation


def test_too_few_images_are_refused():
  with pytest.raises(ValueError, match="2 images"):
    _ = statistics(np.zeros((1, 3))).covariance
  with pytest.raises(ValueError, match="subsets of 10"):
    kernels.kid_subsets(np.zeros((5, 3)), np.zeros((20, 3)), size=10)


def test_inception_score_golden(golden):
  want = golden[0]
  rs = np.random.RandomState(20241013)
  rs.randn(32, 32), rs.randn(1000, 32), rs.randn(1200, 32)
  logits = (rs.randn(1000, 10) * 2).astype(np.float32)
  assert logits.astype(np.float64).sum() == pytest.approx(want["sanity"]["Lg_sum"])
  for splits, name in ((10, "isc_splits10_seed2020"), (1, "isc_splits1")):
    mean, std = diversity.inception_score(logits, splits=splits)
    assert mean == pytest.approx(want[name]["inception_score_mean"], rel=1e-9)
    assert std == pytest.approx(want[name]["inception_score_std"], rel=1e-9)


def test_neighbours_golden(golden):
  want, x, y = golden
  precision, recall = neighbours.precision_recall(x, y, 3)
  theirs = want["prc_k3_torch_fidelity"]  # In float32.
  assert precision == pytest.approx(theirs["precision"], rel=1e-6)
  assert recall == pytest.approx(theirs["recall"], rel=1e-6)
  for k in (3, 5):
    density, coverage = neighbours.density_coverage(x, y, k)
    theirs = want[f"prdc_k{k}"]
    assert density == pytest.approx(theirs["density"], rel=1e-9)
    assert coverage == pytest.approx(theirs["coverage"], rel=1e-9)
    assert neighbours.precision_recall(x, y, k) == pytest.approx(
      (theirs["precision"], theirs["recall"]), rel=1e-9
    )


def test_cmmd_and_vendi_golden(golden):
  want, x, y = golden
  assert kernels.cmmd(x, y) == pytest.approx(want["cmmd_f64"], rel=1e-6)
  for q in (1, 2):
    theirs = want[f"vendi_q{q}_first300_X"]
    assert diversity.vendi(x[:300], q) == pytest.approx(theirs, rel=1e-6)


def test_kid_of_large_sets_is_that_of_small_ones(golden, monkeypatch):
  """In blocks; and its interval by projection is that of the bootstrap."""
  _, x, y = golden
  whole, (low, high) = kernels.kid(x, y), kernels.kid_interval(x, y)
  monkeypatch.setattr(kernels, "_ROWS", 64)
  monkeypatch.setattr(kernels, "_BOOTSTRAP", 10)
  assert kernels.kid(x, y) == pytest.approx(whole, rel=1e-10)
  a, b = kernels.kid_interval(x, y)
  assert (a + b) / 2 == pytest.approx(whole, rel=1e-10)
  assert b - a == pytest.approx(high - low, rel=0.15)


def test_scores_in_closed_form():
  rng = np.random.RandomState(0)
  same = np.tile(rng.randn(1, 6), (30, 1))
  assert diversity.inception_score(same, splits=3) == pytest.approx((1, 0))
  classes = np.tile(1e3 * np.eye(6), (10, 1))
  assert diversity.inception_score(classes, splits=1)[0] == pytest.approx(6)
  in_order = diversity.inception_score(classes, splits=10, seed=None)
  assert in_order == pytest.approx((6, 0))
  assert diversity.vendi(same) == pytest.approx(1)
  for n, d in ((5, 9), (5, 5)):
    assert diversity.vendi(np.eye(n, d)) == pytest.approx(n)
  assert diversity.vendi(np.tile(np.eye(4), (7, 1))) == pytest.approx(4)
  assert kernels.cmmd(same, same) == pytest.approx(0, abs=1e-12)
  # Unit rows of two directions: the kernel of their distance 2 stands once.
  a, b = np.array([[1.0, 0]] * 3), np.array([[0, 1.0]] * 4)
  assert kernels.cmmd(a, b) == pytest.approx(2000 * (1 - np.exp(-2 / 200)), rel=1e-9)


def test_a_set_has_all_of_itself_and_nothing_of_another():
  x = np.random.RandomState(0).randn(60, 5)
  assert neighbours.precision_recall(x, x) == (1, 1)
  assert neighbours.density_coverage(x, x, 5)[1] == 1
  assert neighbours.precision_recall(x, x + 1e3) == (0, 0)
  assert neighbours.density_coverage(x, x + 1e3) == (0, 0)
  with pytest.raises(ValueError, match="3 neighbours of each need more than 3"):
    neighbours.precision_recall(x[:3], x)


def test_frechet_infinity_removes_the_bias_of_few_images():
  rng = np.random.RandomState(0)
  d = 40
  mean, real = np.linspace(0, 0.3, d), frechet.Statistics(10**6, np.zeros(d), None)
  real.given = np.eye(d)
  truth = (mean**2).sum()
  x = rng.randn(3000, d) + mean
  biased = frechet.frechet_distance(frechet.Statistics().add(x), real)
  value, points = frechet.frechet_infinity(x, real)
  assert abs(value - truth) < 0.3 * abs(biased - truth)
  assert len(points) == 15 and points[-1].tolist() == [3000, pytest.approx(biased)]
  assert frechet.frechet_infinity(x, real)[0] == value


def test_merged_statistics_are_those_of_all():
  x = np.random.RandomState(0).randn(90, 4)
  parts = [frechet.Statistics().add(p) for p in np.split(x, [7, 50])]
  merged = parts[2].merge(parts[0]).merge(parts[1])
  np.testing.assert_allclose(merged.covariance, np.cov(x.T), rtol=1e-12)
  assert merged.count == 90
  with pytest.raises(ValueError, match="without a count"):
    merged.merge(frechet.Statistics(given=np.eye(4)))


def test_pairs():
  rng = np.random.RandomState(0)
  x = rng.randint(0, 256, (2, 3, 4, 3)).repeat(8, 1).repeat(6, 2).astype(np.uint8)
  noise = rng.randint(-40, 41, x.shape)
  y = np.clip(x + noise, 0, 255).astype(np.uint8)
  np.testing.assert_allclose(pairs.psnr(x, y), PSNR, rtol=1e-9)
  np.testing.assert_allclose(pairs.ssim(x, y), SSIM_UNIFORM, rtol=1e-9)
  np.testing.assert_allclose(
    pairs.ssim(x, y, window="gaussian"), SSIM_GAUSSIAN, rtol=1e-9
  )
  assert np.isinf(pairs.psnr(x, x)).all() and np.allclose(pairs.ssim(x, x), 1)
  with pytest.raises(ValueError, match="7 pixels"):
    pairs.ssim(x[:, :5], y[:, :5])
