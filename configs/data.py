"""Data sets by name: `--config=configs/fluid.py:data=cc12m`.

A row says how a set is read; where it lies is yours to say, by the flags in `where`.
Nothing is downloaded. `python -m configs.data` prints the table.
"""

import dataclasses
from typing import Any

from fluid import config
from fluid.config import ConfigError
from fluid.data import SOURCES


@dataclasses.dataclass(frozen=True)
class Set:
  """A row of SETS.

  Attributes:
    what: it is.
    licence: the terms of captions and images, as its authors state them.
    where: fields of config.data.source that have yet to be given.
    kind: of the source that reads it.
    fields: of that source.
  """

  what: str
  licence: str
  where: str
  kind: str
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def source(self) -> config.Part:
    """Its reader, which may import packages that nothing else needs."""
    return config.resolve("source", self.kind)(**self.fields)


_URLS = "of the list; images are their owners', each under terms of its own"
_YOURS = "whatever your images have"

SETS = {
  "coco": Set(
    "COCO Captions, five or so an image: 118,287 and 5,000 in 2017 (arXiv 1504.00325)",
    "annotations CC BY 4.0; images are Flickr's, under the terms that the file names",
    "train_annotations, train_images, val_annotations, val_images",
    "coco",
  ),
  "imagenet": Set(
    "ILSVRC2012, 1000 classes: 1,281,167 and 50,000 (arXiv 1409.0575)",
    "non-commercial research and education, by ImageNet's terms of access",
    "path",
    "imagenet",
    # As published class-conditional models were trained and are judged.
    {"num_classes": 1000, "crop": "adm"},
  ),
  # What img2dataset writes: KEY.jpg, KEY.txt of --caption_col, KEY.json with all else.
  "cc12m": Set(
    "Conceptual 12M as img2dataset wrote it: 12 million alt texts (arXiv 2102.08981)",
    f"Google's, free for any purpose, {_URLS}",
    "train='cc12m/{00000..01242}.tar'",
    "webdataset",
  ),
  "datacomp": Set(
    "DataComp's pools, or DataComp-1B, as its script wrote them (arXiv 2304.14108)",
    f"CC BY 4.0, {_URLS}",
    "train='shards/*.tar'",
    "webdataset",
  ),
  "laion_coco": Set(
    "LAION-COCO as img2dataset wrote it, with top_caption among its "
    "--save_additional_columns: 600 million images, captions by BLIP",
    f"CC BY 4.0, {_URLS}",
    "train='laion-coco-output/*.tar'",
    "webdataset",
    # KEY.txt has the alt text, which these captions are there to replace.
    {"caption": "top_caption"},
  ),
  "text_to_image_2m": Set(
    "text-to-image-2M, its own tars: 2 million images of 512 px, most drawn by models",
    "MIT, as its authors state; the sets it was made of have terms of their own",
    "train='data_512_2M/*.tar'",
    "webdataset",
    {"caption": "prompt"},
  ),
  "tfds:coco_captions": Set(
    "COCO Captions of 2014 by TFDS, in Karpathy's splits",
    "as coco",
    "data_dir",
    "tfds",
    {"name": "coco_captions", "val": "val"},
  ),
  "tfds:imagenet2012": Set(
    "ILSVRC2012 by TFDS",
    "as imagenet",
    "data_dir",
    "tfds",
    {"name": "imagenet2012", "crop": "adm"},
  ),
  "tfds:cifar10": Set(
    "60,000 images of 32 px, ten classes (Krizhevsky 2009)",
    "none stated by its authors",
    "data_dir",
    "tfds",
    {"name": "cifar10", "val": "test"},
  ),
  "iconify": Set(
    "emoji in six styles from npm, about 20,400 captioned drawings",
    "each style's own, which its package states",
    "path",
    "iconify",
    {"path": "runs/iconify"},
  ),
  "parquet": Set(
    "Parquet files, as Hugging Face has them",
    _YOURS,
    "train='data/train-*.parquet'",
    "parquet",
  ),
  "webdataset": Set("tar shards", _YOURS, "train='data/*.tar'", "webdataset"),
  "folder": Set("images with a file of captions", _YOURS, "path", "folder"),
}
TFDS = "tfds:"


def source(name: str) -> config.Part:
  """The reader of a set by its name: a row of SETS, tfds:NAME, or a kind of source.

  Raises:
    ConfigError: there is none of this name.
  """
  if name in SETS:
    return SETS[name].source
  if name.startswith(TFDS) and name != TFDS:
    return config.resolve("source", "tfds")(name=name.removeprefix(TFDS))
  if name not in SOURCES:
    known = dict.fromkeys([*SETS, f"{TFDS}NAME", *SOURCES])
    raise ConfigError(f"config argument data='{name}'; choose from {', '.join(known)}")
  return config.resolve("source", name)()


if __name__ == "__main__":
  for name, row in SETS.items():
    print(f"{name}\n  {row.what}\n  licence: {row.licence}")
    print(f"  --config.data.source. {row.where}")
