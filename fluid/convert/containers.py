"""The files that published weights come in: name -> array, without torch.

  weights = containers.read("model.safetensors")
  weights = containers.read("checkpoint-last.pth", section=("model_ema", "model"))

Knows safetensors (one file, an index with shards, a folder that holds either), torch's
zips and what came before them (read by a closed unpickler: nothing in the file is ever
run), flax's msgpack and TensorFlow's frozen graphs. Arrays are read when they are asked
for, msgpack's and a graph's apart; bfloat16 stays as ml_dtypes'.
Nested dicts and lists are flattened, their keys joined by dots; what is not a tensor is
left out.
"""

import functools
import json
import math
import pathlib
import re
from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np

from fluid.convert import graph_def, torch_legacy, torch_zip
from fluid.convert.weights import AGAIN, FileError, Weights, leaves
from fluid.errors import one_line

# Newest first: a folder with several kinds of files gives the first kind it has.
_IN_FOLDER = (
  ("*.safetensors.index.json",),
  ("*.safetensors",),
  ("*.bin.index.json",),
  ("*.bin", "*.pt", "*.pth", "*.ckpt"),
  ("*.msgpack",),
)
SAFETENSORS = {
  "F64": np.dtype("<f8"),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "I64": np.dtype("<i8"),
  "I32": np.dtype("<i4"),
  "I16": np.dtype("<i2"),
  "I8": np.dtype("i1"),
  "U64": np.dtype("<u8"),
  "U32": np.dtype("<u4"),
  "U16": np.dtype("<u2"),
  "U8": np.dtype("u1"),
  "BOOL": np.dtype("?"),
}
_OLD_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"


def read(path, section: str | Sequence[str] = "") -> Weights:
  """All arrays of a file, an index of shards or a folder.

  Args:
    path: of the file or folder.
    section: part of a checkpoint ('model', 'model_ema', 'state_dict', 'module', also
      'a.b'); of several the first that is there, where '' is always there.

  Raises:
    FileError: it is missing, damaged, of another kind, or has no such section.
  """
  path = pathlib.Path(path)
  weights = _read(_inside(path) if path.is_dir() else path)
  wanted = [section] if isinstance(section, str) else list(section)
  for name in wanted:
    if found := weights.under(name):
      return found
  tops = sorted({name.partition(".")[0] for name in weights})
  listed = ", ".join(tops[:8]) + (", ..." if len(tops) > 8 else "")
  missing = f"has no section {' or '.join(wanted)}" if any(wanted) else "has no tensors"
  raise FileError(path, missing, f"it has {listed or 'nothing'}: name another")


def _inside(folder: pathlib.Path) -> pathlib.Path:
  """The one file of weights in a folder."""
  for patterns in _IN_FOLDER:
    found = sorted(file for p in patterns for file in folder.glob(p))
    if len(found) > 1:
      names = ", ".join(file.name for file in found[:6])
      raise FileError(folder, f"holds several files of weights ({names})", "name one")
    if found:
      return found[0]
  raise FileError(folder, "holds no file of weights", "name the file itself")


def _read(path: pathlib.Path) -> Weights:
  """Whichever container it is, told by its first bytes."""
  try:
    if path.suffix == ".json":
      return _index(path)
    with path.open("rb") as f:
      head = f.read(16)
    for fits, reader in _READERS:
      if fits(head):
        return reader(path)
  except OSError as e:
    raise FileError(path, f"cannot be read ({one_line(e)})", "check the path") from e
  found = "is empty" if not head else f"is of no known kind (begins with {head[:8]!r})"
  raise FileError(path, found, "use safetensors, torch's, flax msgpack or a GraphDef")


