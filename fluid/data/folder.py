"""Images in a folder, with captions in a file beside them (HF's imagefolder).

FOLDER/SPLIT/metadata.*, or one FOLDER/metadata.* that is split here by a hash of the
file name. It is metadata.jsonl with lines {"file_name": "a/b.png", "text": "caption"},
metadata.csv or metadata.parquet with such columns. A caption may be a list of several;
what else a line holds goes to meta.
"""

import array
import csv
import dataclasses
import json
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any

from fluid import config
from fluid.config import ConfigError
from fluid.data import BadExample, is_text, listed
from fluid.data.listed import VAL_EVERY, VAL_IDS


@dataclasses.dataclass(frozen=True)
class FolderConfig(listed.Cropped):
  """Your own images.

  Attributes:
    path: of the folder.
    file_key: of a line, what names its image (a path within the folder).
    caption_key: of a line, its caption or its list of captions.
  """

  kind = "folder"

  path: str = ""
  file_key: str = "file_name"
  caption_key: str = config.said("text")

  def make(self, *, split: str, image_size: int, seed: int = 0) -> "Folder":
    """The source of a split."""
    del seed  # Nothing here is random.
    return Folder(self, split=split, image_size=image_size)


class Folder:
  """Images cut to their central square and resized; transparency becomes white.

  A line without a caption or an image that can be used keeps its index: the example is
  bad, and its caption ''.
  """

  def __init__(self, wanted: FolderConfig, *, split: str, image_size: int):
    if not wanted.path:
      raise ConfigError("source 'folder' needs config key 'data.source.path'")
    self.size, self.crop = image_size, wanted.crop
    self.file_key, self.caption_key = wanted.file_key, wanted.caption_key
    root = pathlib.Path(wanted.path)
    own = _metadata(root / split)
    if split not in ("train", "val") and not own:
      raise ConfigError(f"{root} has no split '{split}': add {split}/metadata.jsonl")
    # One file for all would hold out, or train on, what the other split has already.
    if not own and (
      other := _metadata(root / ("val" if split == "train" else "train"))
    ):
      raise ConfigError(
        f"{other} is there, but no such file in {root / split}: give each of train and "
        f"val its own in folders of these names, or let one in {root} say all"
      )
    file = own or _metadata(root)
    if not file:
      raise ConfigError(
        f"no {root / 'metadata.jsonl'}: config key 'data.source.path' must name a "
        'folder with images and a metadata.jsonl of lines {"file_name": ..., "text": '
        "...}, or a metadata.csv or .parquet with such columns"
      )
    self.file, self.root = file, file.parent
    self._first = VAL_IDS if own and split == "val" else 0
    self._numbers = array.array("q")  # Of this split's rows in the file.
    self._rows = listed.Strings(self._lines(None if own else split == "val"))

  def __len__(self) -> int:
    return len(self._rows)

  def caption(self, index: int) -> str:
    """The first caption, without the image."""
    return next(iter(self.captions(index)), "")

  def captions(self, index: int) -> list[str]:
    """All captions, without the image; none where they cannot be used."""
    return self._captions(json.loads(self._rows[index]))

  def __getitem__(self, index: int) -> dict[str, Any]:
    row = json.loads(self._rows[index])
    number = self._numbers[index]
    name, captions = row.get(self.file_key), self._captions(row)
    where = f"row {number + 1} of {self.file}"
    if not isinstance(name, str):
      raise BadExample(
        f"{where} has '{self.file_key}' {name!r}: name its image, or remove the row"
      )
    if not captions:
      raise BadExample(
        f"{where} ({name}) has '{self.caption_key}' {row.get(self.caption_key)!r}: "
        "write its caption, or remove the row",
        "caption",
      )
    return {
      **listed.read_square(self.root, name, self.size, where, self.crop),
      "caption": captions[0],
      "captions": captions,
      "id": self._first + number,
      "meta": {k: v for k, v in row.items() if k != self.caption_key},
    }

  def _captions(self, row: dict[str, Any]) -> list[str]:
    """Of a list, blank ones are left out; anything that is no text spoils it."""
    found = row.get(self.caption_key)
    found = found if isinstance(found, list) else [found]
    found = [c for c in found if c is not None]
    if not all(map(is_text, found)):
      return []
    return [c for c in found if c.strip()]

  def _lines(self, val: bool | None) -> Iterator[str]:
    """Rows as JSON: all, or those that are, or are not, validation."""
    keys: dict[str, None] = {}
    for number, row in enumerate(_READERS[self.file.suffix](self.file)):
      keys.update(dict.fromkeys(row))
      name = row.get(self.file_key)
      hashed = name if isinstance(name, str) else str(number)
      is_val = zlib.crc32(hashed.encode("utf-8", "surrogatepass")) % VAL_EVERY == 0
      if val is None or is_val == val:
        self._numbers.append(number)
        yield json.dumps(row, ensure_ascii=False, default=_plain)
    for field in ("file_key", "caption_key") if keys else ():
      if (key := getattr(self, field)) not in keys:
        raise ConfigError(
          f"{self.file} has no '{key}'; it has {', '.join(keys)}: set config keys "
          "'data.source.file_key' and 'data.source.caption_key'"
        )


def _metadata(folder: pathlib.Path) -> pathlib.Path | None:
  """The file of captions in a folder; of several, the first of _READERS."""
  paths = [folder / f"metadata{suffix}" for suffix in _READERS]
  return next((p for p in paths if p.is_file()), None)


def _jsonl(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  for number, line in enumerate(_text(path), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      row = None
    if not isinstance(row, dict):
      raise ConfigError(
        f'{path} line {number} is not {{"file_name": ..., "text": ...}}'
      )
    yield row


def _csv(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  rows = csv.DictReader(_text(path), strict=True)
  try:
    for row in rows:
      if None in row:  # What has no column: a caption would be read in part.
        raise ConfigError(
          f"{path} line {rows.reader.line_num} has more values than the header: put "
          'captions with commas in quotes ("...")'
        )
      yield row
  except csv.Error as e:
    raise ConfigError(f"{path} line {rows.reader.line_num} is no CSV: {e}") from e


def _text(path: pathlib.Path) -> Iterator[str]:
  """Lines with their ends, which may be within a value; of UTF-8, marked or not."""
  try:
    with open(path, encoding="utf-8-sig", newline="") as f:
      yield from f
  except OSError as e:
    raise ConfigError(f"{path} cannot be read: {e.strerror}") from e
  except UnicodeDecodeError as e:
    raise ConfigError(f"{path} is not UTF-8 ({e.reason}): save it as that") from e


def _parquet(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as e:
    raise ConfigError(f"{path} needs a package: pip install pyarrow") from e
  try:
    with parquet.ParquetFile(path) as file:
      for batch in file.iter_batches(batch_size=4096):
        yield from batch.to_pylist()
  except (OSError, pyarrow.ArrowException) as e:
    raise ConfigError(f"{path} is no Parquet file: {config.one_line(e)}") from e
  except (ValueError, OverflowError) as e:
    raise ConfigError(
      f"{path} has a value that cannot be read ({config.one_line(e)}): texts must be "
      "UTF-8, dates of our era; write it again, or without that column"
    ) from e


def _plain(value: Any) -> str | None:
  """Of Parquet's other types: dates as text, no bytes."""
  return None if isinstance(value, bytes) else str(value)


_READERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
