"""Cached tokens on disk: a folder of ArrayRecord shards and a metadata.json.

fluid.data.packing says what a record is.

N records, L tokens, C channels, T text tokens, E width of features.
"""

import base64
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from array_record.python import array_record_module

from fluid import files
from fluid.config import ConfigError
from fluid.data.packing import KINDS, corrupt, decode
from fluid.data.rows import Columns, Draw, Layout, drawn
from fluid.errors import raise_passing

METADATA = "metadata.json"
SHARD = ".array_record"  # How names of shards end.
# Random access wants every record in a chunk of its own.
_WRITER = "group_size:1"
_READER = "readahead_buffer_size:0"
_PART = 128  # Records of a shard that are read at once.


class RecordError(ConfigError):
  """Records that are missing or damaged; the message names file and remedy."""


def shard_path(cache: str | os.PathLike, split: str, index: int) -> pathlib.Path:
  return pathlib.Path(cache) / f"{split}-{index:05d}{SHARD}"


def write_shard(path: pathlib.Path, records: Iterable[bytes]) -> None:
  """Writes a whole shard; it has its final name only once it is complete."""
  with files.replacing(path) as scratch:
    writer = array_record_module.ArrayRecordWriter(str(scratch), _WRITER)
    for record in records:
      writer.write(record)
    writer.close()


def read_shard(path: pathlib.Path) -> Iterator[bytes]:
  """All records of one file, a few held at a time; a damaged one -> RecordError."""
  try:
    reader = array_record_module.ArrayRecordReader(str(path), options=_READER)
    count = _count(reader)
    for start in range(0, count, _PART):
      yield from reader.read(list(range(start, min(start + _PART, count))))
  except RuntimeError as e:
    raise_passing(e, path)
    raise _damaged(path, e) from e


def write_metadata(cache: str | os.PathLike, metadata: dict[str, Any]) -> None:
  content = json.dumps(metadata, indent=2, sort_keys=True) + "\n"
  files.write_text(pathlib.Path(cache) / METADATA, content)


def read_metadata(cache: str | os.PathLike) -> dict[str, Any]:
  """metadata.json of a cache; missing or damaged -> RecordError."""
  path = pathlib.Path(cache) / METADATA
  if not str(cache):
    raise RecordError(
      "config key 'data.cache' is empty: name the folder of cached tokens that "
      "python -m fluid.prepare writes"
    )
  try:
    return json.loads(path.read_text("utf-8"))
  except OSError as e:
    raise RecordError(
      f"no cached tokens in {cache} ({METADATA} is missing): run python -m "
      f"fluid.prepare --config.data.cache={cache}"
    ) from e
  except ValueError as e:
    raise RecordError(
      f"{path} is damaged: remove {cache} and run python -m fluid.prepare again"
    ) from e


def fingerprint(metadata: dict[str, Any]) -> str:
  """Of what a cache holds, wherever it lies: its config and its files."""
  content = {k: metadata.get(k) for k in ("config", "tokens", "splits")}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def bitmap(rows: np.ndarray) -> str:
  """Bools [N] -> text for metadata.json."""
  return base64.b64encode(np.packbits(rows).tobytes()).decode()


def from_bitmap(text: str, n: int) -> np.ndarray:
  """What `bitmap` had: bools [n]."""
  bits = np.frombuffer(base64.b64decode(text), np.uint8)
  return np.unpackbits(bits, count=n).astype(bool)


