"""fluid.prepare: the same bytes however often it is stopped, nothing mixed or lost.

The tokenizer here is a few lines of arithmetic: what is tested is the cache.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluid import config, data, prepare, text
from fluid.console import progress
from fluid.data import images, make_source, packing, pipeline, records, summary
from fluid.data.folder import FolderConfig
from fluid.data.shapes import ShapesConfig
from fluid.errors import REQUEUE, exit_code
from fluid.parallel.preemption import Preempted
from fluid.text.classes import ClassesConfig
from fluid.text.learned import LearnedConfig
from fluid.tokenizers.base import TokenSpec

ROOT = pathlib.Path(__file__).parents[1]
TRAIN, VAL, BATCH = 300, 10, 4  # 128 records a shard.


class Tokenizer:
  """Mean colour of the four quarters; `calls` counts batches, `fail_at` stops one."""

  image_size = 16

  def __init__(self, kind="continuous", fail_at=None):
    args = {"channels": 3} if kind == "continuous" else {"vocab": 64}
    self.spec = TokenSpec(kind=kind, length=4, grid=(2, 2), **args)
    self.calls, self.fail_at = 0, fail_at
    self._means = jax.jit(lambda x: x.reshape(-1, 2, 8, 2, 8, 3).mean((2, 4)))

  def moments(self, images):
    assert images.shape == (BATCH, 16, 16, 3) and np.abs(images).max() <= 1
    if self.calls == self.fail_at:
      raise KeyboardInterrupt
    self.calls += 1
    mean = self._means(images).reshape(-1, 4, 3)
    return mean, jnp.full_like(mean, 0.1)

  def encode(self, images):
    mean = self.moments(images)[0].mean(-1)
    return jnp.floor((mean + 1) * 31.5).astype(jnp.int32)


def make_run(cache, text=None, **data):
  data = {"image_size": 16, "num_train": TRAIN, "num_val": VAL, **data}
  text = text or LearnedConfig(vocab_size=120, length=40)
  return config.Run(data=config.Data(cache=str(cache), **data), text=text)


def write(cache, tokenizer=None, **data):
  lines = []
  run = make_run(cache, **data)
  tokenizer = tokenizer or Tokenizer()
  metadata = prepare.prepare(run, tokenizer=tokenizer, batch=BATCH, log=lines.append)
  return metadata, lines


def content(cache):
  return {f.name: f.read_bytes() for f in sorted(cache.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  cache = tmp_path_factory.mktemp("prepare") / "cache"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(progress, "SECONDS", 0)
    metadata, lines = write(cache)
  return cache, metadata, lines


def test_metadata_and_files(whole):
  cache, metadata, lines = whole
  assert metadata == json.loads((cache / "metadata.json").read_text())
  assert metadata["tokens"] == Tokenizer().spec.to_dict()
  assert metadata["text"]["vocab_size"] == text.Vocabulary(cache / "text.model").size
  assert metadata["splits"]["train"]["count"] == TRAIN
  assert [s["records"] for s in metadata["splits"]["train"]["shards"]] == [128, 128, 44]
  assert not list(cache.glob("*.tmp"))
  assert any("prepare train: 300/300 examples" in x and "ETA" in x for x in lines)


def test_records_are_the_source_through_the_tokenizer(whole):
  cache, _, _ = whole
  data = make_run(cache).data
  vocabulary = text.load(LearnedConfig(), str(cache))
  for split, indices in (("train", (0, 127, 128, 299)), ("val", (9,))):
    source, read = make_source(data, split), records.Records(cache, split)
    for i in indices:
      expected, got = source[i], read[i]
      for name in ("id", "caption", "meta"):
        assert got[name] == json.loads(json.dumps(expected[name]))
      image = expected["image"].astype(np.float32) / 127.5 - 1
      quarters = image.reshape(2, 8, 2, 8, 3).mean((1, 3)).reshape(4, 3)
      np.testing.assert_allclose(got["mean"], quarters, atol=1e-3)
      assert vocabulary.decode([got["text_ids"]]) == [expected["caption"].lower()]


def test_captions_alone_are_those_of_the_examples(tmp_path):
  for split in ("train", "val"):
    source = make_source(make_run(tmp_path).data, split)
    for i in range(40):
      assert source.caption(i) == source[i]["caption"]


def test_batches_come_out(whole):
  cache, _, _ = whole
  batch = next(
    iter(pipeline.make_loader(cache, "train", batch=8, seed=0, shuffle=True))
  )
  assert batch["tokens"].shape == (8, 4, 3) and batch["text"].shape == (8, 40)


@pytest.mark.parametrize("fail_at", [0, 10, 33, 64, 76])
def test_stopped_and_started_again_gives_the_same_bytes(whole, tmp_path, fail_at):
  cache = tmp_path / "cache"
  with pytest.raises(KeyboardInterrupt):
    write(cache, Tokenizer(fail_at=fail_at))
  with pytest.raises(records.RecordError, match="fluid.prepare"):
    records.Records(cache, "val")
  again = Tokenizer()
  write(cache, again)
  assert content(cache) == content(whole[0])
  # 32 batches a shard: what was complete is not encoded again.
  assert again.calls == 78 - min(fail_at // 32 * 32, 78) - (fail_at > 75) * 11


def test_told_to_stop_it_keeps_whole_shards_and_goes_on(whole, tmp_path):
  calls = iter(range(10**6))

  def before():
    if next(calls) == 40:  # In the second shard, of 32 batches.
      raise Preempted("told to")

  run = make_run(tmp_path)
  with pytest.raises(Preempted) as error:
    prepare.prepare(run, tokenizer=Tokenizer(), batch=BATCH, log=str, before=before)
  assert exit_code(error.value) == REQUEUE
  assert [f.name for f in tmp_path.glob("*.array_record")] == [
    "train-00000.array_record"
  ]
  write(tmp_path)
  assert content(tmp_path) == content(whole[0])


class Away:
  """A source of whose examples one lies where the disk is away for now."""

  def __init__(self, source):
    self.source = source

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    if index == 200:
      images.read("/proc/self/mem")
    return self.source[index]

  def caption(self, index):
    return self.source.caption(index)


def test_a_disk_that_is_away_ends_the_work_and_spoils_nothing(
  whole, tmp_path, monkeypatch
):
  real = prepare.make_source
  with monkeypatch.context() as patch:
    patch.setattr(prepare, "make_source", lambda *a: Away(real(*a)))
    with pytest.raises(OSError, match="Input/output error") as e:
      write(tmp_path, max_bad=1.0)
  assert exit_code(e.value) == REQUEUE
  assert len(list(tmp_path.glob("*.array_record"))) == 1
  write(tmp_path, max_bad=1.0)
  assert content(tmp_path) == content(whole[0])


def test_done_is_done(whole):
  before, tokenizer = content(whole[0]), Tokenizer(fail_at=0)
  assert write(whole[0], tokenizer)[0] == whole[1]
  assert content(whole[0]) == before


@pytest.mark.parametrize("truncate", [True, False])
def test_a_lost_shard_is_written_again(whole, tmp_path, truncate):
  cache = tmp_path / "cache"
  write(cache)
  lost = records.shard_path(cache, "train", 1)
  lost.write_bytes(lost.read_bytes()[:1000]) if truncate else lost.unlink()
  again = Tokenizer()
  write(cache, again)
  assert again.calls == 32
  assert content(cache) == content(whole[0])


@pytest.mark.parametrize(
  "change, key",
  [
    ({"seed": 1}, "data.seed is 0 there, 1 here"),
    ({"num_train": 299}, "data.num_train"),
    ({"source": ShapesConfig(tags=("counting",))}, "data.source.tags"),
  ],
)
def test_another_config_is_refused(whole, change, key):
  before = content(whole[0])
  with pytest.raises(config.ConfigError, match=f"another config .{key}.*data.cache"):
    write(whole[0], **change)
  assert content(whole[0]) == before


def test_another_tokenizer_is_refused(whole):
  with pytest.raises(config.ConfigError, match="another config .tokenizer"):
    write(whole[0], Tokenizer("discrete"))


def test_discrete_tokens(tmp_path):
  write(tmp_path / "c", Tokenizer("discrete"), num_train=20)
  example = records.Records(tmp_path / "c", "train")[3]
  assert example["tokens"].dtype == np.uint16 and example["tokens"].shape == (4,)


@pytest.mark.parametrize("classes", ["tag", "shape"])
def test_classes_are_the_text(tmp_path, classes):
  run = make_run(
    tmp_path / "c",
    text=ClassesConfig(),
    num_train=20,
    source=ShapesConfig(classes=classes),
  )
  metadata = prepare.prepare(run, tokenizer=Tokenizer(), batch=BATCH, log=str)
  source = make_source(run.data, "train")
  names = list(source.classes)
  wanted = {"kind": "classes", "vocab_size": len(names), "length": 1}
  assert metadata["text"] == wanted
  assert metadata["splits"]["train"]["cut_captions"] == 0
  read = records.Records(run.data.cache, "train")
  for i in range(20):
    assert read[i]["text_ids"] == [names.index(source.label(i))]
    assert read[i]["caption"] == source.caption(i)
  batch = next(iter(pipeline.loader(run, "train", batch=8, shuffle=True)))
  assert batch["text"].shape == (8, 1) and batch["text_mask"].all()
  assert text.load(run.text, run.data.cache).names == names


def test_given_vocabulary_and_overlong_captions(whole, tmp_path):
  run = make_run(tmp_path / "c", num_train=20)
  path = str(whole[0] / "text.model")
  run = dataclasses.replace(run, text=LearnedConfig(path=path, length=4))
  metadata = prepare.prepare(run, tokenizer=Tokenizer(), batch=BATCH, log=str)
  assert metadata["splits"]["train"]["cut_captions"] > 10
  copied = text.load(LearnedConfig(), run.data.cache)
  assert copied.known == text.Vocabulary(path).known
  assert all(
    len(e["text_ids"]) <= 4 for e in [records.Records(run.data.cache, "val")[0]]
  )


def test_wrong_configs_are_one_clear_line(tmp_path):
  def refused(match, tokenizer=None, **data):
    with pytest.raises(config.ConfigError, match=match) as error:
      write(data.pop("cache", tmp_path / "c"), tokenizer, **data)
    assert "\n" not in str(error.value)

  refused("data.cache", cache="")
  refused("data.image_size.* 32.* 16", image_size=32)
  refused("cannot draw tags", source=ShapesConfig(tags=("colour",)))
  # What no source knows does not come so far.
  for source, match in (
    ({"kind": "shape"}, "'data.source.kind'.*choose from shapes"),
    ({"kind": "shapes", "tag": "x"}, "'data.source.tag'.*tags"),
  ):
    with pytest.raises(config.ConfigError, match=match):
      config.from_config_dict({"data": {"source": source}})
  assert not (tmp_path / "c").exists()
  bad = Tokenizer()
  bad.moments = lambda images: (np.full((BATCH, 4, 3), np.nan), np.ones((BATCH, 4, 3)))
  refused("4 of 300 .*data.max_bad.* id .*not finite", bad, cache=tmp_path / "nan")


def test_bad_examples_keep_their_place_up_to_a_share(whole, tmp_path, monkeypatch):
  class Flawed:
    def __init__(self, source):
      self.source = source

    def __len__(self):
      return len(self.source)

    def __getitem__(self, index):
      if index == 7:
        raise data.BadExample("image a/b.png cannot be read (torn)")
      return self.source[index] | ({"caption": "  "} if index == 130 else {})

    def caption(self, index):
      return self.source.caption(index)

  real = prepare.make_source
  monkeypatch.setattr(prepare, "make_source", lambda *a: Flawed(real(*a)))
  with pytest.raises(config.ConfigError, match="max_bad' .*id -1, image: .*a/b.png"):
    write(tmp_path / "c", max_bad=0.0)
  metadata, lines = write(tmp_path / "c", max_bad=0.1)
  assert metadata["splits"]["train"]["skipped"] == {"image": 1, "caption": 1}
  assert metadata["splits"]["val"]["skipped"] == {"image": 1}
  assert lines[-1].endswith("skipped: 1 caption, 2 image")
  rows = records.Records(tmp_path / "c", "train").gather(np.arange(TRAIN))
  full = records.Records(whole[0], "train").gather(np.arange(TRAIN))
  good = rows.pop("bad") == 0
  assert np.flatnonzero(~good).tolist() == [7, 130]
  for name, values in rows.items():
    np.testing.assert_array_equal(values[good], full[name][good])


class Rich:
  """A source with all that one can have: captions, sizes, scores, twins, bad ones."""

  def __init__(self, source):
    self.source = source

  def __len__(self):
    return len(self.source)

  def captions(self, index):
    caption = self.source.caption(index)
    return [caption, *(f"{caption} again {k}" for k in range(index % 4))]

  def caption(self, index):
    return self.captions(index)[0]

  def __getitem__(self, index):
    if index == 5:
      raise data.BadExample("image 5 is torn")
    example = self.source[index]
    if index % 10 == 9:
      example["image"] = self.source[index - 7]["image"]
    example["size"] = (20, 8) if index % 11 == 3 else (90, 30 + index % 13)
    example["meta"]["score"] = str(index % 5) if index % 17 != 6 else None
    if index in (9, 49, 99):
      example["meta"]["rare"] = 1
    captions = self.captions(index)
    return example | {"caption": captions[0], "captions": captions}


WANTED = {
  "captions": 3,
  "flips": True,
  "dedupe": True,
  "filter": config.Filter(
    min_side=16, max_aspect=2.8, min_words=4, score="score", min_score=1.0
  ),
  "max_bad": 0.1,
  "num_train": 140,
}


def write_rich(cache, tokenizer=None, **changes):
  with pytest.MonkeyPatch.context() as patch:
    real = prepare.make_source
    patch.setattr(prepare, "make_source", lambda *a: Rich(real(*a)))
    return write(cache, tokenizer, **WANTED | changes)


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
  cache = tmp_path_factory.mktemp("rich") / "cache"
  return cache, *write_rich(cache)


def expected(source, index):
  """What becomes of an example: a reason, or the captions that are kept."""
  if index == 5:
    return "image"
  if index % 11 == 3:
    return "side"
  if 90 / (30 + index % 13) > 2.8:
    return "aspect"
  if not (fit := [c for c in source.captions(index) if len(c.split()) >= 4]):
    return "words"
  if index % 17 == 6 or index % 5 < 1:
    return "score"
  return fit[:3]


def test_filters_captions_and_mirror_images(rich):
  cache, metadata, lines = rich
  vocabulary = text.load(LearnedConfig(), str(cache))
  data = make_run(cache).data
  counts = {}
  for split in ("train", "val"):
    source, read = Rich(make_source(data, split)), records.Records(cache, split)
    want = [expected(source, i) for i in range(len(read))]
    kept = [i for i, found in enumerate(want) if isinstance(found, list)]
    twins = {i for i in kept if i % 10 == 9 and i - 7 in kept}
    usable = [i for i in kept if i not in twins]
    bad = [5]  # In the order as ever: a row that is masked.
    assert read.usable.tolist() == sorted(usable + bad)
    found = metadata["splits"][split]
    assert found["skipped"] == {"image": 1} and found["count"] == len(want)
    counts[split] = {k: want.count(k) for k in records.FILTERED if k in want}
    counts[split] |= {"duplicate": len(twins)} if twins else {}
    assert found["filtered"] == counts[split]
    rows = read.gather(np.arange(len(read)))["bad"].tolist()
    kinds = {i: records.KINDS[k - 1] for i, k in enumerate(rows) if k}
    assert kinds == {i: w for i, w in enumerate(want) if isinstance(w, str)}
    handed = 0
    for i in kept:
      example, original = read[i], source[i]
      assert [t["caption"] for t in packing.texts(example)] == want[i]
      for said in packing.texts(example):
        ids = vocabulary.encode([said["caption"]], 40)[0][0]
        assert said["text_ids"] == ids[ids > 0].tolist()
      image = original["image"].astype(np.float32) / 127.5 - 1
      quarters = lambda x: x.reshape(2, 8, 2, 8, 3).mean((1, 3)).reshape(4, 3)
      np.testing.assert_allclose(example["mean"], quarters(image), atol=1e-3)
      says = any("left" in c or "right" in c for c in want[i])
      handed += says
      assert ("mirror" in example) == (split == "train" and not says)
      if "mirror" in example:
        mirrored = quarters(image[:, ::-1])
        np.testing.assert_allclose(example["mirror"]["mean"], mirrored, atol=1e-3)
        assert example["mirror"].keys() == {"mean", "std"}
    if split == "train":
      assert all(counts[split].get(k) for k in (*records.FILTERED, "duplicate"))
      assert 0 < handed < len(kept) and found["captions"] == 3
      assert (found["mirrored"], found["unmirrored"]) == (len(kept) - handed, handed)
  total = {k: sum(c.get(k, 0) for c in counts.values()) for k in counts["train"]}
  named = ", ".join(f"{total[k]} {k}" for k in sorted(total))
  assert f"skipped: 2 image; filtered: {named}; " in lines[-1]
  rest = metadata["splits"]["train"]["unmirrored"]
  assert f" mirrored, {rest} not, as left and right matter" in lines[-1]


def test_what_is_filtered_takes_no_place_in_the_encoder(rich, tmp_path):
  tokenizer = Tokenizer()
  write_rich(tmp_path / "c", tokenizer, flips=False, dedupe=False)
  calls = 0
  for split, shards in (("train", (128, 12)), ("val", (10,))):
    found = records.Records(tmp_path / "c", split)
    ends = np.cumsum((0, *shards))
    for start, stop in zip(ends, ends[1:]):
      calls += -(-((found.usable >= start) & (found.usable < stop)).sum() // BATCH)
  assert tokenizer.calls == calls < (140 + 10) / BATCH


def test_training_draws_what_is_kept(rich):
  cache, _, _ = rich
  read = records.Records(cache, "train")
  n = len(read.usable)
  loader = pipeline.make_loader(cache, "train", batch=n, seed=0, shuffle=True)
  for batch, _ in zip(loader, range(3)):
    assert (~batch["mask"]).sum() == 1 and len(set(batch["id"].tolist())) == n
    kept = {read[i]["id"] for i in read.usable.tolist() if i != 5}
    assert set(batch["id"][batch["mask"]].tolist()) == kept
  judged = pipeline.make_loader(cache, "val", batch=4, seed=0, shuffle=False, epochs=1)
  masks = np.concatenate([b["mask"] for b in judged])
  assert len(masks) - len(records.Records(cache, "val").usable) < 4


@pytest.mark.parametrize("fail_at", [3, 30])
def test_with_all_options_a_restart_gives_the_same_bytes(rich, tmp_path, fail_at):
  with pytest.raises(KeyboardInterrupt):
    write_rich(tmp_path / "c", Tokenizer(fail_at=fail_at))
  write_rich(tmp_path / "c")
  assert content(tmp_path / "c") == content(rich[0])


def test_no_record_is_read_again(whole, tmp_path, monkeypatch):
  def read(path):
    raise AssertionError(f"{path} is read")

  monkeypatch.setattr(records, "read_shard", read)
  with pytest.raises(KeyboardInterrupt):
    write(tmp_path, Tokenizer(fail_at=40))
  write(tmp_path)
  assert content(tmp_path) == content(whole[0])
  nothing = {"count": 0, "cut_captions": 0, "skipped": {}, "shards": []}
  assert summary.describe(config.Data(), "val", []) == nothing


@pytest.mark.parametrize("left", ["", "train-00000", "train-00001"])
def test_a_cache_of_before_is_gone_on_with(rich, tmp_path, left, monkeypatch):
  """Without summaries, or with some: those that are missing are made of the shards."""
  cache = tmp_path / "cache"
  shutil.copytree(rich[0], cache)
  for file in cache.glob("*.summary.json"):
    if not left or not file.name.startswith(left):
      file.unlink()
  before = content(cache)
  write_rich(cache, Tokenizer(fail_at=0))  # It is complete.
  assert content(cache) == before
  metadata = json.loads(before["metadata.json"])
  records.write_metadata(cache, metadata | {"splits": {}})
  monkeypatch.setattr(progress, "SECONDS", 0)
  _, lines = write_rich(cache, Tokenizer(fail_at=0))
  assert content(cache) == content(rich[0])
  assert any(x.startswith("prepare train: ") and "ETA" in x for x in lines)


def test_worker_processes_change_no_byte(tmp_path):
  """Of bad examples neither, whose keys they hand on in an order of their own."""
  small = {"num_train": 12, "num_val": 6, "max_bad": 0.5}
  for name, workers in (("a", 0), ("b", 2)):
    write_rich(tmp_path / name, workers=workers, **small)
  found = content(tmp_path / "b")
  assert found == content(tmp_path / "a")


def test_a_cache_of_other_options_is_refused(whole, rich, tmp_path):
  for options, key in (
    ({"captions": 2}, "data.captions"),
    ({"flips": True}, "data.flips"),
    ({"dedupe": True}, "data.dedupe"),
    ({"filter": config.Filter(min_side=3)}, "data.filter.min_side"),
  ):
    with pytest.raises(
      config.ConfigError, match=f"another config .{key} is its default"
    ):
      write(whole[0], **options)
  for cache, wanted in (
    (rich[0], {"max_bad": 0.5}),
    (whole[0], {"mixture": ("a",), "weights": (1.0,)}),
  ):
    before = content(cache)
    (write_rich if cache == rich[0] else write)(cache, **wanted)
    assert content(cache) == before


def test_filters_that_leave_nothing_are_refused(tmp_path):
  def refused(match, **filters):
    with pytest.raises(config.ConfigError, match=match) as error:
      some = {"num_train": 8, "num_val": 2, "max_bad": 0.5}
      write_rich(tmp_path / match[:4], filter=config.Filter(**filters), **some)
    assert "\n" not in str(error.value)

  refused("'beauty', which none of 7 examples .*has .*, score", score="beauty")
  refused("no example of split 'train' .*side", min_side=1000)


def test_a_score_that_few_have_is_a_filter(tmp_path):
  """And of a long split not all are looked at to find that none has it."""
  write_rich(tmp_path / "c", filter=config.Filter(score="rare"))
  kept = {
    split: records.Records(tmp_path / "c", split).usable for split in ("train", "val")
  }
  assert [kept["train"].tolist(), kept["val"].tolist()] == [[5, 9, 49, 99], [5, 9]]

  looked = []

  class Long:
    def __len__(self):
      return 10**7

    def __getitem__(self, index):
      looked.append(index)
      if index < 16:
        raise data.BadExample("torn")
      return {"meta": {"a": 1}}

  run = make_run(tmp_path, filter=config.Filter(score="rare"), num_train=0)
  with pytest.raises(config.ConfigError, match="none of 1008 examples .* has a: name"):
    prepare._look(run, "train", Long())
  assert looked == sorted(set(looked)) and looked[-1] == 10**7 - 1


def test_a_split_without_examples_is_refused(tmp_path):
  """A small folder may have none whose name is drawn for val."""
  (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n')
  (tmp_path / "0.png").write_bytes(b"")
  source = FolderConfig(path=str(tmp_path))
  assert not len(make_source(config.Data(source=source), "val"))
  with pytest.raises(config.ConfigError, match="'val' of source 'folder' holds no ex"):
    run = make_run(tmp_path / "c", source=source)
    prepare.prepare(run, tokenizer=Tokenizer(), batch=BATCH, splits=["val"])
  assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("wrong", ["train", "val"])
def test_a_split_of_which_nothing_can_be_used_leaves_no_trace(
  tmp_path, monkeypatch, wrong
):
  """It is found before the other split is encoded, and with its reason."""
  real = prepare.make_source

  class Bad:
    def __init__(self, source):
      self.source = source

    def __len__(self):
      return len(self.source)

    def __getitem__(self, index):
      raise data.BadExample(f"{index} has no 'text'", "caption")

  def make(config_, split):
    source = real(config_, split)
    return Bad(source) if split == wrong else source

  monkeypatch.setattr(prepare, "make_source", make)
  with pytest.raises(config.ConfigError) as e:
    write(tmp_path / "c")
  told = f"none of [0-9]+ examples of split '{wrong}', .*; the first: 0 has no 'text'"
  assert re.fullmatch(told, str(e.value))
  assert not (tmp_path / "c").exists()
  monkeypatch.undo()
  write(tmp_path / "c")
  # Of a split that is done, images may be gone.
  monkeypatch.setattr(prepare, "make_source", make)
  assert write(tmp_path / "c")[0]["splits"].keys() == {"train", "val"}


PROCESS = """
import pathlib, sys
from tests import prepare_test
from fluid.parallel import distributed

