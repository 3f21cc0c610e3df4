"""Cached tokens on disk: a folder of ArrayRecord shards and a metadata.json.

fluid.data.packing says what a record is.

N records, L tokens, C channels, T text tokens, E width of features.
"""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from fluid import files
from fluid.config import ConfigError
from fluid.data.packing import ARRAYS, FEATURES, corrupt, decode
from fluid.data.packing import pack as pack  # For whoever reads or writes records.
from fluid.data.packing import unpack as unpack

METADATA = "metadata.json"
# Kinds of damage. The first three fluid.prepare finds, the others show in a record.
BAD = tuple("image caption tokenizer corrupt shape nonfinite range text".split())
# Random access wants every record in a chunk of its own.
_WRITER = "group_size:1"
_READER = "readahead_buffer_size:0"


class RecordError(ConfigError):
  """Records that are missing or damaged; the message names file and remedy."""


def shard_path(cache: str | os.PathLike, split: str, index: int) -> pathlib.Path:
  return pathlib.Path(cache) / f"{split}-{index:05d}.array_record"


def write_shard(path: pathlib.Path, records: Iterable[bytes]) -> None:
  """Writes a whole shard; it has its final name only once it is complete."""
  with files.replacing(path) as scratch:
    writer = array_record_module.ArrayRecordWriter(str(scratch), _WRITER)
    for record in records:
      writer.write(record)
    writer.close()


def read_shard(path: pathlib.Path) -> list[bytes]:
  """All records of one file; a damaged one -> RecordError."""
  try:
    return array_record_module.ArrayRecordReader(str(path), options=_READER).read_all()
  except RuntimeError as e:
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


