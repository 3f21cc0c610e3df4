"""Sources of images that people have: folder, coco, imagenet."""

import csv
import dataclasses
import datetime
import functools
import json
import pickle
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import io

from fluid import config, prepare
from fluid.config import identity
from fluid.data import (
  BadExample,
  examples,
  images,
  listed,
  make_source,
  records,
  stored,
)
from fluid.data.coco import COCOConfig
from fluid.data.folder import FolderConfig
from fluid.data.imagenet import ImageNetConfig
from fluid.text.classes import Classes, ClassesConfig
from fluid.text.learned import LearnedConfig
from tests.caches import Tokenizer


def open_source(source, split="train"):
  return make_source(config.Data(source=source, image_size=16), split)


def open_folder(path, split="train", **fields):
  return open_source(FolderConfig(path=str(path), **fields), split)


def save(path, color=(200, 10, 10), size=(24, 20)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, color).save(path)


def refused(error, match, make):
  """The one line that says so."""
  with pytest.raises(error, match=match) as caught:
    make()
  assert "\n" not in str(caught.value)
  return caught.value


def read_all(splits):
  """Examples of all splits, after the contract of each: access, ids, captions."""
  found = []
  for source in splits:
    again = pickle.loads(pickle.dumps(source))
    for i in range(len(source)):
      a, b = source[i], again[i]
      np.testing.assert_array_equal(a["image"], b["image"])
      assert a["image"].shape == (16, 16, 3) and a["image"].dtype == np.uint8
      assert type(a["id"]) is int and 0 <= a["id"] < 2**31
      assert a["caption"] == source.caption(i) and a["meta"] == b["meta"]
      assert json.loads(json.dumps(a["meta"])) == a["meta"]
      if "captions" in a:
        assert a["captions"] == source.captions(i) and a["captions"][0] == a["caption"]
      found.append(a)
    for i in (-1, len(source)):
      with pytest.raises(IndexError):
        source[i]
  assert len({e["id"] for e in found}) == len(found)
  return found


# ---------------------------------------------------------------------------- folder


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


def read(source, workers=0):
  """As fluid.prepare does."""
  batches = examples.read(source, LearnedConfig(), 0, len(source), 4, workers)
  return [e for batch in batches for e in batch]


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
  for line in ("{", "3", "[]", '"a"', "file_name,text"):
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


# ------------------------------------------------------------------------------ coco


def caption(image, number, text):
  return {"image_id": image, "id": number, "caption": text}


@pytest.fixture
def coco(tmp_path):
  return write_coco(tmp_path, [391895, 9, 522418, 184613], [397133, 37777])


def write_coco(tmp_path, train, val):
  """Two splits in the layout of COCO's files; images and captions in no order."""
  sets, fields = {"train": train, "val": val}, {}
  for split, ids in sets.items():
    name = "COCO_{}2014_{:012}.jpg".format
    images = [
      {"license": 3, "file_name": name(split, i), "height": 20, "width": 24, "id": i}
      for i in ids
    ]
    for image in images:
      save(tmp_path / split / image["file_name"], (image["id"] % 251, 90, 0))
    rows = [
      caption(i, 1000 * n + i, f"caption {n} of {i}") for n in (2, 0, 1) for i in ids
    ]
    content = {"info": {"year": 2014}, "licenses": [], "images": images}
    file = tmp_path / f"captions_{split}2014.json"
    file.write_text(json.dumps(content | {"annotations": rows}))
    fields |= {f"{split}_annotations": str(file), f"{split}_images": str(file.parent)}
    fields[f"{split}_images"] += f"/{split}"
  return COCOConfig(**fields)


