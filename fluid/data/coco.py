"""COCO's images with their five or so captions (https://cocodataset.org).

The file of annotations is captions_train2017.json or one in its layout, of COCO's other
years and of other sets alike; images lie in one folder. Annotations are under CC BY
4.0; images are Flickr's, each under the terms that the file names. COCO Captions: Chen
et al., arXiv:1504.00325.
"""

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import numpy as np

from fluid import config, files
from fluid.config import ConfigError
from fluid.data import BadExample, is_text, listed, stored


@dataclasses.dataclass(frozen=True)
class COCOConfig(listed.Cropped):
  """Captioned photographs; 118,287 and 5,000 in the splits of 2017.

  Attributes:
    train_annotations, val_annotations: captions_train2017.json, captions_val2017.json.
    train_images, val_images: the folders train2017 and val2017.
  """

  kind = "coco"

  train_annotations: str = config.place()
  train_images: str = config.place()
  val_annotations: str = config.place()
  val_images: str = config.place()

  def vouched(self, prefix):
    """Hashes of the annotations: which images there are and what is said of them."""
    found = {"train": self.train_annotations, "val": self.val_annotations}
    return {f"{prefix}{split}": _digest(path) for split, path in found.items()}

  def make(self, *, split: str, image_size: int, seed: int = 0) -> "COCO":
    """The source of a split."""
    del seed  # Nothing here is random.
    return COCO(self, split=split, image_size=image_size)


class COCO:
  """Images in the order of their ids, cut to their central square and resized.

  Captions are in the order of theirs, with white space run together, as some end in
  line breaks. An image without captions keeps its index and is a bad example.
  """

  def __init__(self, wanted: COCOConfig, *, split: str, image_size: int):
    stored.check_split("coco", split)
    for key in (f"{split}_annotations", f"{split}_images"):
      if not getattr(wanted, key):
        raise ConfigError(f"source 'coco' needs config key 'data.source.{key}'")
    self.size, self.crop = image_size, wanted.crop
    self.file = pathlib.Path(getattr(wanted, f"{split}_annotations"))
    self.root = pathlib.Path(getattr(wanted, f"{split}_images"))
    if not self.root.is_dir():
      raise ConfigError(
        f"no folder {self.root}: config key 'data.source.{split}_images' must name "
        "COCO's images"
      )
    names, captions = _read(self.file, f"{split}_annotations")
    # Here, as the other file is the small one.
    if split == "train" and (other := wanted.val_annotations):
      if both := names.keys() & _read(pathlib.Path(other), "val_annotations")[0].keys():
        raise ConfigError(
          f"image {min(both)} is in {self.file} and in {other}: config keys "
          "'data.source.train_annotations' and 'data.source.val_annotations' must name "
          "files without common ids"
        )
    self.ids = np.array(sorted(names), np.int64)  # [N]
    order = self.ids.tolist()
    self._names = listed.Strings(names[i] for i in order)
    self._captions = listed.Strings("\n".join(captions.get(i, ())) for i in order)

  def __len__(self) -> int:
    return len(self.ids)

  def caption(self, index: int) -> str:
    """The first caption, without the image."""
    return next(iter(self.captions(index)), "")

  def captions(self, index: int) -> list[str]:
    """All captions, without the image; none where there is none."""
    return self._captions[index].splitlines()

  def __getitem__(self, index: int) -> dict[str, Any]:
    name, captions = self._names[index], self.captions(index)
    if not captions:
      raise BadExample(f"image {name} has no caption in {self.file}", "caption")
    remove = f"its entry in {self.file}"
    return {
      **listed.read_square(self.root, name, self.size, remove, self.crop),
      "caption": captions[0],
      "captions": captions,
      "id": int(self.ids[index]),
      "meta": {"file_name": name},
    }


def _digest(path: str) -> str:
  """SHA-256 of a file; '' on a machine that only plans and has none."""
  try:
    stat = os.stat(path)
    return _hashed(path, stat.st_size, stat.st_mtime_ns)
  except OSError:
    return ""


@functools.lru_cache
def _hashed(path: str, *stamp: int) -> str:
  """Kept while the file is as it was, since many ask."""
  del stamp
  return files.sha256(path)


def _read(path: pathlib.Path, key: str) -> tuple[dict[int, str], dict[int, list[str]]]:
  """Names of files and captions, by id of image; ConfigError for what is no COCO's."""
  try:
    content = json.loads(path.read_bytes())
  except OSError as e:
    raise ConfigError(
      f"{path} cannot be read ({e.strerror}): config key 'data.source.{key}' must name "
      "COCO's captions_*.json"
    ) from e
  except ValueError as e:
    raise ConfigError(f"{path} is damaged, no JSON ({e}): get it anew") from e
  try:
    images, annotations = content["images"], content["annotations"]
    names = {image["id"]: image["file_name"] for image in images}
    rows = sorted((a["image_id"], a["id"], a["caption"]) for a in annotations)
  except (KeyError, TypeError) as e:
    why = f"no {e}" if isinstance(e, KeyError) else str(e)
    raise ConfigError(
      f"{path} is no file of COCO's captions ({why}): config key 'data.source.{key}' "
      "must name one that has images with id and file_name, and annotations with "
      "image_id, id and caption"
    ) from e
  for found, name in names.items():
    if type(found) is not int or not 0 <= found < 2**31 or type(name) is not str:
      raise ConfigError(
        f"{path} has an image with id {found!r} and file_name {name!r}: ids must be "
        "integers below 2**31, names text"
      )
  if len(names) < len(images):
    raise ConfigError(f"{path} has {len(images) - len(names)} ids of images twice")
  captions: dict[int, list[str]] = {}
  for found, number, caption in rows:
    if found not in names:
      raise ConfigError(f"{path} has caption {number} of image {found}, but not that")
    if is_text(caption) and caption.strip():
      captions.setdefault(found, []).append(" ".join(caption.split()))
  return names, captions
