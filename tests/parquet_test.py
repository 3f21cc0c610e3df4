"""fluid.data.parquet: columns of every kind, and what is damaged or missing."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fluid import config
from fluid.data import BadExample, images
from fluid.data.folder import VAL_IDS
from tests.shards import SIZE, png, source_of, table, texts, write_tables


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
  """Fields of the small set."""
  return write_tables(tmp_path_factory.mktemp("parquet"))


def test_parquet_reads_a_group_once_in_order(small_set, monkeypatch):
  source, loaded = source_of("parquet", **small_set), []
  load = source._load
  monkeypatch.setattr(source, "_load", lambda *a: loaded.append(a) or load(*a))
  for i in range(len(source)):
    source[i], source.caption(i)
  assert loaded == [(g, b) for g in range(4) for b in (True, False)]


def test_parquet_columns(tmp_path):
  """Other types and names of columns, captions that are null, files without val."""
  numbers = range(400)
  small = [png(n % 7) for n in numbers]
  for n in range(7):
    (tmp_path / f"{n}.png").write_bytes(png(n))
  told = [f"image {n}" if n != 3 else None for n in numbers]
  path = tmp_path / "a.parquet"
  columns = {
    "img": (small, {}),
    "jpg": (pa.array(small, pa.large_binary()), {}),
    "png": (pa.array(small, pa.binary_view()), {}),
    "file": ([f"{n % 7}.png" for n in numbers], {"image": "file"}),
    "far": (
      [f"{n % 7}.png" for n in numbers],
      {"image": "far", "folder": str(tmp_path)},
    ),
  }
  for name, (content, fields) in columns.items():
    place = path if name != "far" else tmp_path / "deep" / "a.parquet"
    place.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({name: content, "text": told, "n": numbers}), place)
    fields = {"train": str(place)} | fields
    train, val = (source_of("parquet", split, **fields) for split in ("train", "val"))
    assert 5 < len(val) < 40 and len(train) + len(val) == 400
    indices = {s._place(i): (s, i) for s in (train, val) for i in range(len(s))}
    assert sorted(indices) == list(numbers)
    for n, (source, i) in indices.items():
      if n == 3:
        continue
      example = source[i]
      assert example["id"] == n
      assert example["caption"] == f"image {n}" and example["meta"]["n"] == n
      np.testing.assert_array_equal(
        example["image"], images.square(images.read(small[n]), SIZE)
      )
    whole = source_of("parquet", "val", **fields | {"val": str(place)})
    assert whole[0]["id"] == VAL_IDS
    with pytest.raises(BadExample, match="row 3 of row group 0 of .* has no cap") as e:
      whole[3]
    assert e.value.kind == "caption"
  (tmp_path / "0.png").unlink()
  with pytest.raises(BadExample, match="0.png' of row 0 of .* is missing"):
    whole[0]
  addresses = [f"https://example.org/{n}.png" for n in numbers]
  pq.write_table(table(numbers, image=addresses), place)
  with pytest.raises(BadExample, match="0.png' of row 0 of .* is an address: fetch"):
    source_of("parquet", "val", val=str(place))[0]


def test_parquet_labels(tmp_path):
  path = tmp_path / "a.parquet"
  content = table(range(6), caption=None, label=[0, 1, 2, None, -1, 3])
  pq.write_table(content, path)
  source = source_of("parquet", "val", val=str(path))
  for i in (3, 4, 5):
    with pytest.raises(BadExample, match=f"row {i} .* has label .*, of 3 classes") as e:
      source.label(i)
    assert e.value.kind == "caption"
  # Without names, classes are numbers; where no statistics tell how many, rows do.
  for statistics in (True, False):
    bare = content.replace_schema_metadata(None)
    pq.write_table(bare, path, write_statistics=statistics, row_group_size=2)
    source = source_of("parquet", "val", val=str(path))
    assert source.classes == ["0", "1", "2", "3"] and source.label(5) == "3"
  pq.write_table(table(range(6), label=None), path)
  with pytest.raises(config.ConfigError, match="no labels"):
    source_of("parquet", "val", val=str(path)).label(0)


def test_damaged_parquet(tmp_path):
  path = tmp_path / "a.parquet"
  pq.write_table(table(range(12)), path, row_group_size=4, write_page_checksum=True)
  good = path.read_bytes()
  chunk = pq.read_metadata(path).row_group(1).column(0)
  start, size = chunk.dictionary_page_offset, chunk.total_compressed_size
  fields = {"split": "val", "val": str(path)}
  damaged = bytearray(good)
  damaged[start + size // 2 : start + size // 2 + 64] = bytes(64)
  path.write_bytes(damaged)
  source = source_of("parquet", **fields)
  for i in range(12):
    if i // 4 != 1:
      assert source[i]["meta"]["number"] == i
      continue
    assert source.caption(i) == texts(i)[0]  # Another column.
    with pytest.raises(BadExample, match="row group 1 of .*a.parquet is damaged") as e:
      source[i]
    assert e.value.kind == "image" and "\n" not in str(e.value)
  for wrong in (b"", b"no parquet file", good[:-3], good[: len(good) // 2]):
    path.write_bytes(wrong)
    with pytest.raises(config.ConfigError, match="a.parquet is no Parquet file") as e:
      source_of("parquet", **fields)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  "fields, message",
  [
    (
      {"image": "picture"},
      r"'data.source.image' is 'picture', but .* has columns image \(struct<",
    ),
    ({"caption": "label"}, "'data.source.caption' is 'label', .* fits: caption"),
    ({"label": "image"}, "'data.source.label' is 'image', .* fits: label, number"),
    ({"train": "nothing/*.parquet"}, "'data.source.train' .* fits no .parquet file"),
  ],
)
def test_columns_that_are_not_there(small_set, fields, message):
  with pytest.raises(config.ConfigError, match=message):
    source_of("parquet", **small_set | fields)


def test_columns_that_files_do_not_share(tmp_path):
  pq.write_table(table(range(3)), tmp_path / "a.parquet")
  pq.write_table(table(range(3), caption=None), tmp_path / "b.parquet")
  with pytest.raises(config.ConfigError, match="b.parquet has no column 'caption'"):
    source_of("parquet", train=str(tmp_path / "*.parquet"))
  for gone in ({"image": None}, {"caption": None, "label": None}):
    pq.write_table(table(range(3), **gone), tmp_path / "a.parquet")
    with pytest.raises(config.ConfigError, match="has columns .*: name that of "):
      source_of("parquet", train=str(tmp_path / "a.parquet"))
  twice = table(range(3)).rename_columns(["image", "caption", "caption", "number"])
  pq.write_table(twice, tmp_path / "a.parquet")
  with pytest.raises(config.ConfigError, match="a.parquet has .*two have one name"):
    source_of("parquet", train=str(tmp_path / "a.parquet"))