def edited(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def test_coco_by_ids(coco):
  splits = [open_source(coco, s) for s in ("train", "val")]
  found = read_all(splits)
  assert [e["id"] for e in found] == [9, 184613, 391895, 522418, 37777, 397133]
  for e in found:
    assert e["captions"] == [f"caption {n} of {e['id']}" for n in range(3)]
    assert e["meta"]["file_name"].endswith(f"2014_{e['id']:012}.jpg")
    assert abs(int(e["image"][8, 8, 0]) - e["id"] % 251) < 4
  assert len(pickle.dumps(splits[0])) < 2000


def test_coco_images_that_are_bad(coco, tmp_path):
  def change(content):
    rows, first = content["annotations"], content["images"][0]
    rows[:] = [a for a in rows if a["image_id"] != 9]
    rows += [caption(9, 1, " "), caption(9, 2, None)]
    rows += [caption(184613, 1, " Two \n words\u2028here.\n")]
    first["file_name"] = "../val/" + first["file_name"]

  edited(tmp_path / "captions_train2014.json", change)
  source = open_source(coco)
  error = refused(BadExample, "000000000009.jpg has no caption", lambda: source[0])
  assert error.kind == "caption" and source.caption(0) == ""
  assert source[1]["caption"] == "Two words here." and len(source.captions(1)) == 4
  refused(BadExample, "outside the folder", lambda: source[2])
  (tmp_path / "train/COCO_train2014_000000522418.jpg").unlink()
  refused(BadExample, "522418.jpg is missing.*its entry in", lambda: source[3])
  assert [e.get("bad") for e in read(source)] == ["caption", None, "image", "image"]


def test_coco_is_what_its_annotations_say(coco, tmp_path):
  """Of a cache: their content, wherever they lie, and not the hash of no file."""
  of = lambda source: identity.of_cache(
    config.replaced(config.Run(), {"data.source": source})
  )
  before = of(coco)
  file = tmp_path / "captions_train2014.json"
  moved = file.rename(tmp_path / "elsewhere.json")
  assert of(coco)["data.files.train"] == ""
  coco = dataclasses.replace(coco, train_annotations=str(moved))
  assert of(coco) == before and before["data.files.train"]
  edited(moved, lambda content: content["annotations"].pop())
  assert identity.differences(before, of(coco)) == ["data.files.train"]
  # No word of files where a source has none that vouch.
  assert of(FolderConfig()) == {
    k: v for k, v in of(FolderConfig()).items() if not k.startswith("data.files.")
  }


def test_a_cache_is_of_its_annotations(coco, tmp_path):
  data = config.Data(source=coco, image_size=16, cache=str(tmp_path / "cache"))
  run = config.Run(data=data, text=LearnedConfig(vocab_size=60, length=12))
  write = lambda: prepare.prepare(run, tokenizer=Tokenizer(), batch=4, log=str)
  found = write()
  assert write() == found
  # One of before says nothing of files: it is taken, and stays as it is.
  old = {k: v for k, v in found["config"].items() if not k.startswith("data.files.")}
  records.write_metadata(data.cache, found | {"config": old})
  assert write()["config"] == old
  records.write_metadata(data.cache, found)
  edited(tmp_path / "captions_val2014.json", lambda c: c["annotations"].pop())
  refused(config.ConfigError, "another config .data.files.val is '", write)


def test_coco_refuses_in_one_line(coco, tmp_path):
  file = tmp_path / "captions_train2014.json"
  good = file.read_text()
  cases = {
    "has caption 1 of image 5": lambda c: c["annotations"].append(caption(5, 1, "x")),
    "no 'caption'": lambda c: c["annotations"][0].pop("caption"),
    "no 'annotations'": lambda c: c.pop("annotations"),
    "no 'file_name'": lambda c: c["images"][1].pop("file_name"),
    "no file of COCO's": lambda c: c.update(images=3),
    "id 2147483648": lambda c: c["images"].append({"id": 2**31, "file_name": "x"}),
    "id '7'": lambda c: c["images"].append({"id": "7", "file_name": "x"}),
    "1 ids of images twice": lambda c: c["images"].append(c["images"][0]),
    "image 37777 is in .*train2014.* and in .*val2014": lambda c: c["images"].append(
      {"id": 37777, "file_name": "x"}
    ),
  }
  for match, change in cases.items():
    file.write_text(good)
    edited(file, change)
    refused(config.ConfigError, match, lambda: open_source(coco))
  for text in (good[:-40], "", "[1, 2]", "\0"):
    file.write_text(text)
    refused(config.ConfigError, "damaged|no file of COCO's", lambda: open_source(coco))
  file.unlink()
  refused(config.ConfigError, "source.train_annotations", lambda: open_source(coco))
  refused(config.ConfigError, "no split 'test'", lambda: open_source(coco, "test"))
  only = COCOConfig(val_annotations=coco.val_annotations, val_images="/none")
  refused(config.ConfigError, "source.train_annotations", lambda: open_source(only))
  refused(config.ConfigError, "source.val_images", lambda: open_source(only, "val"))


# -------------------------------------------------------------------------- imagenet

WNIDS = ["n01440764", "n02012849", "n02119789", "n03126707"]


@pytest.fixture
def imagenet(tmp_path):
  return write_imagenet(tmp_path)


def write_imagenet(tmp_path):
  """Two images of each class, red as its number says, and a flat val."""
  for k, wnid in enumerate(WNIDS):
    for n in (10026, 27):
      save(tmp_path / "train" / wnid / f"{wnid}_{n}.JPEG", (60 * k, 10, 10))
  for n, k in enumerate(VAL, 1):
    save(tmp_path / "val" / f"ILSVRC2012_val_{n:08}.JPEG", (60 * k, 10, 10))
  (tmp_path / "train" / ".DS_Store").touch()
  (tmp_path / "train" / WNIDS[0] / "notes.txt").touch()
  return tmp_path


VAL = [2, 0, 3, 3, 1]


def open_imagenet(path, split="train", **fields):
  return open_source(ImageNetConfig(path=str(path), **fields), split)


def shown(source):
  """Classes as the images say."""
  return [round(source[i]["image"][8, 8, 0] / 60) for i in range(len(source))]


def told(source):
  return [source.classes.index(source.label(i)) for i in range(len(source))]


def kit(folder):
  """The development kit's: numbers are not in the order of folders."""
  order = [WNIDS[2], WNIDS[0], WNIDS[3], WNIDS[1], "n00001740"]
  kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
  rows = [(i, wnid, "") for i, wnid in enumerate(order, 1)]
  folder.mkdir(parents=True, exist_ok=True)
  io.savemat(folder / "meta.mat", {"synsets": np.array(rows, kind)[:, None]})
  lines = "".join(f"{order.index(WNIDS[k]) + 1}\n" for k in VAL)
  (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)


def kaggle(folder):
  lines = [
    f"ILSVRC2012_val_{n:08},{WNIDS[k]} 85 1 499 272 {WNIDS[k]} 0 0 3 4 \n"
    for n, k in enumerate(VAL, 1)
  ]
  text = "ImageId,PredictionString\n" + "".join(reversed(lines))
  (folder / "LOC_val_solution.csv").write_text(text)


def tiny(folder):
  lines = [
    f"ILSVRC2012_val_{n:08}.JPEG\t{WNIDS[k]}\t0\t32\t44\t62\n"
    for n, k in enumerate(VAL, 1)
  ]
  (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def in_order(folder):
  (folder / "val.csv").write_text("".join(f'"{WNIDS[k]}"\n' for k in VAL))


def by_folder(folder):
  for n, k in enumerate(VAL, 1):
    name = f"ILSVRC2012_val_{n:08}.JPEG"
    (folder / "val" / WNIDS[k]).mkdir(exist_ok=True)
    (folder / "val" / name).rename(folder / "val" / WNIDS[k] / name)


@pytest.mark.parametrize(
  "give",
  [kit, kaggle, tiny, in_order, by_folder, lambda f: kit(f / IN_KIT)],
  ids=["kit", "kaggle", "tiny", "in_order", "by_folder", "kit_beside"],
)
def test_imagenet_in_every_layout(imagenet, give):
  give(imagenet)
  train = open_imagenet(imagenet, num_classes=4)
  val = open_imagenet(imagenet, "val", num_classes=4)
  found = read_all((train, val))
  assert train.classes == val.classes == WNIDS
  assert told(train) == shown(train) == [0, 0, 1, 1, 2, 2, 3, 3]
  assert told(val) == shown(val) == (sorted(VAL) if give is by_folder else VAL)
  assert found[0]["caption"] == "n01440764"
  assert found[0]["meta"] == {
    "file_name": "n01440764/n01440764_10026.JPEG", "wnid": "n01440764",
  }  # fmt: skip


IN_KIT = "ILSVRC2012_devkit_t12/data"


def test_kaggles_archive_and_nested_folders(imagenet, tmp_path):
  inner = tmp_path / "archive/ILSVRC/Data/CLS-LOC"
  inner.mkdir(parents=True)
  for split in ("train", "val"):
    (imagenet / split).rename(inner / split)
  (inner / "train" / WNIDS[1]).rename(inner / "images")
  (inner / "train" / WNIDS[1]).mkdir()
  (inner / "images").rename(inner / "train" / WNIDS[1] / "images")
  kaggle(tmp_path / "archive")
  names = dict(zip(WNIDS, ("tench, Tinca tinca", "crane", "kit fox", "crane")))
  lines = [f"{wnid} {name}\n" for wnid, name in reversed(names.items())]
  (tmp_path / "archive/LOC_synset_mapping.txt").write_text("".join(lines))
  train, val = (open_imagenet(tmp_path / "archive", s) for s in ("train", "val"))
  assert told(train) == shown(train) and told(val) == shown(val) == VAL
  assert train.classes == [
    "tench, Tinca tinca", "crane (n02012849)", "kit fox", "crane (n03126707)",
  ]  # fmt: skip
  # As the encoder of classes, and as one of captions, takes them.
  ClassesConfig().fit(train, len(train), tmp_path / "classes.txt")
  found = Classes(tmp_path / "classes.txt")
  labels = [ClassesConfig().prompt(val, i, val[i]) for i in range(len(val))]
  assert found.encode(labels)[0][:, 0].tolist() == VAL
  assert LearnedConfig().prompt(val, 0) == "kit fox"


def test_names_of_classes_in_order(imagenet):
  (imagenet / "classes.txt").write_text("tench\ncrane\nkit fox\nmachine\n")
  assert open_imagenet(imagenet).classes == ["tench", "crane", "kit fox", "machine"]
  (imagenet / "classes.txt").write_text(f"{WNIDS[1]}\tcrane\n")
  assert open_imagenet(imagenet).classes == [WNIDS[0], "crane", *WNIDS[2:]]
  (imagenet / "classes.txt").write_text("tench\n")
  line = "names 1 classes, but train has folders of 4"
  refused(config.ConfigError, line, lambda: open_imagenet(imagenet))


def test_a_cache_is_of_the_files_of_imagenet(tmp_path):
  """Of their names, sizes and classes, wherever they lie."""
  place = write_imagenet(tmp_path / "a").rename(tmp_path / "b")
  tiny(place)
  data = config.Data(
    source=ImageNetConfig(path=str(place)), image_size=16, cache=str(tmp_path / "cache")
  )
  run = config.Run(data=data, text=ClassesConfig())
  write = lambda: prepare.prepare(run, tokenizer=Tokenizer(), batch=4, log=str)
  made = write()
  assert write() == made
  # One of before says nothing of files: it is taken, and stays as it is.
  old = {k: v for k, v in made["config"].items() if not k.startswith("data.files.")}
  assert len(old) == len(made["config"]) - 2
  records.write_metadata(data.cache, made | {"config": old})
  assert write()["config"] == old
  records.write_metadata(data.cache, made)

  def differ(change):
    """Identities after a change, which is undone."""
    before = identity.of_cache(run)
    undo = change()
    found = identity.differences(before, identity.of_cache(run))
    undo()
    assert identity.of_cache(run) == before
    return [key.removeprefix("data.files.") for key in found]

  def written(path, content):
    def change():
      old = path.read_bytes() if path.exists() else None
      path.write_bytes(content)
      return path.unlink if old is None else lambda: path.write_bytes(old)

    return change

  def renamed(path, name):
    return lambda: functools.partial(path.rename(path.with_name(name)).rename, path)

  one, label = place / "train" / WNIDS[0], place / "val" / "val_annotations.txt"
  first = one / f"{WNIDS[0]}_27.JPEG"
  swapped = label.read_bytes().replace(WNIDS[0].encode(), WNIDS[1].encode(), 1)
  names = b"tench\ncrane\nkit fox\nmachine\n"
  for change, splits in (
    (written(first, b""), ["train"]),
    (written(first, first.read_bytes()), []),
    (renamed(first, "x.JPEG"), ["train"]),
    (written(one / "new.jpg", b""), ["train"]),
    (written(one / "notes.txt", b"more"), []),
    (written(place / "val" / "new.jpg", b""), ["val"]),
    (written(label, swapped), ["val"]),
    (written(place / "classes.txt", names), ["train", "val"]),
    (renamed(place, "c"), ["train", "val"]),
  ):
    assert differ(change) == splits
  moved = config.replaced(run, {"data.source.path": str(place.rename(tmp_path / "d"))})
  assert identity.of_cache(moved) == {
    k: made["config"][k] for k in identity.of_cache(moved)
  }
  (tmp_path / "d" / "val" / "new.jpg").touch()
  label = tmp_path / "d/val/val_annotations.txt"
  label.write_text(label.read_text() + f"new.jpg\t{WNIDS[0]}\n")
  with pytest.raises(config.ConfigError, match="another config .data.files.val is '"):
    prepare.prepare(moved, tokenizer=Tokenizer(), batch=4, log=str)


def test_imagenet_refuses_in_one_line(imagenet):
  of_val = lambda: open_imagenet(imagenet, "val")
  error = config.ConfigError
  refused(error, "nothing beside says the classes", of_val)
  kit(imagenet)
  (imagenet / "meta.mat").write_bytes(b"no")
  refused(error, "meta.mat has to explain", of_val)
  (imagenet / "meta.mat").unlink()
  refused(error, "meta.mat has to explain", of_val)
  (imagenet / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n")
  refused(error, "classes of 2 images, but .* has 5", of_val)
  kaggle(imagenet)
  text = (imagenet / "LOC_val_solution.csv").read_text()
  for wrong, match in (
    (text.replace("00000003,", "00000009,"), "not say the class of .*00000003.JPEG"),
    (text.replace("n03126707", "n9"), "names class n9, which train has not"),
  ):
    (imagenet / "LOC_val_solution.csv").write_text(wrong)
    refused(error, match, of_val)
  by_folder(imagenet)
  save(imagenet / "val" / "n9" / "x.JPEG")
  refused(error, "n9 is a class that train has not", of_val)
  counted = lambda: open_imagenet(imagenet, num_classes=1000)
  refused(error, "folders of 4 classes, but .*num_classes' is 1000", counted)
  refused(error, "no split 'test'", lambda: open_imagenet(imagenet, "test"))
  refused(error, "source.path' must", lambda: open_imagenet(imagenet / "none"))
  (imagenet / "empty" / "train").mkdir(parents=True)
  refused(error, "no folders of classes", lambda: open_imagenet(imagenet / "empty"))
  refused(error, "needs.*source.path", lambda: open_source(ImageNetConfig()))
  source = open_imagenet(imagenet)
  (imagenet / "train" / source[0]["meta"]["file_name"]).write_bytes(b"no")
  refused(BadExample, "n01440764_10026.JPEG cannot be read", lambda: source[0])


# ------------------------------------------------------------------------------- all


def test_worker_processes_read_the_same(coco, tmp_path):
  source = open_source(coco)
  (tmp_path / "train/COCO_train2014_000000522418.jpg").unlink()
  here, there = read(source), read(source, workers=2)
  assert len(here) == len(there) == 4 and here[3]["bad"] == there[3]["bad"] == "image"
  for a, b in zip(here[:3], there[:3]):
    np.testing.assert_array_equal(a.pop("image"), b.pop("image"))
    assert a == b


def test_strings_are_small_and_survive():
  odd = ["", "a", "\udcff.png", "\ud800", "\U0001f408", "a\nb\0", ""]
  found = pickle.loads(pickle.dumps(listed.Strings(odd)))
  assert [found[i] for i in range(len(found))] == odd
  many = listed.Strings(f"n{i // 1000:08}/n{i:08}_x.JPEG" for i in range(10_000))
  assert len(many) == 10_000 and len(pickle.dumps(many)) < 10_000 * 40


def test_places_and_captions_are_no_part_of_images():
  run = config.Run()
  of = lambda source: config.replaced(run, {"data.source": source})
  a, b = of(COCOConfig()), of(COCOConfig(train_images="a", val_annotations="b"))
  assert identity.of_cache(a) == identity.of_cache(b)
  a, b = of(FolderConfig()), of(FolderConfig(caption_key="caption"))
  assert identity.of_tokenizer(a) == identity.of_tokenizer(b)
  assert identity.of_cache(a) != identity.of_cache(b)
  a, b = of(ImageNetConfig()), of(ImageNetConfig(path="a", num_classes=10))
  assert identity.differences(identity.of_cache(a), identity.of_cache(b)) == [
    "data.source.num_classes"
  ]


def test_the_crop_is_a_choice(tmp_path):
  """Of published pipelines; it belongs to the identity of what is cached."""
  image = np.random.RandomState(0).randint(0, 256, (70, 40, 3)).astype(np.uint8)
  Image.fromarray(image).save(tmp_path / "a.png")
  line = {"file_name": "a.png", "text": "noise"}
  (tmp_path / "metadata.jsonl").write_text(json.dumps(line) + "\n")
  seen, identities = set(), set()
  for crop, fit in images.FITS.items():
    data = config.Data(
      source=FolderConfig(path=str(tmp_path), crop=crop), image_size=16
    )
    split = next(s for s in ("train", "val") if len(make_source(data, s)))
    found = make_source(data, split)[0]["image"]
    np.testing.assert_array_equal(found, fit(image, 16))
    seen.add(found.tobytes())
    identities.add(identity.digest(identity.identity(data)))
  assert len(seen) == len(identities) == len(images.FITS)
  with pytest.raises(config.ConfigError, match="crop"):
    FolderConfig(crop="middle").check("data.source.")