class Records:
  """Random access to a split, checked against metadata.json when it is opened.

  Sets below `memory` bytes are decoded into arrays once, when the first batch is
  gathered; then a batch costs one indexing operation per array. Pickling (for worker
  processes) leaves those arrays behind.

  Attributes:
    metadata: content of metadata.json.
    layout: what it says of the records.
  """

  def __init__(self, cache: str | os.PathLike, split: str, *, memory: int = 1 << 30):
    self.cache = pathlib.Path(cache)
    self.metadata = read_metadata(cache)
    splits = self.metadata.get("splits", {})
    if split not in splits:
      done = ", ".join(splits) or "none"
      raise RecordError(
        f"split '{split}' is not in {cache} (complete: {done}): run python -m "
        f"fluid.prepare --config.data.cache={cache}"
      )
    self.layout = Layout.of(self.metadata, split)
    self.shards: list[dict[str, Any]] = splits[split]["shards"]
    self._starts = np.cumsum([0] + [s["records"] for s in self.shards])
    self._readers: dict[int, Any] = {}
    self._columns: Columns | None = None
    self._memory = memory
    for shard in self.shards:
      path = self.cache / shard["name"]
      size = path.stat().st_size if path.is_file() else None
      if size != shard["bytes"]:
        found = "is missing" if size is None else f"has {size} bytes"
        raise _damaged(path, f"{found}, {shard['bytes']} were written")

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, index: int) -> dict[str, Any]:
    """One example with everything stored: id, caption, text_ids, meta, arrays."""
    if not 0 <= index < len(self):
      raise IndexError(f"record {index} of {len(self)}")
    if damage := self.damage(index):
      raise RecordError(damage)
    example = self._read([index])[0]
    return dict(example, meta=json.loads(example["meta"]))

  @functools.cached_property
  def usable(self) -> np.ndarray | None:
    """Indices [M] int32 of what was not left out; None: nothing was."""
    if not any("unused" in shard for shard in self.shards):
      return None
    unused = np.zeros(len(self), bool)
    for start, shard in zip(self._starts.tolist(), self.shards):
      if "unused" in shard:
        n = shard["records"]
        unused[start : start + n] = from_bitmap(shard["unused"], n)
    return np.flatnonzero(~unused).astype(np.int32)

  def gather(self, indices: np.ndarray, draw: Draw = None) -> dict[str, np.ndarray]:
    """Rows for training, in the order asked for.

    Args:
      draw: see fluid.data.rows; None: the first caption, the image as it is.

    Returns:
      id [N] int32, text [N, T] int32 padded with 0, text_mask [N, T] bool, tokens
      [N, L] or mean and std [N, L, C] as they are stored, and bad [N] int8: 0, or 1 +
      the place in KINDS of what is wrong with a row, which then holds zeros and id -1.
    """
    if self._columns is None and self._size() <= self._memory:
      self._columns = Columns.of(self._read(range(len(self))), self.layout)
    if self._columns is not None:
      return self._columns.draw(indices, draw)
    # Padding what is not drawn would cost as much as what is.
    return drawn(self._read(indices), self.layout, draw)

  def damage(self, index: int) -> str:
    """What is wrong with a record, its file and its key; '' if nothing is."""
    example = self._read([index])[0]
    found = Columns.of([example], self.layout)
    kinds = np.concatenate([part["bad"].ravel() for part in found])
    if not kinds.any():
      return ""
    kind = KINDS[int(kinds[kinds > 0][0]) - 1]
    shard = int(np.searchsorted(self._starts, index, side="right")) - 1
    path = self.cache / self.shards[shard]["name"]
    why = f" ({example['why']})" if example.get("why") else ""
    return (
      f"{kind}{why} in record {index - self._starts[shard]} of {path}, "
      f"id {example.get('id', 'unknown')}"
    )

  def _size(self) -> int:
    """Bytes, about: of files, or of padded texts where these are more."""
    stored = sum(s["bytes"] for s in self.shards)
    return max(len(self) * self.layout.text_bytes, stored)

  def _read(self, indices: Iterable[int]) -> list[dict[str, Any]]:
    """Decoded records in the order of `indices`, one read per shard.

    One that cannot be used has a 'bad'; of one that cannot be decoded there is no more.
    """
    indices = np.asarray(indices, np.int64)
    owner = np.searchsorted(self._starts, indices, side="right") - 1
    out: list[Any] = [None] * len(indices)
    for shard in np.unique(owner).tolist():
      rows = np.flatnonzero(owner == shard).tolist()
      positions = (indices[rows] - self._starts[shard]).tolist()
      reader = self._reader(shard)
      try:
        found = reader.read(positions)
      except (RuntimeError, IndexError):
        # One of them is damaged, or the file system is away.
        path = self.cache / self.shards[shard]["name"]
        found = [_read_one(reader, i, path) for i in positions]
      for row, record in zip(rows, found):
        example = record if isinstance(record, dict) else decode(record)
        fault = self.layout.fault(example)
        out[row] = example | {"bad": fault} if fault else example
    return out

  def _reader(self, shard: int):
    path = self.cache / self.shards[shard]["name"]
    if shard not in self._readers:
      try:
        reader = array_record_module.ArrayRecordReader(
          str(path), options=_READER, file_reader_buffer_size=32768
        )
        if (count := _count(reader)) != self.shards[shard]["records"]:
          raise IndexError(f"{count} records")
      except (RuntimeError, IndexError, ValueError) as e:
        raise_passing(e, path)
        raise _damaged(path, e) from e
      self._readers[shard] = reader
    return self._readers[shard]

  def __getstate__(self):
    return self.__dict__ | {"_readers": {}, "_columns": None}


def _count(reader) -> int:
  """Records of a file. One that cannot be opened says so when it is first read."""
  if not (count := reader.num_records()):  # Also where its end is cut off.
    reader.read([0])
    raise RuntimeError("it holds no records")
  return count


def _read_one(reader, position: int, path: pathlib.Path) -> bytes | dict:
  try:
    return reader.read([position])[0]
  except (RuntimeError, IndexError) as e:
    raise_passing(e, path)
    return corrupt(e)


def _damaged(path: pathlib.Path, reason: Exception | str) -> RecordError:
  return RecordError(
    f"record file {path} is damaged ({str(reason).split(';')[0]}): remove it and run "
    f"python -m fluid.prepare --config.data.cache={path.parent}, which writes it again"
  )
