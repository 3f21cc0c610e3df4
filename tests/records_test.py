"""fluid.data.records: what goes in comes out; damage is named with file and remedy."""

import json
import pickle
import subprocess
import sys

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluid import config
from fluid.data import packing, records
from fluid.errors import REQUEUE, exit_code


def make_cache(path, n=20, per_shard=8, *, split="train", continuous=True, length=6):
  """A small cache; example i has id 10 + i and arrays that depend on i."""
  path.mkdir(exist_ok=True)
  shards = []
  for start in range(0, n, per_shard):
    file = records.shard_path(path, split, start // per_shard)
    rows = [
      make_example(i, continuous) for i in range(start, min(start + per_shard, n))
    ]
    records.write_shard(file, [packing.pack(r) for r in rows])
    size = file.stat().st_size
    shards.append({"name": file.name, "records": len(rows), "bytes": size})
  metadata = {"splits": {}, "text": {"length": length}}
  if (path / records.METADATA).is_file():
    metadata = records.read_metadata(path)
  metadata["splits"][split] = {"count": n, "shards": shards}
  records.write_metadata(path, metadata)
  return path


def make_example(i, continuous=True):
  rng = np.random.default_rng(i)
  example = {"id": 10 + i, "caption": f"caption {i}", "meta": {"tag": "x", "n": [i]}}
  example["text_ids"] = [3 + i] * (i % 5) + [1]
  if continuous:
    example["mean"] = rng.normal(size=(4, 2)).astype(np.float16)
    example["std"] = np.full((4, 2), 0.5, np.float16)
  else:
    example["tokens"] = rng.integers(0, 500, 4).astype(np.uint16)
  return example


def make_rich(path, *, continuous=True, features=0):
  """Of 20, example i has 1 + i % 3 captions, and all but every fourth a mirror image.

  Further captions end in id 40 + k; tokens of mirror images, or their means, are those
  of images + 1.
  """
  make_cache(path, continuous=continuous)

  def enrich(row):
    i = row["id"] - 10
    said = [[3 + i, 40 + k] for k in range(1, 1 + i % 3)]
    row["more"] = [{"caption": f"no. {k}", "text_ids": k} for k in said]
    if i % 4:
      row["mirror"] = {k: row[k] for k in packing.ARRAYS if k in row}
      name = "mean" if continuous else "tokens"
      row["mirror"][name] = row[name] + np.ones(1, row[name].dtype)
    for k, text in enumerate(packing.texts(row)) if features else ():
      values = np.arange(len(text["text_ids"]))[:, None] + np.full(features, k)
      text["features"] = values.astype(packing.FEATURES)
    return packing.pack(row)

  rewrite(path, dict.fromkeys(range(20), enrich))
  metadata = records.read_metadata(path)
  if not continuous:
    metadata["tokens"] = {"kind": "discrete", "length": 4, "vocab": 502}
  metadata["splits"]["train"] |= {"captions": 3, "mirrored": 15}
  if features:
    metadata["text"]["features"] = features
  records.write_metadata(path, metadata)
  return path


@settings(max_examples=50, deadline=None)
@given(
  st.integers(0, 2**31 - 1),
  st.text(),
  st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.booleans()),
)
def test_any_caption_and_meta_survive(id_, caption, meta):
  example = make_example(0) | {"id": id_, "caption": caption, "meta": meta}
  try:
    packed = packing.pack(example)
  except UnicodeEncodeError:  # A lone surrogate is no text.
    return
  out = packing.unpack(packed)
  assert (out["id"], out["caption"]) == (id_, caption)
  np.testing.assert_array_equal(out["mean"], example["mean"])


def test_examples_survive_the_files(tmp_path):
  read = records.Records(make_cache(tmp_path / "c"), "train")
  assert len(read) == 20 and len(read.shards) == 3
  for i in (0, 7, 8, 19):
    expected = make_example(i)
    example = read[i]
    for name in ("mean", "std"):
      np.testing.assert_array_equal(example.pop(name), expected.pop(name))
    assert example == expected
  with pytest.raises(IndexError):
    read[20]


