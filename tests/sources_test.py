"""Sources of images that people have: COCO's files, and what all sources share.

folder_test.py and imagenet_test.py have the others.
"""

import dataclasses
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from fluid import config, prepare
from fluid.config import identity
from fluid.data import BadExample, images, listed, make_source, records
from fluid.data.coco import COCOConfig
from fluid.data.folder import FolderConfig
from fluid.data.imagenet import ImageNetConfig
from fluid.text.learned import LearnedConfig
from tests.caches import Tokenizer
from tests.sources import caption, open_source, read, read_all, refused, write_coco


@pytest.fixture
def coco(tmp_path):
  return write_coco(tmp_path, [391895, 9, 522418, 184613], [397133, 37777])


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
