"""ImageNet's ILSVRC2012, and other sets with a folder for each class.

FOLDER/train/n01440764/*.JPEG, and FOLDER/val likewise or with all images in one folder
and their classes in a file: Kaggle's LOC_val_solution.csv, the development kit's
ILSVRC2012_validation_ground_truth.txt with its meta.mat, or one of the other LABELS.
FOLDER may be Kaggle's archive as well. ImageNet is for non-commercial research and
education, by its terms of access (https://image-net.org/download). Russakovsky et al.,
arXiv:1409.0575.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from fluid import config
from fluid.config import ConfigError
from fluid.data import images, is_text, listed, stored

# Classes of the images in a flat val: lines of a file and its class, or of a class
# alone in the order of the files. The third is Tiny ImageNet's, the last your own.
LABELS = (
  "LOC_val_solution.csv",
  "ILSVRC2012_validation_ground_truth.txt",
  "val_annotations.txt",
  "val.csv",
)
# Names of classes: lines of a folder and its name, or of names in the order of classes.
NAMES = ("classes.txt", "LOC_synset_mapping.txt", "words.txt")
_KAGGLE = "ILSVRC/Data/CLS-LOC"
_DEVKIT = "ILSVRC2012_devkit_t12/data"


@dataclasses.dataclass(frozen=True)
class ImageNetConfig(listed.Cropped):
  """Labelled photographs; the caption of an image is the name of its class.

  Attributes:
    path: of the folder that has train and val.
    num_classes: that there have to be (0: any number). A folder that is missing would
      give those after it other ids; ILSVRC2012 has 1000.
  """

  kind = "imagenet"

  path: str = config.place()
  num_classes: int = 0

  def vouched(self, prefix):
    """Digests of what each split has, '' on a machine that only plans and has none."""

    def digest(split):
      try:
        return self.make(split=split, image_size=0).digest()
      except ConfigError:
        return ""

    return {f"{prefix}{split}": digest(split) for split in ("train", "val")}

  def make(self, *, split: str, image_size: int, seed: int = 0) -> "ImageNet":
    """The source of a split."""
    del seed  # Nothing here is random.
    return ImageNet(self, split=split, image_size=image_size)


class ImageNet:
  """Images by class and name of file, cut to their central square and resized.

  Attributes:
    wnids: the folders of train, sorted; an index is the published number of a class.
    classes: their names, where a file has them; else the folders.
  """

  def __init__(self, wanted: ImageNetConfig, *, split: str, image_size: int):
    stored.check_split("imagenet", split)
    if not wanted.path:
      raise ConfigError("source 'imagenet' needs config key 'data.source.path'")
    self.size, self.crop = image_size, wanted.crop
    given = pathlib.Path(wanted.path)
    top = given / _KAGGLE if (given / _KAGGLE).is_dir() else given
    self.wnids = _folders(top / "train")
    if wanted.num_classes not in (0, len(self.wnids)):
      raise ConfigError(
        f"{top / 'train'} has folders of {len(self.wnids)} classes, but config key "
        f"'data.source.num_classes' is {wanted.num_classes}: complete them, or set that"
      )
    self.classes = _class_names(_beside(NAMES, given, top), self.wnids)
    if wrong := [name for name in self.classes if not is_text(name)]:
      raise ConfigError(
        f"the name of folder {str(top / 'train' / wrong[0])!a} is not UTF-8, and the "
        "caption of its images: rename it"
      )
    self.root = top / split
    self._first = listed.VAL_IDS if split == "val" else 0
    if split == "val" and not set(_folders(self.root)) & set(self.wnids):
      names = list(_files(self.root))
      where = (given, top, self.root, given / _DEVKIT)
      labels = _labels(_beside(LABELS, *where), self.root, names, self.wnids)
    else:
      names, labels = _by_folder(self.root, self.wnids)
    empty = set(range(len(self.wnids))).difference(labels) if split == "train" else ()
    if empty:  # They may be there to keep the numbers of the others.
      logging.warning(
        "%d of %d classes have no images in %s (%s): complete them, unless they only "
        "keep the numbers of the others",
        len(empty), len(self.wnids), self.root, self.wnids[min(empty)],
      )  # fmt: skip
    self._names = listed.Strings(names)
    self._labels = np.array(labels, np.int32)  # [N]

  def __len__(self) -> int:
    return len(self._names)

  def label(self, index: int) -> str:
    """The name of an image's class."""
    return self.classes[self._labels[index]]

  caption = label

  def digest(self) -> str:
    """SHA-256 of name, size and class of every image, and of what classes are called.

    No image is read: of ImageNet's 1.28 million it takes as long as asking a file
    system for so many sizes, about ten seconds where that is a local one.
    """
    found, root = hashlib.sha256(), f"{self.root}{os.sep}"
    add = lambda *row: found.update("\0".join(row).encode("utf-8", "surrogatepass"))
    for wnid, called in zip(self.wnids, self.classes):
      add(wnid, called, "\n")
    for index, label in enumerate(self._labels.tolist()):
      name = self._names[index]
      try:
        size = os.stat(root + name).st_size
      except OSError:  # A link that leads nowhere: a bad example.
        size = -1
      add(name, str(size), str(label), "\n")
    return found.hexdigest()

  def __getitem__(self, index: int) -> dict[str, Any]:
    name = self._names[index]
    return {
      **listed.read_square(self.root, name, self.size, "it", self.crop),
      "caption": self.label(index),
      "id": self._first + int(index),
      "meta": {"file_name": name, "wnid": self.wnids[self._labels[index]]},
    }


