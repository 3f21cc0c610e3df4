"""Cached tokens on disk: a folder of ArrayRecord shards and a metadata.json.

fluid.data.packing says what a record is.

N records, L tokens, C channels, T text tokens, E width of features, K captions, V views
of an image: one, or two with its mirror image.
"""

import base64
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python import array_record_module

from fluid import files
from fluid.config import ConfigError
from fluid.data.packing import ARRAYS, FEATURES, corrupt, decode, texts, views
from fluid.data.packing import pack as pack  # For whoever reads or writes records.
from fluid.data.packing import unpack as unpack
from fluid.errors import raise_passing

METADATA = "metadata.json"
SHARD = ".array_record"  # How names of shards end.
# Kinds of damage. The first three fluid.prepare finds, the others show in a record.
BAD = tuple("image caption tokenizer corrupt shape nonfinite range text".split())
# Why fluid.prepare leaves out what it could use (config section 'data.filter'), and a
# last reason, which shows only once all records are there: it stands in none.
FILTERED = tuple("side aspect words score".split())
DUPLICATE = "duplicate"
KINDS = BAD + FILTERED
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
    text_length: T of the cache, the longest a text can be.
    features: E of its features; 0 where it has none.
    captions: K, the most that an example has.
    views: V.
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
    self.captions: int = splits[split].get("captions", 1)
    self.views = 2 if splits[split].get("mirrored") else 1
    self.shards: list[dict[str, Any]] = splits[split]["shards"]
    self._starts = np.cumsum([0] + [s["records"] for s in self.shards])
    self._readers: dict[int, Any] = {}
    self._columns: _Columns | None = None
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

  def gather(
    self,
    indices: np.ndarray,
    draw: Callable[[np.ndarray], np.ndarray] | None = None,
  ) -> dict[str, np.ndarray]:
    """Rows for training, in the order asked for.

    Args:
      draw: ids [N] -> uint32 [N, 2], uniform; the first decides on the caption of each,
        the other on the view. None: the first caption, the image as it is.

    Returns:
      id [N] int32, text [N, T] int32 padded with 0, text_mask [N, T] bool, tokens
      [N, L] or mean and std [N, L, C] as they are stored, and bad [N] int8: 0, or 1 +
      the place in KINDS of what is wrong with a row, which then holds zeros and id -1.
    """
    if self._columns is None and self._size() <= self._memory:
      every = self._read(range(len(self)))
      self._columns = self._stack(every, self.captions, self.views)
    if self._columns is not None:
      own = self._columns.examples
      chosen = _chosen(draw, own["id"][indices], own["counts"][indices])
      return _rows(self._columns, indices, *chosen)
    examples = self._read(indices)
    ids = np.array([-1 if "bad" in e else e["id"] for e in examples], np.int64)
    counts = np.array([_counts(e) for e in examples], np.uint32)
    # Padding what is not drawn would cost as much as what is.
    which = np.stack(_chosen(draw, ids, counts), 1).tolist()
    examples = [_variant(e, *w) for e, w in zip(examples, which)]
    return _rows(self._stack(examples), slice(None), 0, 0)

  def damage(self, index: int) -> str:
    """What is wrong with a record, its file and its key; '' if nothing is."""
    example = self._read([index])[0]
    found = self._stack([example], self.captions, self.views)
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
    each = self.features * FEATURES.itemsize or 4
    padded = len(self) * self.captions * self.text_length * each
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
    """A kind of KINDS that can be told without a look at values; '' for none."""
    if "bad" in example:
      return example["bad"] if example["bad"] in KINDS else "corrupt"
    if len(texts(example)) > self.captions:
      return "text"
    for text in texts(example):
      length = len(text["text_ids"])
      if not 0 < length <= self.text_length:
        return "text"
      if self.features:
        found = text.get("features", np.zeros(0))
        if (found.dtype, found.shape) != (FEATURES, (length, self.features)):
          return "text"
    if len(views(example)) > self.views:
      return "shape"
    # Signed or not is a matter of space.
    kind = lambda a: "i" if a.dtype.kind == "u" else a.dtype.kind
    for view in views(example):
      found = {k: (kind(view[k]), view[k].shape) for k in ARRAYS if k in view}
      if self._layout is not None and found != self._layout:
        return "shape"
    return ""

  def _stack(
    self, examples: Sequence[dict[str, Any]], captions: int = 1, each: int = 1
  ) -> "_Columns":
    """Arrays of examples, of which 'bad' ones stay empty; `each` is V."""
    n = len(examples)
    kinds = [1 + KINDS.index(e["bad"]) if "bad" in e else 0 for e in examples]
    own = {"id": np.full(n, -1, np.int32), "counts": np.ones((n, 2), np.uint32)}
    own |= {"bad": np.array(kinds, np.int8)}
    said = {"text": np.zeros((n, captions, self.text_length), np.int32)}
    said |= {"text_mask": np.zeros(said["text"].shape, bool)}
    if self.features:
      said["features"] = np.zeros((*said["text"].shape, self.features), FEATURES)
    good = np.flatnonzero(own["bad"] == 0).tolist()
    like = {k: np.zeros(s, t) for k, (t, s) in (self._layout or {}).items()}
    like |= {k: examples[good[0]][k] for k in ARRAYS if good and k in examples[good[0]]}
    seen = {k: np.zeros((n, each, *a.shape), a.dtype) for k, a in like.items()}
    for row in good:
      example = examples[row]
      own["id"][row], own["counts"][row] = example["id"], _counts(example)
      for k, text in enumerate(texts(example)):
        length = len(text["text_ids"])
        said["text"][row, k, :length] = text["text_ids"]
        said["text_mask"][row, k, :length] = True
        if self.features:
          said["features"][row, k, :length] = text["features"]
      for v, view in enumerate(views(example)):
        for name in like:
          seen[name][row, v] = view[name]
    said["bad"] = self._wrong(said, (n, captions))
    seen["bad"] = self._wrong(seen, (n, each))
    return _Columns(own, said, seen)

  def _wrong(self, part, shape) -> np.ndarray:
    """1 + the place in KINDS of what only shows in the values, int8; 0 for nothing."""
    bad = np.zeros(shape, np.int8)
    for kind, wrong in self._wrong_values(part):
      bad[wrong.reshape(*shape, -1).any(2) & (bad == 0)] = 1 + KINDS.index(kind)
    return bad

  def _wrong_values(self, rows):
    """(kind, array of bools) of what only shows in the values."""
    words = self.metadata["text"].get("vocab_size")
    if words and "text" in rows:
      yield "text", (rows["text"] < 0) | (rows["text"] >= words)
    vocab = self.metadata.get("tokens", {}).get("vocab")
    if vocab and "tokens" in rows:
      yield "range", (rows["tokens"] < 0) | (rows["tokens"] >= vocab)
    for name in ("mean", "std", "features"):
      if name in rows:
        yield "nonfinite", ~np.isfinite(rows[name])

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
        fault = self._fault(example)
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


