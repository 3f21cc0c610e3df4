"""Tar shards of images and captions, as webdataset and img2dataset write them.

A sample is what lies side by side in a tar under one name: KEY.jpg (or another kind of
image), with its caption in KEY.txt or in KEY.json, whose other fields go to meta, or
with the number of its class in KEY.cls, as tars of ImageNet have it. KEY ends at the
first dot of the file name, so KEY.seg.png is something else. What lies beside the tars
is not read.

A tar is opened anywhere once it is known where samples begin: that is found by reading
all its headers, once (a million files take about half a minute), and kept in a file
where config key 'index' names a folder.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import tarfile
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from fluid import config
from fluid import files as files_lib
from fluid.config import ConfigError
from fluid.console.progress import Progress
from fluid.data import BadExample, images, listed, stored
from fluid.data.listed import VAL_EVERY, VAL_IDS
from fluid.errors import raise_passing

_VERSION = 2  # Of the files of an index.
# KEY.ENDING; hidden files have no key. Files such as __key__ are the library's own.
_NAME = re.compile(r"(?!__[^/]*__(?:$|/))((?:.*/)?[^./][^./]*)\.([^/]*)")
_BLOCK = 512
_TAIL = 1 << 20  # Zeros that a writer may leave at the end, far above tar's 10 KiB.


@dataclasses.dataclass(frozen=True)
class WebDatasetConfig(listed.Cropped):
  """Tar shards.

  Attributes:
    train: the tars, as 'data/{00000..00331}.tar' or 'data/*.tar'.
    val: tars of the split val; without, it is one sample in 20 of train, by its key.
    caption: field of KEY.json with the caption or a list of them ('': KEY.txt, or
      without one the field 'caption').
    label: where the number of an image's class is: 'cls' (KEY.cls) or a field of
      KEY.json ('': there are none). Without a `caption` their names are the captions.
    classes: how many there are, which no tar says; they are named by their numbers.
    index: folder to keep the places of samples in ('': found again at each start).
  """

  kind = "webdataset"

  train: str = ""
  val: str = ""
  caption: str = config.said("")
  label: str = config.added("", "said")
  classes: int = config.added(0, "said")
  index: str = config.place()

  def check(self, name):
    super().check(name)
    if bool(self.label) != bool(self.classes):
      raise ConfigError(
        f"config keys '{name}label' and '{name}classes' go together (a place and a "
        f"number), not {self.label!r} and {self.classes}"
      )

  def make(self, *, split: str, image_size: int, seed: int = 0) -> "WebDataset":
    """The source of a split."""
    del seed  # Nothing here is random.
    return WebDataset(self, split=split, image_size=image_size)


class Index(NamedTuple):
  """Where samples lie in tars.

  Attributes:
    bounds: int64 [N + P] of P tars after one another: where each of its samples begins,
      and where the last one ends.
    first: int64 [P + 1], number of each tar's first sample.
    keys: uint32 [N], CRC-32 of each KEY.
  """

  bounds: np.ndarray
  first: np.ndarray
  keys: np.ndarray


class WebDataset(stored.Stored):
  """Samples in the order of tars, and in these as they lie."""

  def __init__(self, wanted: WebDatasetConfig, *, split: str, image_size: int):
    stored.check_split("webdataset", split)
    key, self.paths = stored.split_files(wanted, split, ".tar")
    stats = [os.stat(path) for path in self.paths]
    stamps = tuple((_VERSION, s.st_size, s.st_mtime_ns) for s in stats)
    self._index = _index(tuple(self.paths), stamps, wanted.index)
    held_out = self._index.keys % VAL_EVERY == 0
    super().__init__(
      f"split '{split}' of {getattr(wanted, key)}",
      image_size=image_size,
      crop=wanted.crop,
      total=len(held_out),
      first=VAL_IDS if key == "val" else 0,
      rows=None if wanted.val else stored.share(held_out, split),
    )
    self._field, self._label = wanted.caption, wanted.label
    self.captioned = bool(self._field) or not self._label
    self.classes = [str(n) for n in range(wanted.classes)]

  def _row(self, place, *, image):
    tar = int(np.searchsorted(self._index.first, place, side="right")) - 1
    start, end = self._index.bounds[place + tar : place + tar + 2].tolist()
    path = self.paths[tar]
    try:
      key, found = _read(path, start, end, image)
    except (tarfile.TarError, OSError, MemoryError, ValueError) as e:
      raise_passing(e, path)
      raise BadExample(f"the sample at byte {start} of {path} is damaged ({e})") from e
    where = f"sample '{key}' of {path}"
    if "image" not in found:
      raise BadExample(f"{where} has no image, only {', '.join(found)}")
    meta = _fields(found["json"], where) if "json" in found else {}
    label = found.get("cls") if self._label == "cls" else meta.get(self._label)
    caption = meta.pop(self._field or "caption", None)
    if not self._field:
      caption = found.get("txt") or caption
    if caption is None and self.captioned:
      raise BadExample(
        f"{where} has no caption: it has {', '.join(found)}, with fields "
        f"{', '.join(meta) or 'none'} (config key 'data.source.caption', or 'label')",
        "caption",
      )
    content = found["image"] if image else None
    meta = {"key": key} | meta
    return stored.Row(where, content, caption, _number(label), meta)


def _number(said: Any) -> int | None:
  try:
    return int(said)
  except (TypeError, ValueError, OverflowError):
    return None


def _fields(content: bytes, where: str) -> dict[str, Any]:
  try:
    found = json.loads(content)
  except (ValueError, RecursionError) as e:
    raise BadExample(f"the json of {where} is damaged ({e})", "caption") from e
  if not isinstance(found, dict):
    raise BadExample(f"the json of {where} is no object", "caption")
  return found


def _read(path: str, start: int, end: int, image: bool) -> tuple[str, dict[str, bytes]]:
  """KEY and parts of a sample at bytes [start, end): 'image', 'txt', 'json', 'cls'.

  Of a kind that is there twice, the first counts. Of others there is the name alone,
  as of the image if it is not wanted.
  """
  key, found = "", {}
  with open(path, "rb") as f:
    f.seek(start)
    tar = tarfile.open(fileobj=f, mode="r:")
    while (member := tar.next()) is not None:
      if name := _name(member):
        key, ending = name
        part = "image" if f".{ending}" in images.ENDINGS else ending
        if part not in found:
          wanted = part in ("txt", "json", "cls") or image and part == "image"
          found[part] = _content(f, member) if wanted else b""
      if tar.offset >= end:
        break
  return key, found


def _content(f, member: tarfile.TarInfo) -> bytes:
  f.seek(member.offset_data)
  content = f.read(member.size)
  if len(content) < member.size:
    raise ValueError(f"{member.name} ends after {len(content)} of {member.size} bytes")
  return content


def _name(member: tarfile.TarInfo) -> tuple[str, str] | None:
  """KEY and ending of a file, in lower case; None for what is no part of a sample."""
  found = _NAME.fullmatch(member.name) if member.isreg() else None
  return (found[1], found[2].lower()) if found else None


@functools.lru_cache(2)
def _index(paths: tuple[str, ...], stamps: tuple, folder: str) -> Index:
  """Index of all tars; the splits of one set share it."""
  progress = Progress("index", len(paths), "shards", logging.warning)
  bounds, keys, damaged = [], [], []
  for path, stamp in zip(paths, stamps):
    found = _kept(path, stamp, folder) if folder else _scan(path)
    bounds.append(found[0])
    keys.append(found[1])
    if found[2]:
      damaged.append(f"{path} ({found[2]})")
    progress.add()
  if damaged:
    logging.warning(
      "%d of %d shards are damaged; they are used up to the damage, and nobody knows "
      "how many samples are lost: %s",
      len(damaged),
      len(paths),
      ", ".join(damaged[:3]) + (", ..." if len(damaged) > 3 else ""),
    )
  first = np.cumsum([0] + [len(k) for k in keys])
  return Index(np.concatenate(bounds), first, np.concatenate(keys))


def _kept(path: str, stamp: tuple, folder: str) -> tuple[np.ndarray, np.ndarray, str]:
  """As `_scan`, from a file of the index, which is written where it is not there."""
  own = zlib.crc32(os.path.abspath(path).encode())
  file = pathlib.Path(folder) / f"{pathlib.Path(path).stem}-{own:08x}.npz"
  try:
    with np.load(file) as found:
      if tuple(found["stamp"].tolist()) == stamp:
        return found["bounds"], found["keys"], str(found["damage"])
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    pass  # Not there, or torn: it is made anew.
  bounds, keys, damage = _scan(path)
  with files_lib.replacing(file) as scratch, open(scratch, "wb") as f:
    np.savez(f, stamp=np.array(stamp), bounds=bounds, keys=keys, damage=damage)
  return bounds, keys, damage


def _scan(path: str) -> tuple[np.ndarray, np.ndarray, str]:
  """Reads the headers of a tar.

  Returns:
    Bounds int64 [N + 1], keys uint32 [N] (see Index), and what is wrong with the tar:
    '' where it is whole. Samples that it cuts short are among the N.

  Raises:
    ConfigError: it is no tar at all.
  """
  bounds: list[int] = []
  keys: list[int] = []
  key, damage = "", ""
  endings: set[str] = set()
  with open(path, "rb") as f:
    try:
      tar = tarfile.open(fileobj=f, mode="r:")
    except tarfile.TarError as e:
      raise ConfigError(
        f"shard {path} is no tar, or a compressed one ({e}): unpack it, fetch it again "
        "or leave it out in config key 'data.source'"
      ) from e
    try:
      while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # Else it keeps them all.
        if not (name := _name(member)):
          continue
        # A file that the sample has already belongs to another of the same key.
        if name[0] != key or name[1] in endings:
          key, endings = name[0], set()
          bounds.append(member.offset)
          # Where a name is no UTF-8, its bytes as they are.
          keys.append(zlib.crc32(key.encode("utf-8", "surrogateescape")))
        endings.add(name[1])
      end = tar.offset
      damage = _unfinished(f, end)
    except (tarfile.TarError, ValueError) as e:
      damage, end = str(e), os.path.getsize(path)
  return np.array([*bounds, end]), np.array(keys, np.uint32), damage


def _unfinished(f, end: int) -> str:
  """What is wrong after the last header that was found; '' for nothing.

  tarfile takes a header that it cannot read, and a block of zeros, for the end.
  """
  f.seek(end)
  rest = f.read(_TAIL)
  if len(rest) < _BLOCK:
    return f"it ends at byte {end + len(rest)} without the mark of an end"
  if rest.strip(b"\0") or len(rest) == _TAIL:
    return f"no header at byte {end}, where more follows"
  return ""