def _index(path: pathlib.Path) -> Weights:
  """{'weight_map': {name: file}}: the files lie beside the index."""
  try:
    places = dict(json.loads(path.read_text())["weight_map"])
  except (ValueError, KeyError, TypeError) as e:
    raise FileError(path, "is no index of shards (no weight_map)", AGAIN) from e
  shards: dict[str, Weights] = {}
  for file in sorted(set(places.values())):
    if pathlib.PurePath(file).name != file:
      raise FileError(path, f"names a shard in another folder ({file})", AGAIN)
    if not (path.parent / file).is_file():
      raise FileError(path, f"names {file}, which is missing", "download that too")
    shards[file] = _read(path.parent / file)
  for name, file in places.items():
    if name not in shards[file]:
      raise FileError(path.parent / file, f"lacks {name}, which the index names", AGAIN)
  return Weights({k: shards[file]._make[k] for k, file in places.items()})


def _safetensors(path: pathlib.Path) -> Weights:
  size = path.stat().st_size
  with path.open("rb") as f:
    length = int.from_bytes(f.read(8), "little")
    if 8 + length > size:
      raise FileError(path, "is cut short (safetensors, its header)", AGAIN)
    try:
      header = json.loads(f.read(length))
      header.pop("__metadata__", None)
      entries = {k: _entry(v) for k, v in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
      raise FileError(path, f"has a damaged header ({one_line(e)})", AGAIN) from e
  for name, (dtype, shape, start, end) in entries.items():
    if end - start != dtype.itemsize * math.prod(shape):
      raise FileError(path, f"gives {name} the wrong number of bytes", AGAIN)
    if 8 + length + end > size:
      raise FileError(path, f"is cut short (before the end of {name})", AGAIN)

  def make(dtype, shape, start, end):
    with path.open("rb") as f:
      f.seek(8 + length + start)
      # A bytearray, so that the array can be written to.
      content = bytearray(f.read(end - start))
    return np.frombuffer(content, dtype).reshape(shape)

  return Weights({k: functools.partial(make, *v) for k, v in entries.items()})


def _entry(said: dict) -> tuple[np.dtype, tuple[int, ...], int, int]:
  """What a header of safetensors says of a tensor: dtype, shape, first byte, end."""
  shape, (start, end) = tuple(said["shape"]), said["data_offsets"]
  if not all(type(n) is int and n >= 0 for n in (*shape, start, end)):
    raise ValueError(f"a tensor has shape and bytes {shape, start, end}")
  return SAFETENSORS[said["dtype"]], shape, start, end


def _msgpack(path: pathlib.Path) -> Weights:
  from flax import serialization  # Slow to import, and needed here alone.

  try:
    tree = serialization.msgpack_restore(path.read_bytes())
  except Exception as e:  # msgpack has errors of many kinds.
    found = f"is cut short or no flax msgpack ({one_line(e)})"
    raise FileError(path, found, AGAIN) from e
  arrays = leaves(tree, np.ndarray, path)
  return Weights({k: functools.partial(np.asarray, v) for k, v in arrays})


def _refuse(found: str, remedy: str) -> Callable[[pathlib.Path], Weights]:
  def refuse(path):
    raise FileError(path, found, remedy)

  return refuse


# First bytes -> who reads them.
_READERS: tuple[tuple[Callable[[bytes], bool], Callable], ...] = (
  (lambda head: head[:4] == b"PK\x03\x04", torch_zip.read),
  (lambda head: head[5:9] == b"\0\0\0{", _safetensors),
  (lambda head: head[:14] == _OLD_TORCH, torch_legacy.read),
  (
    lambda head: (
      head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    ),
    _refuse("is a bare pickle, which may run code", "ask for safetensors"),
  ),
  # A node, its length, and its name.
  (lambda head: bool(re.match(rb"\n[\x80-\xff]*[\0-\x7f]\n", head)), graph_def.read),
  (
    lambda head: head[:7] == b"version",
    _refuse("is a pointer of Git LFS, not the file", "fetch it with git lfs pull"),
  ),
  (
    lambda head: head[:1] in (b"\xde", b"\xdf") or 0x80 <= (head or b"\0")[0] <= 0x8F,
    _msgpack,
  ),
)