def _entries(folder: pathlib.Path | str) -> list[os.DirEntry]:
  """What is in a folder, by name; nothing hidden."""
  try:
    with os.scandir(folder) as found:
      entries = [e for e in found if not e.name.startswith(".")]
  except OSError as e:
    raise ConfigError(
      f"{folder} cannot be read ({e.strerror}): config key 'data.source.path' must "
      "name a folder that has train/CLASS/*.JPEG and val"
    ) from e
  return sorted(entries, key=lambda e: e.name)


def _folders(folder: pathlib.Path) -> list[str]:
  return [e.name for e in _entries(folder) if e.is_dir()]


def _files(folder: pathlib.Path | str, below: str = "") -> Iterator[str]:
  """Images in a folder and in those within it, as paths in it."""
  for entry in _entries(folder):
    if entry.is_dir():
      yield from _files(entry.path, f"{below}{entry.name}/")
    elif os.path.splitext(entry.name)[1].lower() in images.ENDINGS:
      yield below + entry.name


def _by_folder(root: pathlib.Path, wnids: list[str]) -> tuple[list[str], list[int]]:
  """Images in folders of classes, and the number of each one's class."""
  if not wnids:
    raise ConfigError(
      f"{root} has no folders of classes: config key 'data.source.path' must name a "
      "folder that has train/CLASS/*.JPEG and val"
    )
  ids = {wnid: i for i, wnid in enumerate(wnids)}
  names, labels = [], []
  for wnid in _folders(root):
    if wnid not in ids:
      raise ConfigError(f"{root / wnid} is a class that train has not: remove it")
    found = list(_files(root / wnid, f"{wnid}/"))
    names += found
    labels += [ids[wnid]] * len(found)
  return names, labels


def _beside(names: Iterable[str], *folders: pathlib.Path) -> pathlib.Path | None:
  """The first file that there is."""
  paths = [folder / name for name in names for folder in folders]
  return next((p for p in paths if p.is_file()), None)


def _rows(path: pathlib.Path) -> list[str]:
  try:
    return [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
  except (OSError, UnicodeDecodeError) as e:
    raise ConfigError(f"{path} cannot be read: {config.one_line(e)}") from e


def _class_names(path: pathlib.Path | None, wnids: list[str]) -> list[str]:
  """Of a file of NAMES. ImageNet has two cranes: of such, names say the folder."""
  if not path:
    return wnids
  rows = [row.strip() for row in _rows(path)]
  # A comma ends a folder as in CSV; names have it with a space ("tench, Tinca tinca").
  first = {re.split(r"\s|,(?=\S)", row, maxsplit=1)[0]: row for row in rows}
  if first.keys() & set(wnids):
    rows = [first.get(wnid, "").removeprefix(wnid) for wnid in wnids]
    rows = [row.strip(" \t,") or wnid for row, wnid in zip(rows, wnids)]
  elif all(w.isdecimal() for w in wnids) and wnids != sorted(wnids, key=int):
    raise ConfigError(
      f"{path} has names alone, and the order of train's folders is that of text "
      f"({', '.join(wnids[:3])}), where 10 is before 2: begin each line with its folder"
    )
  if len(rows) != len(wnids):
    raise ConfigError(
      f"{path} names {len(rows)} classes, but train has folders of {len(wnids)}: write "
      "a line of each, a folder and its name"
    )
  count = collections.Counter(rows)
  return [n if count[n] == 1 else f"{n} ({wnid})" for n, wnid in zip(rows, wnids)]


def _labels(
  path: pathlib.Path | None,
  root: pathlib.Path,
  names: Sequence[str],
  wnids: list[str],
) -> list[int]:
  """The number of each file's class, by a file of LABELS."""
  if not path:
    raise ConfigError(
      f"{root} has no folders of train's classes, and nothing beside says the classes "
      f"of its images: add one of {', '.join(LABELS)}"
    )
  known = set(wnids)
  rows = [_said(row, known) for row in _rows(path)]
  if all(len(row) == 1 for row in rows):
    found = [row[0] for row in rows]
    if len(found) != len(names):
      raise ConfigError(
        f"{path} has classes of {len(found)} images, but {root} has {len(names)}: "
        "complete the images"
      )
    if not set(found) <= known and all(f.isdigit() for f in found):
      synsets = _synsets(path.with_name("meta.mat"))
      found = [synsets.get(int(f), f) for f in found]
  else:
    by_file = {os.path.basename(row[0]): row[1] for row in rows if len(row) > 1}
    found = []
    for name in map(os.path.basename, names):
      stem = os.path.splitext(name)[0]
      if not (wnid := by_file.get(name) or by_file.get(stem)):
        raise ConfigError(f"{path} does not say the class of {root / name}")
      found.append(wnid)
  ids = {wnid: i for i, wnid in enumerate(wnids)}
  if unknown := set(found) - ids.keys():
    raise ConfigError(f"{path} names class {min(unknown)}, which train has not")
  return [ids[wnid] for wnid in found]


def _said(row: str, wnids: set[str]) -> list[str]:
  """Of a line: a file and its class, or a class alone; both may have spaces."""
  parts = [part.strip(' "') for part in re.split(r"[,\t]", row)][:2]
  if parts[-1] in wnids:
    return parts
  # Kaggle's lines go on with boxes.
  return re.findall(r'[^\s,"]+', row)[:2]


def _synsets(path: pathlib.Path) -> dict[int, str]:
  """Folders by the development kit's numbers, which are not in the order of folders."""
  from scipy import io

  try:
    found = io.loadmat(path, squeeze_me=True)["synsets"]
    return {int(i): str(w) for i, w in zip(found["ILSVRC2012_ID"], found["WNID"])}
  except Exception as e:  # Of a damaged file, SciPy raises whatever it meets.
    raise ConfigError(
      f"the numbers of classes are the development kit's, which {path} has to "
      f"explain, but cannot ({config.one_line(e)}): add the kit's"
    ) from e
