"""fluid.data.folder: images in a folder, and a table of their captions."""

import csv
import datetime
import json
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from fluid import config
from fluid.data import BadExample, packing, stored
from fluid.data.coco import COCOConfig
from fluid.data.folder import FolderConfig
from fluid.text.learned import LearnedConfig
from tests.sources import open_source, read, read_all, refused, save


def open_folder(path, split="train", **fields):
  return open_source(FolderConfig(path=str(path), **fields), split)


@pytest.fixture
def folder(tmp_path):
  lines = []
  for i, mode in enumerate(["RGB", "L", "RGBA", "P", "CMYK"] * 12):
    image = Image.new("RGB", (40, 20 + i), (200, 10, 10)).convert(mode)
    if mode == "RGBA":
      image.putalpha(0)
    name = f"{i}.{'jpg' if mode == 'CMYK' else 'png'}"
    image.save(tmp_path / name)
    lines.append({"file_name": name, "text": f"image {i}", "who": i})
  (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
  return tmp_path


def test_folder_images_of_every_mode(folder):
  sources = {s: open_folder(folder, s) for s in ("train", "val")}
  found = read_all(sources.values())
  assert len(sources["val"]) and {e["id"] for e in found} == set(range(60))
  for e in found:
    assert e["caption"] == f"image {e['id']}" and e["captions"] == [e["caption"]]
    name = e["meta"]["file_name"]
    assert e["meta"] == {"file_name": name, "who": e["id"]}
    # Sets of before stay split as they were.
    assert (zlib.crc32(name.encode()) % 20 == 0) == (e["id"] in ids_of(sources["val"]))
    # Transparent becomes white; red stays red in every mode that has colours.
    expected = {0: (200, 10, 10), 2: (255, 255, 255), 3: (200, 10, 10)}
    if e["id"] % 5 in expected:
      assert np.abs(e["image"] - np.array(expected[e["id"] % 5])).max() < 30


def ids_of(source):
  return {source[i]["id"] for i in range(len(source))}


def test_folder_with_a_folder_per_split(folder, tmp_path):
  root = tmp_path / "root"
  root.mkdir()
  for split in ("train", "val", "test"):
    (root / split).symlink_to(folder)
  train, val = open_folder(root), open_folder(root, "val")
  assert len(train) == len(val) == len(open_folder(root, "test")) == 60
  assert not ids_of(train) & ids_of(val)
  refused(config.ConfigError, "no split 'test'", lambda: open_folder(folder, "test"))
  # As Hugging Face may call it; nor is a file for all taken for what is left of both.
  (root / "val").rename(root / "validation")
  line = "train/metadata.jsonl is there, but no such file in .*root/val"
  refused(config.ConfigError, line, lambda: open_folder(root, "val"))
  (root / "metadata.jsonl").write_bytes((folder / "metadata.jsonl").read_bytes())
  refused(config.ConfigError, line, lambda: open_folder(root, "val"))


def rewrite(folder, kind, rows):
  """The same rows in another format, of a folder that has only that."""
  (folder / "metadata.jsonl").unlink()
  if kind == "csv":
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8-sig") as f:
      writer = csv.DictWriter(f, rows[0])
      writer.writeheader()
      writer.writerows(rows)
  else:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_folder_of_another_format_is_the_same_set(folder, kind):
  lines = (folder / "metadata.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  odd = 'a cat, "Tom",\non two lines: \u00e4\u2028\U0001f408'
  rows[1]["text"] = odd
  text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
  (folder / "metadata.jsonl").write_text(text, "utf-8")
  before = [open_folder(folder, s) for s in ("train", "val")]
  rewrite(folder, kind, rows)
  after = [open_folder(folder, s) for s in ("train", "val")]
  for a, b in zip(read_all(before), read_all(after)):
    assert (a["id"], a["captions"]) == (b["id"], b["captions"])
    assert {k: str(v) for k, v in a["meta"].items()} == {
      k: str(v) for k, v in b["meta"].items()
    }
  assert odd in [e["caption"] for e in read_all(after)]


def test_parquet_has_lists_dates_and_bytes(folder, monkeypatch):
  name = "0.png"
  day = datetime.date(2024, 2, 1)
  row = {"file_name": name, "text": ["a", None, "b"], "day": day, "raw": b"\x00\xff"}
  rewrite(folder, "parquet", [row, row | {"text": None}])
  source = open_folder(folder)
  assert source[0]["captions"] == ["a", "b"]
  assert source[0]["meta"] == {"file_name": name, "day": "2024-02-01", "raw": None}
  assert refused(BadExample, "row 2 of .*None", lambda: source[1]).kind == "caption"
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  refused(config.ConfigError, "pip install pyarrow", lambda: open_folder(folder))
  monkeypatch.undo()
  content = (folder / "metadata.parquet").read_bytes()
  (folder / "metadata.parquet").write_bytes(content.replace(b"0.png", b"\xff.png"))
  refused(
    config.ConfigError, "cannot be read .*must be UTF-8", lambda: open_folder(folder)
  )
  (folder / "metadata.parquet").write_bytes(b"PAR1 no")
  refused(config.ConfigError, "no Parquet file", lambda: open_folder(folder))


def test_one_bad_line_is_one_bad_example(folder):
  (folder.parent / "out.png").write_bytes((folder / "0.png").read_bytes())
  (folder / "link.png").symlink_to(folder.parent / "out.png")
  bad = {
    "caption": [None, "", " ", 3, ["a", 3], [], [None, ""], {"a": "b"}],
    "image": ["../out.png", "a/../../out.png", str(folder / "0.png"), None, 7, "a\0b"],
  }
  good = [
    {"file_name": n, "text": ["x", "y"]} for n in ("0.png", "link.png", "./1.png")
  ]
  rows = good + [{"file_name": "0.png", "text": c} for c in bad["caption"]]
  rows += [{"file_name": n, "text": "x"} for n in bad["image"]] + [{"text": "x"}]
  (folder / "train").mkdir()
  for name in ("0.png", "1.png", "link.png"):
    (folder / name).rename(folder / "train" / name)
  text = "\n".join(map(json.dumps, rows))
  (folder / "train/metadata.jsonl").write_text(text)
  source = open_folder(folder)
  assert len(source) == len(rows)
  assert [source[i]["captions"] for i in range(3)] == [["x", "y"]] * 3
  for i in range(3, len(rows)):
    error = refused(BadExample, "remove", lambda: source[i])  # noqa: B023
    assert error.kind == ("caption" if i < 3 + len(bad["caption"]) else "image")
    assert source.caption(i) == ("" if error.kind == "caption" else "x")
  outside = 3 + len(bad["caption"])
  for i in range(outside, outside + 3):
    refused(BadExample, "outside the folder", lambda: source[i])  # noqa: B023
  # What prepare counts, and no vocabulary fails at.
  kinds = [e.get("bad") for e in read(source)]
  assert kinds == [None] * 3 + ["caption"] * len(bad["caption"]) + ["image"] * 7


def test_folder_errors_name_the_file(folder):
  source = open_folder(folder)
  name = source[0]["meta"]["file_name"]
  good = (folder / name).read_bytes()
  for damaged in (good[: len(good) // 2], b"no image", b""):
    (folder / name).write_bytes(damaged)
    refused(BadExample, f"{name} cannot be read.*metadata", lambda: source[0])
  (folder / name).unlink()
  refused(BadExample, f"{name} is missing", lambda: source[0])
  open_it = lambda: open_folder(folder)
  for line in ("{", "3", "[]", '"a"', "file_name,text", "[" * 100_000):
    (folder / "metadata.jsonl").write_text(line)
    refused(config.ConfigError, "metadata.jsonl line 1 is not", open_it)
  (folder / "metadata.jsonl").write_text("[]", "utf-16")
  refused(config.ConfigError, "metadata.jsonl is not UTF-8", open_it)
  (folder / "metadata.jsonl").write_text('{"image": "0.png", "n": 1}\n{"caption": "x"}')
  line = "no 'file_name'; it has image, n, caption: .*file_key.*caption_key"
  refused(config.ConfigError, line, open_it)
  (folder / "metadata.jsonl").rename(folder / "metadata.csv")
  (folder / "metadata.csv").write_text("file_name,text\n0.png,a cat, asleep\n")
  refused(config.ConfigError, "line 2 has more values .*quotes", open_it)
  (folder / "metadata.csv").write_text('file_name,text\n0.png,"a cat" asleep\n')
  refused(config.ConfigError, "line 2 is no CSV", open_it)
  (folder / "metadata.csv").unlink()
  refused(config.ConfigError, "data.source.path", open_it)
  refused(config.ConfigError, "needs.*path", lambda: open_source(FolderConfig()))


def test_half_a_character_is_a_bad_caption_and_no_end(tmp_path):
  """JSON may escape one half of a pair, which no vocabulary or record can hold."""
  half = "a cat \ud83d"
  save(tmp_path / "train" / "a.png")
  lines = [{"file_name": "a.png", "text": t} for t in (half, "a cat", ["a", half])]
  path = tmp_path / "train" / "metadata.jsonl"
  path.write_text("\n".join(map(json.dumps, lines)))
  source = open_folder(tmp_path)
  assert [source.caption(i) for i in range(3)] == ["", "a cat", ""]
  assert [e.get("bad") for e in read(source)] == ["caption", None, "caption"]
  # Nor a name that is no UTF-8, as old archives have them.
  lines.append({"file_name": "caf\udce9.png", "text": "a cat"})
  path.write_text("\n".join(map(json.dumps, lines)))
  last = read(open_folder(tmp_path))[-1]
  assert packing.unpack(packing.pack(last))["why"].startswith("image")
  LearnedConfig().fit(source, 3, tmp_path / "text.model")
  row = stored.Row("it", None, [half], None, {})
  refused(BadExample, "no text", lambda: stored._texts(row))
  content = {"images": [{"id": 1, "file_name": "a.png"}]}
  content["annotations"] = [{"image_id": 1, "id": 1, "caption": half}]
  (tmp_path / "coco.json").write_text(json.dumps(content))
  made = COCOConfig(
    train_annotations=str(tmp_path / "coco.json"), train_images=str(tmp_path / "train")
  )
  assert open_source(made).captions(0) == []


CASES = {
  "bom": {},
  "captionkey": {"file_key": "image", "caption_key": "caption"},
  "csvonly": {},
  "listcap": {},
  "nullcap": {},
  "outside": {},
  "modes": {},
}


@pytest.mark.parametrize("case", CASES)
def test_folders_that_people_have(fixtures, case):
  path = fixtures.parent / "cases" / "data" / case
  if not path.is_dir():
    pytest.skip("no folder of cases beside the fixtures")
  sources = [open_folder(path, s, **CASES[case]) for s in ("train", "val")]
  found = [e for source in sources for e in read(source)]
  good = [e for e in found if "bad" not in e]
  bad = [(e["bad"], e["why"]) for e in found if "bad" in e]
  assert len({e["id"] for e in good}) == len(good)
  if case == "nullcap":
    assert [kind for kind, _ in bad] == ["caption"] and "i3.png" in bad[0][1]
  elif case == "outside":
    assert [kind for kind, _ in bad] == ["image"]
    assert "../ok/i0.png is outside the folder" in bad[0][1]
  elif case == "modes":
    assert [kind for kind, _ in bad] == ["image"] * 2
    assert all("tr.png" in why or "zero.png" in why for _, why in bad)
  else:
    assert len(good) == 12 and not bad
    assert {e["meta"].get("file_name") or e["meta"]["image"] for e in good} == {
      f"i{n}.png" for n in range(12)
    }
    wanted = {"csvonly": "a picture, number 0"}.get(
      case, "a picture number 0 of something"
    )
    assert wanted in [e["caption"] for e in good]
    several = ["another"] if case == "listcap" else []
    assert all(e["captions"] == [e["caption"], *several] for e in good)
  if case == "captionkey":
    line = "it has image, caption: .*data.source.file_key"
    refused(config.ConfigError, line, lambda: open_folder(path))