class _Columns(NamedTuple):
  """Arrays by name: of examples [N], captions [N, K, T] and views [N, V, L, ...].

  Each part has its 'bad': 0, or 1 + the place in KINDS.
  """

  examples: dict[str, np.ndarray]
  texts: dict[str, np.ndarray]
  views: dict[str, np.ndarray]


def _counts(example: dict[str, Any]) -> tuple[int, int]:
  """Captions and views of an example."""
  return (1, 1) if "bad" in example else (len(texts(example)), len(views(example)))


def _variant(example: dict[str, Any], k: int, v: int) -> dict[str, Any]:
  """What rows have of an example, with one of its captions and one of its views."""
  if "bad" in example:
    return example
  text, view = texts(example)[k], views(example)[v]
  said = {name: text[name] for name in ("text_ids", "features") if name in text}
  seen = {name: view[name] for name in ARRAYS if name in view}
  return {"id": example["id"]} | said | seen


def _chosen(draw, ids: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Which caption [N] and which view [N], of ids [N] and counts [N, 2]."""
  which = np.zeros(counts.shape, np.int64)
  if draw is not None and (counts > 1).any():
    which = (draw(ids).astype(np.uint64) * counts >> np.uint64(32)).astype(np.int64)
  return which[:, 0], which[:, 1]


def _rows(columns: _Columns, at, k, v) -> dict[str, np.ndarray]:
  """Rows `at` with their captions `k` and views `v`; see `Records.gather`."""
  said = {name: column[at, k] for name, column in columns.texts.items()}
  seen = {name: column[at, v] for name, column in columns.views.items()}
  kinds = columns.examples["bad"][at], said.pop("bad"), seen.pop("bad")
  bad = functools.reduce(lambda a, b: np.where(a, a, b), kinds)
  out = {"id": columns.examples["id"][at]} | said | seen
  for name, array in out.items() if bad.any() else ():
    array[bad > 0] = -1 if name == "id" else 0
  return out | {"bad": bad}


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
