"""fluid.prepare with several captions, mirror images, filters and twins left out."""

import functools
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from fluid import config, data, prepare, text
from fluid.console import progress
from fluid.data import make_source, packing, pipeline, records
from fluid.data.folder import FolderConfig
from fluid.text.learned import LearnedConfig
from tests.caches import BATCH, Rich, Tokenizer, content, make_run, write, write_rich
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A cache without any of these."""
  cache = tmp_path_factory.mktemp("prepare") / "cache"
  return cache, *write(cache)


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
    counts[split] = {k: want.count(k) for k in packing.FILTERED if k in want}
    counts[split] |= {"duplicate": len(twins)} if twins else {}
    assert found["filtered"] == counts[split]
    rows = read.gather(np.arange(len(read)))["bad"].tolist()
    kinds = {i: packing.KINDS[k - 1] for i, k in enumerate(rows) if k}
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
      assert all(counts[split].get(k) for k in (*packing.FILTERED, "duplicate"))
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
from tests import caches
from fluid.parallel import distributed

port, number, folder = sys.argv[1:]
distributed.join(f"localhost:{port}", 2, int(number))
caches.write(pathlib.Path(folder) / "cache")
caches.write_rich(pathlib.Path(folder) / "rich")
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