@pytest.mark.parametrize("continuous", [True, False])
def test_memory_and_files_gather_the_same(tmp_path, continuous):
  cache = make_cache(tmp_path / "c", continuous=continuous)
  order = np.array([19, 0, 8, 8, 3])
  held = pickle.loads(pickle.dumps(records.Records(cache, "train"))).gather(order)
  read = records.Records(cache, "train", memory=0).gather(order)
  assert held.keys() == read.keys()
  for name in held:
    np.testing.assert_array_equal(held[name], read[name])
  np.testing.assert_array_equal(held["id"], 10 + order)
  assert held["text"][0].tolist() == [22, 22, 22, 22, 1, 0]
  assert held["text_mask"][0].tolist() == [True] * 5 + [False]
  name = "mean" if continuous else "tokens"
  np.testing.assert_array_equal(held[name][2], make_example(8, continuous)[name])


def test_a_shard_that_fails_midway_has_no_name(tmp_path):
  def rows():
    yield b"one"
    raise RuntimeError("stop")

  path = records.shard_path(tmp_path, "train", 0)
  with pytest.raises(RuntimeError, match="stop"):
    records.write_shard(path, rows())
  assert not path.exists()


def damage_remove(file):
  file.unlink()


def damage_truncate(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def damage_flip(file):
  content = bytearray(file.read_bytes())
  where = content.find(b"caption 9")
  if where < 0:  # Compressed: any byte after the header of the file.
    where = 200
  content[where] ^= 1
  file.write_bytes(content)


def damage_garbage(file):
  file.write_bytes(b"\xff" * file.stat().st_size)


@pytest.mark.parametrize("damage", [damage_remove, damage_truncate, damage_garbage])
@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_damage_names_file_and_remedy(tmp_path, damage, memory):
  cache = make_cache(tmp_path / "c")
  file = records.shard_path(cache, "train", 1)
  damage(file)
  with pytest.raises(records.RecordError) as error:
    records.Records(cache, "train", memory=memory).gather(np.arange(20))
  message = str(error.value)
  assert str(file) in message and "fluid.prepare" in message and "\n" not in message


def test_a_shard_is_read_in_parts_and_whole_or_not_at_all(tmp_path):
  file = tmp_path / "a.array_record"
  rows = [np.random.default_rng(i).bytes(50) for i in range(300)]
  records.write_shard(file, rows)
  assert list(records.read_shard(file)) == rows
  whole = file.read_bytes()
  flipped = bytes(255 - b for b in whole[5000:5060])
  torn = whole[:5000] + flipped + whole[5060:]
  for content in (b"", whole[:-1000], whole[: len(whole) // 2], torn, None):
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(records.RecordError, match="a.array_record is damaged"):
      list(records.read_shard(file))


AWAY = """
import resource, sys
import numpy as np
import numpy.ma  # np.unique would, when no file can be opened any more.
from fluid.data import records
from fluid.errors import exit_code

_, cache, file = sys.argv
made = records.Records(cache, "train", memory=0)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
for read in (lambda: made.gather(np.arange(2)), lambda: list(records.read_shard(file))):
  try:
    read()
  except OSError as e:
    print(exit_code(e), e.strerror, e.filename)
"""


def test_a_file_system_that_is_away_is_no_damage(tmp_path, monkeypatch):
  """What opens no file more, or loses its server, says nothing of records."""
  cache = make_cache(tmp_path / "c")
  file = records.shard_path(cache, "train", 0)
  done = subprocess.run(
    [sys.executable, "-c", AWAY, cache, file], capture_output=True, text=True
  )
  assert done.stdout == f"75 Too many open files {file}\n" * 2, done.stderr

  class Stale:
    """A reader whose file goes away once it is open."""

    def __init__(self, *args, **kwargs):
      del args, kwargs

    def num_records(self):
      return 8

    def read(self, positions):
      raise RuntimeError(f"pread() failed: Stale file handle; reading {file}")

  monkeypatch.setattr(records.array_record_module, "ArrayRecordReader", Stale)
  with pytest.raises(OSError, match="Stale file handle") as error:
    records.Records(cache, "train", memory=0).gather(np.arange(2))
  assert exit_code(error.value) == REQUEUE


def rewrite(cache, changes):
  """The cache again, with examples changed: index -> what to do with its record."""
  for shard in range(3):
    file = records.shard_path(cache, "train", shard)
    rows = [packing.unpack(r) for r in records.read_shard(file)]
    for i, row in enumerate(rows):
      row["meta"] = json.loads(row["meta"])
      rows[i] = changes.get(8 * shard + i, packing.pack)(row)
    records.write_shard(file, rows)
  metadata = records.read_metadata(cache)
  for shard in metadata["splits"]["train"]["shards"]:
    shard["bytes"] = (cache / shard["name"]).stat().st_size
  metadata["tokens"] = {"kind": "continuous", "length": 4, "channels": 2}
  metadata["text"]["vocab_size"] = 60
  records.write_metadata(cache, metadata)


def changed(**values):
  return lambda row: packing.pack(row | values)


DAMAGE = {
  1: ("corrupt", lambda row: b"\xc1 no msgpack"),
  4: ("corrupt", lambda row: msgpack.packb([1, 2])),
  6: ("corrupt", lambda row: msgpack.packb({"id": 16})),
  9: ("nonfinite", changed(mean=np.full((4, 2), np.nan, np.float16))),
  10: ("shape", changed(std=np.ones((3, 2), np.float16))),
  11: ("text", changed(text_ids=[])),
  12: ("text", changed(text_ids=[1] * 7)),
  17: ("text", changed(text_ids=[60, 1])),
  18: ("image", lambda row: msgpack.packb({"id": 28, "bad": "image", "why": "torn"})),
}


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_damaged_records_are_empty_rows_with_a_kind(tmp_path, memory):
  whole = records.Records(make_cache(tmp_path / "c"), "train").gather(np.arange(20))
  rewrite(tmp_path / "c", {i: change for i, (_, change) in DAMAGE.items()})
  damage_flip(records.shard_path(tmp_path / "c", "train", 1))  # Of 'caption 9' or so.
  found = records.Records(tmp_path / "c", "train", memory=memory)
  rows = found.gather(np.arange(20))
  kinds = {i: packing.BAD[k - 1] for i, k in enumerate(rows["bad"]) if k}
  expected = {i: kind for i, (kind, _) in DAMAGE.items()}
  flipped = kinds.keys() - expected.keys() or {i for i in DAMAGE if 8 <= i < 16}
  assert {k: v for k, v in kinds.items() if k not in flipped} == {
    k: v for k, v in expected.items() if k not in flipped
  }
  for name, values in rows.items():
    if name != "bad":
      assert (values[rows["bad"] > 0] == (-1 if name == "id" else 0)).all()
      good = rows["bad"] == 0
      np.testing.assert_array_equal(values[good], whole[name][good])
  said = found.damage(18)
  assert said.startswith("image (torn) in record 2 of") and said.endswith("id 28")
  assert str(records.shard_path(tmp_path / "c", "train", 2)) in said
  with pytest.raises(records.RecordError, match="nonfinite in record 1 of .*, id 19"):
    found[9] if 9 not in flipped else found[next(iter(flipped))]
  assert not found.damage(0)


@pytest.mark.parametrize("continuous, features", [(True, 0), (False, 5)])
def test_a_draw_takes_one_caption_and_one_view(tmp_path, continuous, features):
  path = make_rich(tmp_path / "c", continuous=continuous, features=features)
  held, read = (records.Records(path, "train", memory=m) for m in (1 << 30, 0))
  indices = np.array([19, 0, 8, 8, 3, 5])
  plain = held.gather(indices)
  at = lambda share: lambda ids: np.full((len(ids), 2), share * 2**32, np.uint32)
  for share in (0.0, 0.4, 0.999):
    found, again = (r.gather(indices, at(share)) for r in (held, read))
    assert found.keys() == again.keys() and not found["bad"].any()
    for name in found:
      np.testing.assert_array_equal(found[name], again[name], strict=True)
    for row, i in enumerate(indices.tolist()):
      example = held[i]
      text = packing.texts(example)[int(share * (1 + i % 3))]
      view = packing.views(example)[int(share * (2 if i % 4 else 1))]
      length = len(text["text_ids"])
      assert found["text"][row][found["text_mask"][row]].tolist() == text["text_ids"]
      if features:
        got = found["features"][row]
        np.testing.assert_array_equal(got[:length], text["features"])
        assert not got[length:].any()
      for name in packing.ARRAYS:
        if name in view:
          np.testing.assert_array_equal(found[name][row], view[name])
  for name in plain:  # Evaluations: the first, as it is.
    np.testing.assert_array_equal(held.gather(indices, at(0.0))[name], plain[name])


def test_damage_of_what_is_not_drawn_spoils_no_row(tmp_path):
  path = make_rich(tmp_path / "c")

  def spoiled(change):
    def changed(row):
      change(row)
      return packing.pack(row)

    return changed

  nan = np.full((4, 2), np.nan, np.float16)
  changes = {
    5: lambda row: row["more"][1].update(text_ids=[60]),  # No word of the vocabulary.
    6: lambda row: row["mirror"].update(mean=nan),
    7: lambda row: row["more"][0].update(text_ids=[]),  # Such is the whole record's.
    9: lambda row: row["mirror"].pop("std"),
  }
  rewrite(path, {i: spoiled(change) for i, change in changes.items()})
  whole = {7: "text", 9: "shape"}
  low, high = 0, 2**32 - 1
  for draw, wrong in (
    ((low, low), {}),
    ((high, low), {5: "text"}),
    ((low, high), {6: "nonfinite"}),
  ):
    at = lambda ids, draw=draw: np.tile(np.array(draw, np.uint32), (len(ids), 1))
    for memory in (0, 1 << 30):
      rows = records.Records(path, "train", memory=memory).gather(np.arange(20), at)
      found = {i: packing.KINDS[k - 1] for i, k in enumerate(rows["bad"]) if k}
      assert found == whole | wrong
      for name in rows.keys() - {"bad"}:
        spoilt = rows[name][rows["bad"] > 0]
        assert (spoilt == (-1 if name == "id" else 0)).all()
  found = records.Records(path, "train")
  assert found.damage(5).startswith("text in record 5 of") and not found.damage(4)
  assert found.damage(6).startswith("nonfinite in record 6 of")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_record_or_corrupt(content):
  example = packing.decode(content)
  assert example.get("bad") or {"id", "text_ids"} <= example.keys()


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_any_damage_to_a_record_is_a_record_or_corrupt(place, byte):
  example = make_example(3)
  more = {"caption": "x", "text_ids": [1], "features": np.ones((1, 2), np.float32)}
  example |= {"more": [more], "mirror": {"mean": example["mean"]}}
  content = bytearray(packing.pack(example))
  content[place % len(content)] = byte
  example = packing.decode(bytes(content))
  assert example.get("bad") or {"id", "text_ids"} <= example.keys()


def test_missing_caches_are_named(tmp_path):
  with pytest.raises(records.RecordError, match="data.cache"):
    records.Records("", "train")
  with pytest.raises(config.ConfigError, match="no cached tokens in.*fluid.prepare"):
    records.Records(tmp_path / "nothing", "train")
  cache = make_cache(tmp_path / "c")
  with pytest.raises(records.RecordError, match="split 'val'.*complete: train"):
    records.Records(cache, "val")
  (cache / records.METADATA).write_text('{"splits"')
  with pytest.raises(records.RecordError, match="metadata.json is damaged"):
    records.Records(cache, "train")