class Records:
  """Random access to a split, checked against metadata.json when it is opened.

  Sets below `memory` bytes are decoded into arrays once, when the first batch is
  gathered; then a batch costs one indexing operation per array. Pickling (for worker
  processes) leaves those arrays behind.

  Attributes:
    metadata: content of metadata.json.
    text_length: T of the cache, the longest a text can be.
    features: E of its features; 0 where it has none.
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
    self.features: int = self.metadata["text"].get("features", 0)
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
    if damage := self.damage(index):
      raise RecordError(damage)
    example = self._read([index])[0]
    return dict(example, meta=json.loads(example["meta"]))

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Rows for training, in the order asked for.

    Returns:
      id [N] int32, text [N, T] int32 padded with 0, text_mask [N, T] bool, tokens
      [N, L] or mean and std [N, L, C] as they are stored, and bad [N] int8: 0, or 1 +
      the place in BAD of what is wrong with a row, which then holds zeros and id -1.
    """
    if self._columns is None and self._size() <= self._memory:
      self._columns = self._stack(self._read(range(len(self))))
    if self._columns is not None:
      return {name: column[indices] for name, column in self._columns.items()}
    return self._stack(self._read(indices))

  def damage(self, index: int) -> str:
    """What is wrong with a record, its file and its key; '' if nothing is."""
    example = self._read([index])[0]
    kind = int(self._stack([example])["bad"][0])
    if not kind:
      return ""
    shard = int(np.searchsorted(self._starts, index, side="right")) - 1
    path = self.cache / self.shards[shard]["name"]
    why = f" ({example['why']})" if example.get("why") else ""
    return (
      f"{BAD[kind - 1]}{why} in record {index - self._starts[shard]} of {path}, "
      f"id {example.get('id', 'unknown')}"
    )

  def _size(self) -> int:
    """Bytes, about: of files, or of padded features where these are more."""
    padded = len(self) * self.text_length * self.features * FEATURES.itemsize
    return max(padded, sum(s["bytes"] for s in self.shards))

  @functools.cached_property
  def _layout(self) -> dict[str, tuple] | None:
    """Kind and shape of every array, as metadata.json says (None: it does not)."""
    spec = self.metadata.get("tokens")
    if spec is None:
      return None
    if spec["kind"] == "discrete":
      return {"tokens": ("i", (spec["length"],))}
    return dict.fromkeys(("mean", "std"), ("f", (spec["length"], spec["channels"])))

  def _fault(self, example: dict[str, Any]) -> str:
    """A kind of BAD that can be told from one record alone; '' for none."""
    if "bad" in example:
      return example["bad"] if example["bad"] in BAD else "corrupt"
    length = len(example["text_ids"])
    if not 0 < length <= self.text_length:
      return "text"
    if self.features:
      found = example.get("features", np.zeros(0))
      if (found.dtype, found.shape) != (FEATURES, (length, self.features)):
        return "text"
    if self._layout is None:
      return ""
    arrays = {name: example[name] for name in ARRAYS if name in example}
    # Signed or not is a matter of space.
    kind = lambda a: "i" if a.dtype.kind == "u" else a.dtype.kind
    found = {name: (kind(a), a.shape) for name, a in arrays.items()}
    return "" if found == self._layout else "shape"

  def _stack(self, examples: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    n = len(examples)
    faults = [self._fault(e) for e in examples]
    bad = np.array([1 + BAD.index(f) if f else 0 for f in faults], np.int8)
    rows = {"id": np.full(n, -1, np.int32)}
    rows |= {"text": np.zeros((n, self.text_length), np.int32)}
    rows |= {"text_mask": np.zeros(rows["text"].shape, bool)}
    if self.features:
      rows["features"] = np.zeros((*rows["text"].shape, self.features), FEATURES)
    good = np.flatnonzero(bad == 0)
    like = {k: np.zeros(s, t) for k, (t, s) in (self._layout or {}).items()}
    like |= {
      k: examples[good[0]][k] for k in ARRAYS if len(good) and k in examples[good[0]]
    }
    rows |= {k: np.zeros((n, *a.shape), a.dtype) for k, a in like.items()}
    for row in good.tolist():
      example = examples[row]
      length = len(example["text_ids"])
      rows["id"][row] = example["id"]
      rows["text"][row, :length] = example["text_ids"]
      rows["text_mask"][row, :length] = True
      if self.features:
        rows["features"][row, :length] = example["features"]
      for name in like:
        rows[name][row] = example[name]
    for kind, wrong in self._wrong_values(rows):
      wrong = wrong.reshape(n, -1).any(1) & (bad == 0)
      bad[wrong] = 1 + BAD.index(kind)
      for name, array in rows.items():
        array[wrong] = -1 if name == "id" else 0
    return rows | {"bad": bad}

  def _wrong_values(self, rows):
    """(kind, array of bools) of what only shows in the values."""
    words = self.metadata["text"].get("vocab_size")
    if words:
      yield "text", (rows["text"] < 0) | (rows["text"] >= words)
    vocab = self.metadata.get("tokens", {}).get("vocab")
    if vocab and "tokens" in rows:
      yield "range", (rows["tokens"] < 0) | (rows["tokens"] >= vocab)
    for name in ("mean", "std", "features"):
      if name in rows:
        yield "nonfinite", ~np.isfinite(rows[name])

  def _read(self, indices: Iterable[int]) -> list[dict[str, Any]]:
    """Decoded records in the order of `indices`, one read per shard.

    A record that cannot be read or decoded becomes {'bad': 'corrupt', 'why': ...}.
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
        found = [_read_one(reader, i) for i in positions]  # One of them is damaged.
      for row, record in zip(rows, found):
        out[row] = record if isinstance(record, dict) else decode(record)
    return out

  def _reader(self, shard: int):
    path = self.cache / self.shards[shard]["name"]
    if shard not in self._readers:
      try:
        reader = array_record_module.ArrayRecordReader(
          str(path), options=_READER, file_reader_buffer_size=32768
        )
        if reader.num_records() != self.shards[shard]["records"]:
          raise IndexError(f"{reader.num_records()} records")
      except (RuntimeError, IndexError, ValueError) as e:
        raise _damaged(path, e) from e
      self._readers[shard] = reader
    return self._readers[shard]

  def __getstate__(self):
    return self.__dict__ | {"_readers": {}, "_columns": None}


def _read_one(reader, position: int) -> bytes | dict:
  try:
    return reader.read([position])[0]
  except (RuntimeError, IndexError) as e:
    return corrupt(e)


def _damaged(path: pathlib.Path, reason: Exception | str) -> RecordError:
  return RecordError(
    f"record file {path} is damaged ({str(reason).split(';')[0]}): remove it and run "
    f"python -m fluid.prepare --config.data.cache={path.parent}, which writes it again"
  )
