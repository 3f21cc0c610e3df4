"""fluid.data.pipeline: one global order, whoever reads it and whenever it resumes."""

import collections
import itertools

import numpy as np
import pytest
from scipy import stats

from fluid import config
from fluid.data import pipeline
from tests.records_test import make_cache, make_example

N = 20


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return make_cache(tmp_path_factory.mktemp("data") / "c", N)


def train(cache, **kwargs):
  kwargs = {"batch": 8, "seed": 3, "shuffle": True} | kwargs
  return pipeline.make_loader(cache, "train", **kwargs)


def take(loader, n):
  return list(itertools.islice(iter(loader), n))


def share(index, count):
  """Rows of a batch of 8 that one of several processes reads."""
  return np.arange(8).reshape(count, -1)[index]


def join(shards):
  """Batches of every shard -> global batches."""
  return [{k: np.concatenate([p[k] for p in b]) for k in b[0]} for b in zip(*shards)]


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b):
    assert x.keys() == y.keys()
    for name in x:
      np.testing.assert_array_equal(x[name], y[name], strict=True)


def test_contract(cache):
  batch = take(train(cache, text_length=9), 1)[0]
  kinds = {name: (a.dtype, a.shape) for name, a in batch.items()}
  assert kinds == {
    "tokens": (np.float32, (8, 4, 2)),
    "text": (np.int32, (8, 9)),
    "text_mask": (bool, (8, 9)),
    "id": (np.int32, (8,)),
    "bad": (np.int8, (8,)),
    "mask": (bool, (8,)),
  }
  for i, text, mask in zip(batch["id"] - 10, batch["text"], batch["text_mask"]):
    ids = make_example(i)["text_ids"]
    assert text[mask].tolist() == ids and not text[~mask].any()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_shards_make_up_the_global_batch(cache, count, memory):
  whole = take(train(cache), 6)
  parts = [
    take(train(cache, rows=share(i, count), memory=memory), 6) for i in range(count)
  ]
  joined = [
    {k: np.concatenate([p[k] for p in batch]) for k in batch[0]}
    for batch in zip(*parts)
  ]
  assert_same(joined, whole)


def test_every_id_once_per_epoch_in_orders_of_their_own(cache):
  ids = np.concatenate([b["id"] for b in take(train(cache), 10)])
  epochs = ids.reshape(4, N)
  assert all(sorted(e) == list(range(10, 10 + N)) for e in epochs.tolist())
  assert len({tuple(e) for e in epochs.tolist()}) == 4
  other = np.concatenate([b["id"] for b in take(train(cache, seed=4), 10)])
  assert (ids != other).any()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("at", [0, 1, 5])
def test_any_batch_can_be_the_first(cache, at, workers):
  full = take(train(cache), 9)
  later = train(cache, workers=workers).iterate(at)
  assert_same(list(itertools.islice(later, 9 - at)), full[at:])


def test_rows_that_are_no_neighbours(cache):
  """A mesh laid over a torus deals rows out in turn; a row is the same for anyone."""
  whole, some = take(train(cache), 3), np.array([0, 1, 4, 7])
  assert_same(
    take(train(cache, rows=some), 3),
    [{k: v[some] for k, v in b.items()} for b in whole],
  )


def test_evaluation_is_in_order_and_masks_its_padding(cache):
  for count in (1, 2, 4):
    shards = [
      list(train(cache, shuffle=False, epochs=1, rows=share(i, count)))
      for i in range(count)
    ]
    batches = join(shards)
    assert [len(b["id"]) for b in batches] == [8, 8, 8]
    mask = np.concatenate([b["mask"] for b in batches])
    assert mask.tolist() == [True] * N + [False] * 4
    ids = np.concatenate([b["id"] for b in batches])[mask]
    assert ids.tolist() == list(range(10, 10 + N))
    tokens = np.concatenate([b["tokens"] for b in batches])[mask]
    means = np.stack([make_example(i)["mean"] for i in range(N)])
    np.testing.assert_array_equal(tokens, means.astype(np.float32))


def test_training_tokens_are_drawn_anew_each_epoch(cache):
  draws = collections.defaultdict(list)
  for batch in take(train(cache), 250):
    assert batch["mask"].all()
    for i, tokens in zip(batch["id"] - 10, batch["tokens"]):
      draws[i].append(tokens - make_example(i)["mean"].astype(np.float32))
  noise = np.stack([v for d in draws.values() for v in d]) / 0.5
  assert noise.size == 250 * 8 * 8 and len(np.unique(noise)) > 0.99 * noise.size
  assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3


def test_noise_rows_do_not_depend_on_their_company():
  whole = pipeline.normal(7, 0, 50, 5)
  np.testing.assert_array_equal(pipeline.normal(7, 20, 6, 5), whole[20:26])
  many = pipeline.normal(1, 0, 2000, 257)
  assert stats.kstest(many[:, -1], "norm").pvalue > 1e-3
  correlation = np.corrcoef(many[:, :40].T) - np.eye(40)
  assert np.abs(correlation).max() < 0.12
  assert (pipeline.normal(2, 0, 4, 6) != pipeline.normal(1, 0, 4, 6)).all()


def test_discrete_tokens_are_int32(tmp_path):
  cache = make_cache(tmp_path / "d", continuous=False)
  batch = take(train(cache, batch=4), 1)[0]
  assert batch["tokens"].dtype == np.int32
  for i, tokens in zip(batch["id"] - 10, batch["tokens"]):
    np.testing.assert_array_equal(tokens, make_example(i, False)["tokens"])


def test_wrong_arguments_are_one_clear_line(cache):
  with pytest.raises(config.ConfigError, match=r"text.length' \(4\).* 6 "):
    train(cache, text_length=4)
