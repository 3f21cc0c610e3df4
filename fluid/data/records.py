"""Cached tokens on disk: a folder of ArrayRecord shards and a metadata.json.

A record is a msgpack map: id, caption, text_ids (unpadded, with EOS), meta (as JSON,
decoded only when asked for), and arrays as [dtype, shape, bytes]: `tokens` for discrete
tokens, `mean` and `std` for continuous ones.

N records, L tokens, C channels, T text tokens.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module

from fluid.config import ConfigError

METADATA = "metadata.json"
ARRAYS = ("tokens", "mean", "std")
# Random access wants every record in a chunk of its own.
_WRITER = "group_size:1"
_READER = "readahead_buffer_size:0"


class RecordError(ConfigError):
  """Records that are missing or damaged; the message names file and remedy."""


def shard_path(cache: str | os.PathLike, split: str, index: int) -> pathlib.Path:
  return pathlib.Path(cache) / f"{split}-{index:05d}.array_record"


def pack(example: dict[str, Any]) -> bytes:
  """Example -> record."""
  record = dict(example, meta=json.dumps(example["meta"], sort_keys=True))
  for name in ARRAYS:
    if name in record:
      array = np.ascontiguousarray(record[name])
      record[name] = (array.dtype.str, array.shape, array.tobytes())
  return msgpack.packb(record)


def unpack(record: bytes) -> dict[str, Any]:
  """Record -> example; arrays are read-only views, meta stays JSON."""
  example = msgpack.unpackb(record)
  for name in ARRAYS:
    if name in example:
      dtype, shape, data = example[name]
      example[name] = np.frombuffer(data, dtype).reshape(shape)
  return example


def write_shard(path: pathlib.Path, records: Iterable[bytes]) -> None:
  """Writes a whole shard; it has its final name only once it is complete."""
  part = path.with_name(path.name + ".part")
  writer = array_record_module.ArrayRecordWriter(str(part), _WRITER)
  for record in records:
    writer.write(record)
  writer.close()
  _publish(part, path)


def read_shard(path: pathlib.Path) -> list[bytes]:
  """All records of one file; a damaged one -> RecordError."""
  try:
    return array_record_module.ArrayRecordReader(str(path), options=_READER).read_all()
  except RuntimeError as e:
    raise _damaged(path, e) from e


def write_metadata(cache: str | os.PathLike, metadata: dict[str, Any]) -> None:
  path = pathlib.Path(cache) / METADATA
  part = path.with_name(path.name + ".part")
  part.write_text(json.dumps(metadata, indent=2, sort_keys=True) + "\n", "utf-8")
  _publish(part, path)


def _publish(part: pathlib.Path, path: pathlib.Path) -> None:
  with open(part, "rb+") as f:
    os.fsync(f.fileno())
  os.replace(part, path)


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


class Records:
  """Random access to a split, checked against metadata.json when it is opened.

  Sets below `memory` bytes are decoded into arrays once, when the first batch is
  gathered; then a batch costs one indexing operation per array. Pickling (for worker
  processes) leaves those arrays behind.

  Attributes:
    metadata: content of metadata.json.
    text_length: T of the cache, the longest a text can be.
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
    self.text_length: int = self.metadata["text"]["length"]
    self.shards: list[dict[str, Any]] = splits[split]["shards"]
    self._starts = np.cumsum([0] + [s["records"] for s in self.shards])
    self._readers: dict[int, Any] = {}
    self._columns: dict[str, np.ndarray] | None = None
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
    example = self._read([index])[0]
    return dict(example, meta=json.loads(example["meta"]))

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Rows for training, in the order asked for.

    Returns:
      id [N] int32, text [N, T] int32 padded with 0, text_mask [N, T] bool, and tokens
      [N, L] or mean and std [N, L, C] as they are stored.
    """
    if self._columns is None and sum(s["bytes"] for s in self.shards) <= self._memory:
      self._columns = self._stack(self._read(range(len(self))))
    if self._columns is not None:
      return {name: column[indices] for name, column in self._columns.items()}
    return self._stack(self._read(indices))

  def _stack(self, examples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    text = np.zeros((len(examples), self.text_length), np.int32)
    mask = np.zeros(text.shape, bool)
    for row, example in enumerate(examples):
      ids = example["text_ids"]
      text[row, : len(ids)] = ids
      mask[row, : len(ids)] = True
    rows = {"id": np.array([e["id"] for e in examples], np.int32)}
    rows |= {"text": text, "text_mask": mask}
    for name in ARRAYS:
      if examples and name in examples[0]:
        rows[name] = np.stack([e[name] for e in examples])
    return rows

  def _read(self, indices: Iterable[int]) -> list[dict[str, Any]]:
    """Decoded records in the order of `indices`, one read per shard."""
    indices = np.asarray(indices, np.int64)
    owner = np.searchsorted(self._starts, indices, side="right") - 1
    out: list[Any] = [None] * len(indices)
    for shard in np.unique(owner).tolist():
      rows = np.flatnonzero(owner == shard).tolist()
      positions = (indices[rows] - self._starts[shard]).tolist()
      path = self.cache / self.shards[shard]["name"]
      try:
        if shard not in self._readers:
          self._readers[shard] = array_record_module.ArrayRecordReader(
            str(path), options=_READER, file_reader_buffer_size=32768
          )
        for row, record in zip(rows, self._readers[shard].read(positions)):
          out[row] = unpack(record)
      # The reader's own errors are RuntimeError and IndexError, msgpack's ValueError.
      except (RuntimeError, IndexError, ValueError, KeyError) as e:
        raise _damaged(path, e) from e
    return out

  def __getstate__(self):
    return self.__dict__ | {"_readers": {}, "_columns": None}


def _damaged(path: pathlib.Path, reason: Exception | str) -> RecordError:
  return RecordError(
    f"record file {path} is damaged ({str(reason).split(';')[0]}): remove it and run "
    f"python -m fluid.prepare --config.data.cache={path.parent}, which writes it again"
  )
