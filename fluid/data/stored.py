"""What sources of images in large files share: names of files, splits, captions, ids.

Tar shards, Parquet and TFDS differ in how a row is found and read. What is asked of it,
and what is wrong with one, is the same.
"""

import dataclasses
import glob
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fluid.config import ConfigError
from fluid.data import BadExample, images, is_text
from fluid.data.listed import VAL_IDS

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
# Fields that a set is asked for where the config names none, in this order.
USUAL = {
  "image": ("image", "img", "jpg", "png"),
  "caption": ("caption", "captions", "text", "sentences"),
  "label": ("label",),
}


@dataclasses.dataclass
class Row:
  """An example as it is stored.

  Attributes:
    where: it lies, for messages.
    image: what its file holds, or its path; None where it was not asked for.
    captions: text or texts, as found (None: there are none).
    label: number of its class.
    meta: JSON-able.
  """

  where: str
  image: bytes | str | None
  captions: Any
  label: int | None
  meta: dict[str, Any]


class Stored:
  """Base of these sources; see fluid.data for what a source is.

  A subclass reads a Row (`_row`). `captions(i)` are all captions of an image, and
  `caption(i)` is the first. A set of labels alone is captioned by names of classes.

  Args:
    name: of the set, for messages.
    image_size: S.
    crop: entry of images.FITS.
    total: rows of all files, of which `rows` (None: all) are this split.
    first: id of row 0.

  Attributes:
    classes: names by label; empty without labels.
    captioned: captions are not just names of classes.
  """

  classes: Sequence[str] = ()
  captioned = True

  def __init__(
    self,
    name: str,
    *,
    image_size: int,
    crop: str,
    total: int,
    first: int = 0,
    rows: np.ndarray | None = None,
  ):
    self.name, self.size, self.crop = name, image_size, crop
    self._rows, self._first = rows, first
    self._length = total if rows is None else len(rows)
    if not self._length:
      raise ConfigError(f"{name} holds no examples")
    if total >= VAL_IDS:
      raise ConfigError(f"{name} holds {total} examples; ids go up to {VAL_IDS - 1}")

  def __len__(self) -> int:
    return self._length

  def captions(self, index: int) -> list[str]:
    """All captions of one example, without its image."""
    return self._captions(self._row(self._place(index), image=False))

  def caption(self, index: int) -> str:
    """The first caption of one example, without its image."""
    return self.captions(index)[0]

  def label(self, index: int) -> str:
    """Name of the class of one example, without its image."""
    return self._class(self._row(self._place(index), image=False))

  def __getitem__(self, index: int) -> dict[str, Any]:
    place = self._place(index)
    row = self._row(place, image=True)
    captions = self._captions(row)
    return {
      **_image(row, self.size, self.crop),
      "caption": captions[0],
      "captions": captions,
      "id": self._first + place,
      "meta": row.meta,
    }

  def _row(self, place: int, *, image: bool) -> Row:
    """Row `place` of all files; BadExample where it cannot be read."""
    raise NotImplementedError

  def _place(self, index: int) -> int:
    if not 0 <= index < self._length:
      raise IndexError(f"example {index} of {self._length}")
    return int(index if self._rows is None else self._rows[index])

  def _captions(self, row: Row) -> list[str]:
    return _texts(row) if self.captioned else [self._class(row)]

  def _class(self, row: Row) -> str:
    if not self.classes:
      raise ConfigError(f"{self.name} has no labels: see config key 'data.source'")
    if row.label is None or not 0 <= row.label < len(self.classes):
      raise BadExample(
        f"{row.where} has label {row.label}, of {len(self.classes)} classes", "caption"
      )
    return self.classes[row.label]


def _texts(row: Row) -> list[str]:
  """Captions as they are found -> those that say something."""
  found = row.captions
  found = found if isinstance(found, list | tuple | np.ndarray) else [found]
  try:
    texts = [t.decode("utf-8-sig") if isinstance(t, bytes) else t for t in found]
  except UnicodeDecodeError as e:
    raise BadExample(f"the caption of {row.where} is not UTF-8 ({e})", "caption") from e
  for text in texts:
    if text is not None and not is_text(text):
      raise BadExample(f"a caption of {row.where} is {text!r:.40}, no text", "caption")
  texts = [t.strip() for t in texts if t and t.strip()]
  if not texts:
    raise BadExample(f"{row.where} has no caption", "caption")
  return texts


def _image(row: Row, size: int, crop: str) -> dict[str, Any]:
  """'image' and 'size', as images.fitted."""
  if row.image is None:
    raise BadExample(f"{row.where} has no image")
  try:
    return images.fitted(row.image, size, crop)
  except FileNotFoundError as e:
    raise BadExample(f"image {row.image!r} of {row.where} is missing") from e
  except images.ImageError as e:
    raise BadExample(f"the image of {row.where} cannot be read ({e})") from e