port, number, folder = sys.argv[1:]
distributed.join(f"localhost:{port}", 2, int(number))
prepare_test.write(pathlib.Path(folder) / "cache")
prepare_test.write_rich(pathlib.Path(folder) / "rich")
"""


def test_two_processes_write_what_one_writes(whole, rich, tmp_path):
  """Each its shards; a second start by one process finds nothing to do."""
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", PROCESS, str(port)]
  processes = [
    subprocess.Popen([*command, str(i), str(tmp_path)], env=env, cwd=ROOT)
    for i in range(2)
  ]
  assert [p.wait(240) for p in processes] == [0, 0]
  assert content(tmp_path / "cache") == content(whole[0])
  assert content(tmp_path / "rich") == content(rich[0])
  tokenizer = Tokenizer()
  write(tmp_path / "cache", tokenizer)
  assert tokenizer.calls == 0


def test_training_asks_for_no_more_than_was_prepared(tmp_path):
  """And the vocabulary is of the captions that a filter keeps."""
  told = ["cat", "a zebra stands on grass"]
  words = config.Filter(min_words=3)
  assert data.kept_captions(told, config.Data(filter=words)) == told[1:]
  assert data.kept_captions([*told, *told], config.Data(captions=0)) == told
  assert data.kept_captions(["cat"], config.Data(filter=words)) == ["cat"]

  class Told:
    captions = lambda self, index: told
    caption = lambda self, index: told[0]

  keep = functools.partial(data.kept_captions, data=config.Data(filter=words))
  prompts = LearnedConfig(vocab_size=40)
  prompts.fit(Told(), 20, tmp_path / "text.model", keep)
  assert not prompts.open(tmp_path / "text.model").unknown(told[1])

  write(tmp_path / "cache", num_train=8)
  run = make_run(tmp_path / "cache", num_train=8)
  assert len(pipeline.loader(run, "train", batch=4, shuffle=True)) > 1
  for key, value in (("flips", True), ("captions", 5), ("filter.min_side", 9)):
    asked = config.replaced(run, {f"data.{key}": value})
    with pytest.raises(config.ConfigError, match=f"'data.{key}' is {value}, but"):
      pipeline.loader(asked, "train", batch=4, shuffle=True)
