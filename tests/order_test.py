"""fluid.data.order: draws and places are functions of what names them alone."""

import collections

import grain
import numpy as np
import pytest
from scipy import stats

from fluid import config
from fluid.data import order, records
from tests.records_test import make_cache


@pytest.mark.parametrize(
  "counter, key, wanted",
  [  # Known answers that come with Random123, the library of its authors.
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    (
      [2**32 - 1] * 4,
      [2**32 - 1] * 2,
      [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
    ),
    (
      [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
      [0xA4093822, 0x299F31D0],
      [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
  ],
)
def test_philox_is_the_published_one(counter, key, wanted):
  counters = np.repeat(np.array(counter, np.uint64)[:, None], 3, 1)
  found = order.philox(counters, np.array(key, np.uint64))
  np.testing.assert_array_equal(found, np.repeat(np.array(wanted)[:, None], 3, 1))


def test_draws_are_uniform_and_do_not_depend_on_company():
  ids, epochs = (a.ravel() for a in np.meshgrid(np.arange(400), np.arange(50)))
  found = order.draws(3, ids, epochs)
  some = np.random.default_rng(0).permutation(len(ids))[:777]
  np.testing.assert_array_equal(order.draws(3, ids[some], epochs[some]), found[some])
  # Over all, for each example over epochs, and for caption and view together.
  fives, twos = (found.astype(float) / 2**32 * (5, 2)).astype(int).T
  for counts in (np.bincount(fives), np.bincount(twos), np.bincount(2 * fives + twos)):
    assert stats.chisquare(counts).pvalue > 1e-3
  each = [stats.chisquare(np.bincount(f, minlength=5)).pvalue for f in
          fives.reshape(50, 400).T]  # fmt: skip
  assert min(each) > 1e-3 / 400 and stats.kstest(each, "uniform").statistic < 0.15
  assert (order.draws(4, ids, epochs) != found).mean() > 0.999
  far = order.draws(-1, np.array([2**31 - 1]), np.array([2**31]))
  assert (far != order.draws(-1, np.array([2**31 - 1]), np.array([0]))).all()


@pytest.mark.parametrize("weights", [(1.0,), (0.7, 0.3), (0.6, 0.25, 0.1, 0.05)])
def test_shares_are_exact_and_evenly_spread(weights):
  parts = order.whole(weights)
  share = np.array(weights) / sum(weights)
  had: collections.Counter[int] = collections.Counter()
  for place in range(3 * sum(parts)):
    cache, own = order.interleaved(place, parts)
    assert own == had[cache]  # Each of its places once, in order.
    had[cache] += 1
    counts = np.array([had[i] for i in range(len(weights))])
    assert (np.abs(counts - (place + 1) * share) <= np.arange(len(weights)) + 1).all()
    if (place + 1) % sum(parts) == 0:
      np.testing.assert_allclose(counts, (place + 1) * share)
  far = 10**15  # No sum that is too large for a place or a weight.
  odd = order.whole((0.1, 1 / 3, 2e-7))
  assert order.interleaved(far, odd)[1] == pytest.approx(
    far * odd[order.interleaved(far, odd)[0]] / sum(odd), rel=1e-9
  )


def test_each_cache_runs_through_epochs_of_its_own(tmp_path):
  caches = [
    records.Records(make_cache(tmp_path / str(n), n, per_shard=n), "train")
    for n in (6, 20)
  ]
  found = order.Order(caches, (0.25, 0.75), seed=5, shuffle=True, epochs=None)
  cache, index, epoch = found.at(np.arange(4 * 60))
  for number, size in enumerate((6, 20)):
    own, when = index[cache == number], epoch[cache == number]
    assert len(own) == (60, 180)[number]
    np.testing.assert_array_equal(when, np.arange(len(own)) // size)
    epochs = own.reshape(-1, size)
    assert (np.sort(epochs, 1) == np.arange(size)).all()
    assert len({tuple(e) for e in epochs.tolist()}) == len(epochs)
  some = np.array([239, 3, 17])
  for a, b in zip(found.at(some), (cache, index, epoch)):
    np.testing.assert_array_equal(a, b[some])


def test_one_cache_is_in_grains_order(tmp_path):
  """That of runs from before there were mixtures."""
  one = [records.Records(make_cache(tmp_path / "c"), "train")]
  found = order.Order(one, seed=3, shuffle=True, epochs=None)
  wanted = grain.MapDataset.range(20).shuffle(seed=3).repeat()
  cache, index, epoch = found.at(np.arange(50))
  assert index.tolist() == [wanted[i] for i in range(50)] and not cache.any()
  assert epoch.tolist() == [i // 20 for i in range(50)]


def test_what_was_left_out_is_in_no_epoch(tmp_path):
  path = make_cache(tmp_path / "c")
  metadata = records.read_metadata(path)
  out = np.zeros(20, bool)
  out[[0, 3, 9, 19]] = True
  shards = metadata["splits"]["train"]["shards"]
  for start, shard in zip((0, 8, 16), shards):
    shard["unused"] = records.bitmap(out[start : start + shard["records"]])
  del shards[1]["unused"]
  out[9] = False
  records.write_metadata(path, metadata)
  read = records.Records(path, "train")
  assert read.usable.tolist() == np.flatnonzero(~out).tolist() and len(read) == 20
  found = order.Order([read], seed=0, shuffle=True, epochs=2)
  index = found.at(np.arange(len(found)))[1]
  assert sorted(index.tolist()) == sorted(2 * read.usable.tolist())
  for shard in shards:
    shard["unused"] = records.bitmap(np.ones(shard["records"], bool))
  records.write_metadata(path, metadata)
  with pytest.raises(config.ConfigError, match="no records in"):
    order.Order([records.Records(path, "train")], seed=0, shuffle=True, epochs=1)
