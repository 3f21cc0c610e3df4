"""fluid.data.pipeline: one global order, whoever reads it and whenever it resumes."""

import collections
import dataclasses
import hashlib
import itertools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from scipy import stats

from fluid import config
from fluid.data import mixtures, pipeline, records
from fluid.data.feed import Feed
from fluid.parallel import sharding
from fluid.text.learned import LearnedConfig
from tests.conftest import ROOT
from tests.records_test import make_cache, make_example, make_rich

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


def test_worker_processes_leave_nothing_behind(tmp_path):
  """Python warns at its end of shared memory that nobody has freed."""
  code = """
import grain, numpy as np
from fluid.data import pipeline
def image(number): return {"image": np.full((64, 64, 3), number % 2)}
if __name__ == "__main__":
  images = grain.MapDataset.range(300).map(image).batch(16, batch_fn=list)
  read = pipeline.in_processes(images.to_iter_dataset(), workers=2)
  print(sum(int(e["image"].mean()) for batch in read for e in batch))
"""
  (file := tmp_path / "read.py").write_text(code)
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run([sys.executable, file], env=env, capture_output=True, text=True)
  assert (done.stdout, done.stderr) == ("150\n", "")


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
  code = """
import os, signal, grain
from fluid.data import pipeline
def number(i): return os.getpid()
if __name__ == "__main__":
  ids = grain.MapDataset.range(1000).map(number)
  found = iter(pipeline.in_processes(ids.to_iter_dataset(), workers=2))
  print(next(found), next(found), flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""
  (file := tmp_path / "read.py").write_text(code)
  env = os.environ | {"PYTHONPATH": str(ROOT)}
  # Its end of file comes once nobody is left who could write.
  done = subprocess.run(
    [sys.executable, file], env=env, stdout=-1, text=True, timeout=60
  )
  assert done.returncode == -9 and len(set(done.stdout.split())) == 2


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


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
  return make_rich(tmp_path_factory.mktemp("rich") / "c", continuous=False)


def drawn(batches):
  """(i, epoch) -> which caption, and whether mirrored, of batches in which all come."""
  seen: collections.Counter[int] = collections.Counter()
  out = {}
  for batch in batches:
    for i, text, tokens in zip(batch["id"] - 10, batch["text"], batch["tokens"]):
      caption = max(0, int(text[1]) - 40)
      wanted = [3 + i, 40 + caption] if caption else make_example(i)["text_ids"]
      assert text[text > 0].tolist() == wanted
      mirrored = set((tokens - make_example(i, False)["tokens"]).tolist())
      assert len(mirrored) == 1
      out[int(i), seen[i]] = caption, mirrored.pop()
      seen[i] += 1
  return out


def test_draws_depend_on_seed_example_and_epoch_alone(rich):
  """Not on the batch, on who reads it, on where it lies or where it is begun."""
  whole = take(train(rich), 10)  # 4 epochs.
  wanted = drawn(whole)
  assert drawn(take(train(rich, batch=5), 16)) == wanted
  assert drawn(take(train(rich, batch=80), 1)) == wanted
  for memory in (0, 1 << 30):
    parts = [take(train(rich, rows=share(i, 4), memory=memory), 10) for i in range(4)]
    assert_same(join(parts), whole)
  assert_same(list(itertools.islice(train(rich).iterate(7), 3)), whole[7:])
  other = drawn(take(train(rich, seed=4), 10))
  assert other.keys() == wanted.keys() and other != wanted


@pytest.mark.slow
def test_worker_processes_draw_the_same(rich):
  assert_same(take(train(rich, workers=2), 6), take(train(rich), 6))


def test_captions_and_mirror_images_come_in_equal_shares(rich):
  found = drawn(take(train(rich, batch=2000), 4))  # 400 epochs.
  for i in range(20):
    captions, mirrored = zip(*(found[i, epoch] for epoch in range(400)))
    for drawn_of, most in ((captions, 1 + i % 3), (mirrored, 1 + (i % 4 > 0))):
      counts = np.bincount(drawn_of, minlength=most)
      assert len(counts) == most
      assert most == 1 or stats.chisquare(counts).pvalue > 1e-4


def test_evaluation_takes_first_captions_and_images_as_they_are(rich, tmp_path):
  plain = make_cache(tmp_path / "plain", continuous=False)
  args = {"shuffle": False, "epochs": 1}
  assert_same(list(train(rich, **args)), list(train(plain, **args)))


def mixed(tmp_path, **kwargs):
  """A training stream of three parts of a cache of 20 and one of 12."""
  folders = []
  for number, size in enumerate((20, 12)):
    folders.append(tmp_path / f"m{number}")
    if not folders[-1].exists():
      make_cache(folders[-1], size, continuous=False, length=6 + number)
  return train(folders[0], mixture=folders, weights=(0.75, 0.25), **kwargs)


def test_a_mixture_is_the_same_for_all_readers_and_starts(tmp_path):
  whole = take(mixed(tmp_path), 12)
  assert whole[0]["text"].shape == (8, 7)  # The longer one's.
  for count in (2, 4, 8):
    parts = [take(mixed(tmp_path, rows=share(i, count)), 12) for i in range(count)]
    assert_same(join(parts), whole)
  assert_same(take(mixed(tmp_path, memory=0), 12), whole)
  assert_same(list(itertools.islice(mixed(tmp_path).iterate(5), 7)), whole[5:])
  ids = lambda batches: np.concatenate([b["id"] for b in batches]).tolist()
  assert ids(take(mixed(tmp_path, batch=12), 8)) == ids(whole)


def test_rows_of_a_mixture_are_those_of_its_caches(tmp_path):
  """Each in its order as if it were alone: only the places differ."""
  batches = take(mixed(tmp_path), 30)
  cache, index, _ = mixed(tmp_path).batches.order.at(np.arange(240))
  assert np.bincount(cache).tolist() == [180, 60]
  ids = np.concatenate([b["id"] for b in batches])
  np.testing.assert_array_equal(ids, 10 + index)
  alone = take(train(tmp_path / "m0"), 23)
  assert "cache" not in alone[0]
  alone = np.concatenate([b["id"] for b in alone])[:180]
  np.testing.assert_array_equal(ids[cache == 0], alone)
  tokens = np.concatenate([b["tokens"] for b in batches])
  for i, row in zip(ids - 10, tokens):
    np.testing.assert_array_equal(row, make_example(i, False)["tokens"])
  # One id in two caches is two examples: their masks and noise are others.
  np.testing.assert_array_equal(np.concatenate([b["cache"] for b in batches]), cache)
  epochs = ids[cache == 1].reshape(5, 12)
  assert (np.sort(epochs, 1) == np.arange(10, 22)).all()


def made_alike(tmp_path, **changes):
  """A run that mixes two caches, as if prepared alike but for changes of the second."""
  folders = [make_cache(tmp_path / name, continuous=False) for name in "ab"]
  make_cache(folders[0], 8, split="val", continuous=False)
  for folder in folders:
    metadata = records.read_metadata(folder)
    metadata["tokens"] = {"kind": "discrete", "length": 4, "vocab": 500}
    metadata["text"] |= {"kind": "learned", "vocab_size": 60}
    metadata["config"] = {"tokenizer.weights": "w", "text.file": ""}
    for section, values in changes.items() if folder == folders[1] else ():
      metadata[section] |= values
    records.write_metadata(folder, metadata)
    (folder / "text.model").write_bytes(b"words")
  names = tuple(map(str, folders))
  data = config.Data(cache=names[0], mixture=names, weights=(2.0, 1.0))
  return config.Run(data=data, text=LearnedConfig(length=6))


def test_a_run_trains_on_its_mixture_and_is_judged_on_its_cache(tmp_path):
  run = made_alike(tmp_path)
  training = pipeline.loader(run, "train", batch=9, shuffle=True)
  cache, _, _ = training.batches.order.at(np.arange(90))
  assert np.bincount(cache).tolist() == [60, 30]
  assert training.batches.examples == 40
  for split in ("val", "train"):
    judged = pipeline.loader(run, split, batch=8, shuffle=False, epochs=1)
    assert [str(c.cache) for c in judged.batches.caches] == [run.data.cache]


def test_a_run_goes_on_with_the_same_caches_and_weights_alone(tmp_path):
  data = made_alike(tmp_path).data
  alone = dataclasses.replace(data, mixture=(), weights=())
  own = records.fingerprint(records.read_metadata(data.cache))
  assert mixtures.mark(alone) == own
  marks = {own, mixtures.mark(data)}
  marks.add(mixtures.mark(dataclasses.replace(data, weights=(1.0, 1.0))))
  for folder in data.mixture:
    metadata = records.read_metadata(folder)
    metadata["splits"]["train"]["shards"][0]["sha256"] = "other"
    records.write_metadata(folder, metadata)
    marks.add(mixtures.mark(data))
  assert len(marks) == 5


@pytest.mark.parametrize(
  "change, name",
  [
    ({"tokens": {"vocab": 400}}, "tokens.vocab is 400, but that of .*/a is 500"),
    ({"tokens": {"length": 16}}, "tokens.length"),
    ({"tokens": {"kind": "continuous"}}, "tokens.kind"),
    ({"config": {"tokenizer.weights": "x"}}, "tokenizer.weights is 'x'"),
    ({"text": {"kind": "classes"}}, "text.kind"),
    ({"text": {"features": 4}}, "text.features is 4, but that of .*/a is None"),
    ({"config": {"text.file": "y"}}, "text.file is 'y'"),
  ],
)
def test_caches_that_differ_are_refused_in_one_line(tmp_path, change, name):
  run = made_alike(tmp_path, **change)
  with pytest.raises(config.ConfigError, match=f"names .*/b, whose {name}") as error:
    pipeline.loader(run, "train", batch=8, shuffle=True)
  assert "\n" not in str(error.value)


def test_a_vocabulary_is_its_words_whether_made_or_given(tmp_path):
  run = made_alike(tmp_path)
  metadata = records.read_metadata(run.data.mixture[1])
  # As prepare notes a text.path.
  metadata["config"]["text.file"] = hashlib.sha256(b"words").hexdigest()
  records.write_metadata(run.data.mixture[1], metadata)
  pipeline.loader(run, "train", batch=8, shuffle=True)
  (tmp_path / "a" / "text.model").write_bytes(b"other words")
  with pytest.raises(config.ConfigError, match="names .*/b, whose text.file"):
    pipeline.loader(run, "train", batch=8, shuffle=True)
  missing = config.replaced(run, {"data.mixture": (str(tmp_path / "c"), "b")})
  with pytest.raises(config.ConfigError, match="no cached tokens in .*/c"):
    pipeline.loader(missing, "train", batch=8, shuffle=True)


def test_discrete_tokens_are_int32(tmp_path):
  cache = make_cache(tmp_path / "d", continuous=False)
  batch = take(train(cache, batch=4), 1)[0]
  assert batch["tokens"].dtype == np.int32
  for i, tokens in zip(batch["id"] - 10, batch["tokens"]):
    np.testing.assert_array_equal(tokens, make_example(i, False)["tokens"])


def test_wrong_arguments_are_one_clear_line(cache):
  with pytest.raises(config.ConfigError, match=r"text.length' \(4\).* 6 "):
    train(cache, text_length=4)


@pytest.mark.parametrize("told", [0, 1, 2])
def test_a_feed_gives_each_batch_once_however_often_it_is_told_to_draw(cache, told):
  loader = train(cache)
  feed = Feed(loader, sharding.make_mesh(config.Mesh(), jax.devices()[:1]), 2)
  for wanted in take(loader, 6)[2:]:
    assert_same([jax.device_get(feed.next())], [wanted])
    for _ in range(told):
      feed.draw()
  feed.close()