def files(pattern: str, key: str, ending: str) -> list[str]:
  """Files that a pattern names.

  Braces ({0000..0099}, {a,b}) stand for each of their values in turn, and every file of
  theirs has to be there; the rest is a glob, in the order of names. Files of another
  ending are left out.

  Raises:
    ConfigError: naming the config key where nothing is found, or the file missing.
  """
  if not pattern:
    raise ConfigError(
      f"config key '{key}' is empty: name files, such as "
      f"'data/{{0000..0099}}{ending}' or 'data/train-*{ending}'"
    )
  found: list[str] = []
  for path in _expanded(os.path.expanduser(pattern)):
    if glob.has_magic(path):
      found += sorted(glob.glob(path, recursive=True))
    elif os.path.exists(path):
      found.append(path)
    else:
      raise ConfigError(f"config key '{key}' names {path}, which is missing")
  found = [path for path in found if path.lower().endswith(ending)]
  for path in found or [os.path.expanduser(pattern)]:
    if os.path.isdir(path):  # As Spark writes a table.
      raise ConfigError(
        f"config key '{key}' names {path}, which is a folder: name the files in it, "
        f"such as '{path}/*{ending}'"
      )
  if not found:
    raise ConfigError(f"config key '{key}' is '{pattern}', which fits no {ending} file")
  return found


def split_files(wanted: Any, split: str, ending: str) -> tuple[str, list[str]]:
  """Key of a config that names the files of a split, and these files.

  Without files of val's own, both splits are of those of train.

  Args:
    wanted: config with patterns `train` and `val`.

  Raises:
    ConfigError: as `files`, and where train would learn what val is to judge.
  """
  named = lambda key: files(getattr(wanted, key), f"data.source.{key}", ending)
  key = split if wanted.val else "train"
  found = named(key)
  # Here alone: who only judges may call any files val.
  if wanted.val and split == "train":
    val = set(map(os.path.realpath, named("val")))
    if both := [path for path in found if os.path.realpath(path) in val]:
      raise ConfigError(
        f"{both[0]} is of both splits (such files: {len(both)} of {len(found)}): let "
        "one of config keys 'data.source.train' and 'data.source.val' leave it out, or "
        "leave the latter empty, for a share of train"
      )
  return key, found


def _expanded(pattern: str) -> list[str]:
  found = _BRACES.search(pattern)
  if found is None:
    return [pattern]
  first, last, listed = found.groups()
  if listed is None:
    padded = [len(n) for n in (first, last) if n.startswith("0")]
    width = max(padded, default=1)
    options = [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
  else:
    options = listed.split(",")
  rests = _expanded(pattern[found.end() :])
  head = pattern[: found.start()]
  return [head + option + rest for option in options for rest in rests]


def check_split(kind: str, split: str) -> None:
  """Raises ConfigError for a split that these sources do not have."""
  if split not in ("train", "val"):
    raise ConfigError(f"source '{kind}' has no split '{split}'; it has train and val")


def fields(wanted: Any, usable: dict[str, list[str]], where: str) -> tuple[str, ...]:
  """Names of the fields that hold image, caption and label; '' where there is none.

  Those that the config names, else the first of USUAL that a set has with a type that
  fits.

  Args:
    wanted: config with fields image, caption and label ('' for none).
    usable: names with a type that fits, of each of the three.
    where: the set and all its fields, for the message.

  Raises:
    ConfigError: a field is named that cannot be used, there is no image, or nothing
      that is said of it.
  """
  out = []
  for kind, usual in USUAL.items():
    name, fit = getattr(wanted, kind), usable[kind]
    if name and name not in fit:
      raise ConfigError(
        f"config key 'data.source.{kind}' is '{name}', but {where}; of a type that "
        f"fits: {', '.join(fit) or 'none'}"
      )
    out.append(name or next((u for u in usual if u in fit), ""))
  if not out[0]:
    raise ConfigError(f"{where}: name that of images in config key 'data.source.image'")
  if not any(out[1:]):
    raise ConfigError(
      f"{where}: name that of captions or classes in config key 'data.source.caption' "
      "or 'data.source.label'"
    )
  return tuple(out)


def class_names(names: Iterable[str]) -> list[str]:
  """Names of classes, each on one line, and no two alike: ImageNet has two cranes.

  A name that was there before gets its number: 'crane (517)'.
  """
  out: list[str] = []
  seen: set[str] = set()
  for number, name in enumerate(names):
    name = " ".join(str(name).split()) or str(number)
    name = f"{name} ({number})" if name in seen else name
    seen.add(name)
    out.append(name)
  return out


def share(held_out: np.ndarray, split: str) -> np.ndarray:
  """Rows [M] int32 of a split, of a set whose rows [N] are held out for val or not."""
  return np.flatnonzero(held_out == (split == "val")).astype(np.int32)
