"""Sets as people have them: COCO and ImageNet in small, and how sources are read."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from fluid import config
from fluid.data import examples, make_source
from fluid.data.coco import COCOConfig
from fluid.text.learned import LearnedConfig


def open_source(source, split="train"):
  return make_source(config.Data(source=source, image_size=16), split)


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


def read(source, workers=0):
  """As fluid.prepare does."""
  batches = examples.read(source, LearnedConfig(), 0, len(source), 4, workers)
  return [e for batch in batches for e in batch]


def caption(image, number, text):
  return {"image_id": image, "id": number, "caption": text}


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


WNIDS = ["n01440764", "n02012849", "n02119789", "n03126707"]
VAL = [2, 0, 3, 3, 1]  # Classes of its images, by their place in WNIDS.


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


def kaggle(folder):
  lines = [
    f"ILSVRC2012_val_{n:08},{WNIDS[k]} 85 1 499 272 {WNIDS[k]} 0 0 3 4 \n"
    for n, k in enumerate(VAL, 1)
  ]
  text = "ImageId,PredictionString\n" + "".join(reversed(lines))
  (folder / "LOC_val_solution.csv").write_text(text)
