"""fluid.prepare: the same bytes however often it is stopped, nothing mixed or lost."""

import dataclasses
import json

import numpy as np
import pytest

from fluid import config, data, prepare, text
from fluid.console import progress
from fluid.data import images, make_source, pipeline, records, summary
from fluid.data.shapes import ShapesConfig
from fluid.errors import REQUEUE, exit_code
from fluid.parallel.preemption import Preempted
from fluid.text.classes import ClassesConfig
from fluid.text.learned import LearnedConfig
from tests.caches import BATCH, TRAIN, Tokenizer, content, make_run, write


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


def test_one_that_failed_at_its_start_leaves_a_folder_for_another(whole, tmp_path):
  cache = tmp_path / "cache"
  with pytest.raises(config.ConfigError, match="vocab"):
    write(cache, text=LearnedConfig(vocab_size=3))
  assert content(cache) == {}
  write(cache)
  assert content(cache) == content(whole[0])


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
