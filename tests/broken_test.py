"""Broken inputs of every kind, in every source where they can be.

A set is prepared twice, whole and with broken examples in their places: these are
counted by kind, and every other record is what it was.
"""

import collections
import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fluid import config, prepare
from fluid.data import packing, records
from fluid.data.coco import COCOConfig
from fluid.data.folder import FolderConfig
from fluid.data.imagenet import ImageNetConfig
from fluid.data.parquet import ParquetConfig
from fluid.data.tfds import TfdsConfig
from fluid.data.webdataset import WebDatasetConfig
from fluid.text.learned import LearnedConfig
from tests.caches import Tokenizer
from tests.shards import build, png, write_tar


def as_file(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def absurd():
  """A PNG that says it has 40,000 squared pixels."""
  good = png(0)
  header = b"IHDR" + struct.pack(">II", 40_000, 40_000) + good[24:29]
  return good[:12] + header + struct.pack(">I", zlib.crc32(header)) + good[33:]


NAN = np.full((8, 8), np.nan, np.float32)
IMAGES = {
  "truncated": png(0)[: len(png(0)) // 2],
  "empty": b"",
  "no image": b"GIF89a? no: a text",
  "absurd size": absurd(),
  "NaN": as_file(Image.fromarray(NAN), "TIFF"),
  "profile": as_file(Image.new("RGB", (8, 8)), "PNG", icc_profile=b"no profile"),
}
CAPTIONS = {"null": None, "empty caption": " ", "wrong type": 7}
TWELVE = {*IMAGES, *CAPTIONS, "missing", "outside", "damaged shard"}
N = 32


def places(kinds):
  """Index -> kind: broken examples lie among the good ones, and at both ends."""
  return dict(zip([0, N - 1, *range(3, N, 2)], kinds))


def content(i, kind):
  """An image file; None where there is none to write."""
  return None if kind in ("missing", "outside") else IMAGES.get(kind, png(i % 9))


def caption(i, kind):
  return CAPTIONS.get(kind, f"image {i}")


def folder(root, broken):
  lines = []
  (root / "val").mkdir(parents=True)
  (root / "out.png").write_bytes(png(0))
  for i in range(N):
    kind = broken.get(i)
    if (found := content(i, kind)) is not None:
      (root / f"{i}.png").write_bytes(found)
    name = "../out.png" if kind == "outside" else f"{i}.png"
    lines.append(json.dumps({"file_name": name, "text": caption(i, kind)}))
  (root / "train").mkdir()
  for file in root.glob("[0-9]*.png"):
    file.rename(root / "train" / file.name)
  (root / "train/metadata.jsonl").write_text("\n".join(lines))
  (root / "val/0.png").write_bytes(png(0))
  (root / "val/metadata.jsonl").write_text(lines[1].replace("1.png", "0.png"))
  return FolderConfig(path=str(root))


def coco(root, broken):
  images, annotations = [], []
  (root / "val").mkdir(parents=True)
  (root / "train").mkdir()
  (root / "out.png").write_bytes(png(0))
  for i in range(N):
    kind = broken.get(i)
    if (found := content(i, kind)) is not None:
      (root / "train" / f"{i}.png").write_bytes(found)
    name = "../out.png" if kind == "outside" else f"{i}.png"
    images.append({"id": i, "file_name": name})
    annotations.append({"image_id": i, "id": i, "caption": caption(i, kind)})
  told = {"images": images, "annotations": annotations}
  (root / "train.json").write_text(json.dumps(told))
  (root / "val/0.png").write_bytes(png(0))
  images, said = [{"id": 99, "file_name": "0.png"}], {"image_id": 99, "id": 0}
  said |= {"caption": "image 1"}
  (root / "val.json").write_text(json.dumps({"images": images, "annotations": [said]}))
  places = {f"{s}_annotations": str(root / f"{s}.json") for s in ("train", "val")}
  return COCOConfig(
    **places, **{f"{s}_images": str(root / s) for s in ("train", "val")}
  )


def imagenet(root, broken):
  for i in range(N):
    file = root / "train" / f"n{i // 8}" / f"{i:03}.JPEG"
    file.parent.mkdir(parents=True, exist_ok=True)
    found = content(i, broken.get(i))
    # One that is there when the folder is read, and leads nowhere.
    file.symlink_to(root / "none") if found is None else file.write_bytes(found)
  (root / "val/n0").mkdir(parents=True)
  (root / "val/n0/0.JPEG").write_bytes(png(0))
  return ImageNetConfig(path=str(root))


def webdataset(root, broken):
  root.mkdir(parents=True)
  for tar in range(4):
    members = []
    for i in range(8 * tar, 8 * tar + 8):
      found, said = content(i, broken.get(i)), caption(i, broken.get(i))
      members += [(f"{i:03}.png", found)] if found is not None else []
      members.append((f"{i:03}.json", {"caption": said}))
    write_tar(root / f"{tar}.tar", members)
    if tar == 1 and broken.get(15) == "damaged shard":
      # Cut in its last sample, whose caption comes last.
      path = root / f"{tar}.tar"
      whole = path.read_bytes()
      path.write_bytes(whole[: whole.rindex(b"image 15")])
  write_tar(root / "val.tar", [("a.png", png(0)), ("a.txt", b"image 1")])
  return WebDatasetConfig(train=str(root / "[0-3].tar"), val=str(root / "val.tar"))


def parquet(root, broken):
  root.mkdir(parents=True)
  (root.parent / "out.png").write_bytes(png(0))
  rows = collections.defaultdict(list)
  for i in range(N):
    kind = broken.get(i)
    name = {"outside": "../out.png", "missing": "none.png"}.get(kind, "")
    rows["image"].append({"bytes": content(i, kind), "path": name})
    rows["text"].append(caption(i, kind))
  file = root / "train.parquet"
  options = {"row_group_size": 4, "write_page_checksum": True}
  pq.write_table(pa.table(rows), file, **options)
  if "damaged shard" in broken.values():
    chunk = pq.read_metadata(file).row_group(5).column(0)
    found, size = bytearray(file.read_bytes()), chunk.total_compressed_size
    start = (chunk.dictionary_page_offset or chunk.data_page_offset) + size // 2
    found[start : start + 64] = bytes(64)
    file.write_bytes(found)
  image = [{"bytes": png(0), "path": ""}]
  pq.write_table(pa.table({"image": image, "text": ["a"]}), root / "val.parquet")
  return ParquetConfig(train=str(file), val=str(root / "val.parquet"))


def tfds(root, broken):
  train, val = range(N), range(N, N + 1)
  build(
    root,
    splits={"train": train, "validation": val},
    png=lambda n: content(n, broken.get(n)),
    texts=lambda n: [caption(n, broken.get(n))],
  )
  return TfdsConfig(name="small", data_dir=str(root))


# A row group holds four examples; a tar and its index end at the damage.
SOURCES = {
  "folder": (folder, places([*IMAGES, *CAPTIONS, "missing", "outside"])),
  "coco": (coco, places([*IMAGES, *CAPTIONS, "missing", "outside"])),
  "imagenet": (imagenet, places([*IMAGES, "missing"])),
  "webdataset": (
    webdataset,
    places([*IMAGES, *CAPTIONS, "missing"]) | {15: "damaged shard"},
  ),
  "parquet": (
    parquet,
    places([*IMAGES, "null", "empty caption", "missing", "outside"])
    | dict.fromkeys(range(20, 24), "damaged shard"),
  ),
  "tfds": (tfds, places([*IMAGES, "empty caption"])),
}


def test_all_twelve_kinds_are_there():
  assert {k for _, broken in SOURCES.values() for k in broken.values()} == TWELVE


def written(source, cache):
  data = config.Data(source=source, image_size=16, cache=str(cache), max_bad=0.9)
  run = config.Run(data=data, text=LearnedConfig(vocab_size=80, length=12))
  metadata = prepare.prepare(run, tokenizer=Tokenizer(), batch=4, log=str)
  cached = records.Records(cache, "train")
  return metadata["splits"]["train"], cached, cached.gather(np.arange(len(cached)))


@pytest.mark.parametrize("kind", SOURCES)
def test_what_is_broken_is_counted_and_shifts_nothing(kind, tmp_path):
  make, broken = SOURCES[kind]
  _, _, before = written(make(tmp_path / "whole", {}), tmp_path / "a")
  said, cached, rows = written(make(tmp_path / "broken", broken), tmp_path / "b")
  assert len(cached) == len(before["id"]) == said["count"]
  order = np.arange(N)
  if kind == "tfds":  # Its files are in an order of its own.
    order = np.array(
      [int(cached[i]["meta"]["number"]) if not rows["bad"][i] else -1 for i in order]
    )
    left = sorted(set(range(N)) - set(order.tolist()))
    assert left == sorted(broken)
    by_kind = collections.Counter(
      "caption" if k in CAPTIONS else "image" for k in broken.values()
    )
  else:
    kinds = {i: "caption" if k in CAPTIONS else "image" for i, k in broken.items()}
    assert {i: packing.BAD[rows["bad"][i] - 1] for i in broken} == kinds
    by_kind = collections.Counter(kinds.values())
  assert said["skipped"] == by_kind
  good = rows["bad"] == 0
  assert good.sum() == N - len(broken) and not before["bad"].any()
  for name in ("id", "mean", "std"):
    np.testing.assert_array_equal(rows[name][good], before[name][good])
  for i in np.flatnonzero(good).tolist():
    wanted = f"n{i // 8}" if kind == "imagenet" else f"image {order[i]}"
    assert cached[i]["caption"] == wanted
