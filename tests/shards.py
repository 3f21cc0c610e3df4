"""Small sets in shards, as other libraries write them, and their sources."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fluid import config
from fluid.data import make_source

SIZE = 8
NAMES = ["cat", "dog", "crane"]
TRAIN, VAL = range(12), range(12, 16)  # Numbers of the images of each split.
PARTS = range(6), range(6, 12), VAL  # Of each file.


def png(number):
  pixels = np.random.default_rng(number).integers(0, 256, (10 + number, 12, 3))
  file = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
  return file.getvalue()


def texts(number):
  return [f"image {number}", f"the picture {number}"]


def write_tar(path, members, **options):
  """Members (name, bytes or JSON-able) -> tar."""
  with tarfile.open(path, "w", **options) as tar:
    for name, content in members:
      if not isinstance(content, bytes):
        content = json.dumps(content).encode()
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


def sample(number):
  fields = {"caption": texts(number), "number": number, "label": number % 3}
  fields |= {"status": None, "exif": {"b": [1, None], "a": {}}, "none": [], "ü": "ü"}
  return [(f"{number:05d}.png", png(number)), (f"{number:05d}.json", fields)]


def hugging_face(names):
  """What a table of Hugging Face's `datasets` says of its features."""
  features = {"label": {"names": names, "_type": "ClassLabel"}}
  return {"huggingface": json.dumps({"info": {"features": features}})}


def table(numbers, **columns):
  columns = {
    "image": [{"bytes": png(n), "path": f"{n}.png"} for n in numbers],
    "caption": [texts(n) for n in numbers],
    "label": [n % 3 for n in numbers],
    "number": list(numbers),
  } | columns
  columns = {name: c for name, c in columns.items() if c is not None}
  return pa.table(columns).replace_schema_metadata(hugging_face(NAMES))


def build(folder, name="small", file_format="array_record", splits=None, **own):
  """A set of TFDS, written by its own builder; `own` content by name, of a number."""
  import tensorflow_datasets as tfds  # And tensorflow, to write: seconds.

  class Builder(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
    code_path = None  # Else version 4.9.10 imports a package that it does not require.

  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
      "label": tfds.features.ClassLabel(names=NAMES),
      "number": np.int64,
    }
  )
  rows = lambda numbers: [
    (
      n,
      {
        "image": io.BytesIO(own.get("png", png)(n)),
        "captions": [
          {"text": t, "id": i} for i, t in enumerate(own.get("texts", texts)(n))
        ],
        "label": n % 3,
        "number": n,
      },
    )
    for n in numbers
  ]
  tfds.disable_progress_bar()
  Builder(
    name=name,
    version="1.0.0",
    features=features,
    split_datasets={s: rows(n) for s, n in splits.items()},
    data_dir=folder,
    file_format=file_format,
  ).download_and_prepare()


def source_of(kind, split="train", **fields):
  part = config.part_from_dict({"kind": kind} | fields, "source", "data.source.")
  return make_source(config.Data(source=part, image_size=SIZE), split)


def write_tars(folder):
  """The small set in three files -> fields of its source."""
  for i, numbers in enumerate(PARTS):
    members = [m for n in numbers for m in sample(n)]
    write_tar(folder / f"{i:05d}.tar", members)
  return {
    "train": str(folder / "{00000..00001}.tar"),
    "val": str(folder / "00002.tar"),
  }


def write_tables(folder):
  """The same of Parquet."""
  for i, numbers in enumerate(PARTS):
    pq.write_table(table(numbers), folder / f"{i}.parquet", row_group_size=4)
  return {"train": str(folder / "[01].parquet"), "val": str(folder / "2.parquet")}
