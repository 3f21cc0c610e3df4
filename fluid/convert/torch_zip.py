"""torch's checkpoints since 1.6: a zip of one pickle and the storages of its tensors.

`NAME/data.pkl` says what there is, and the records `NAME/data/KEY` hold the numbers,
little-endian. No torch, and nothing in the file is run: see fluid.convert.pickles.
"""

import functools
import pathlib
import zipfile

import numpy as np

from fluid.convert import pickles
from fluid.convert.weights import AGAIN, FileError, Weights, leaves
from fluid.errors import one_line


def read(path: pathlib.Path) -> Weights:
  """All tensors of a zip, under their names.

  Raises:
    FileError: it is damaged, none of torch's, or would run code.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      records = {info.filename: info for info in archive.infolist()}
      programs = [n for n in records if n.count("/") == 1 and n.endswith("/data.pkl")]
      if len(programs) != 1:
        raise FileError(path, "is a zip, but not torch's (no data.pkl)", "name another")
      root = programs[0].rpartition("/")[0]
      if f"{root}/byteorder" in records and archive.read(f"{root}/byteorder") == b"big":
        raise FileError(path, "has big-endian numbers", "save it on another machine")
      with archive.open(programs[0]) as f:
        tree = pickles.Unpickler(f).load()
    tensors = dict(leaves(tree, pickles.Tensor, path))
    for name, tensor in tensors.items():
      record = records.get(f"{root}/data/{tensor.storage.key}")
      _check_storage(path, name, tensor, record)
  except pickles.RunsCode as e:
    raise FileError(path, f"would run code if it could ({e})", "do not use it") from e
  except zipfile.BadZipFile as e:
    raise FileError(path, "is cut short or damaged (a torch zip)", AGAIN) from e
  except FileError:
    raise
  except Exception as e:  # A damaged pickle may raise anything.
    raise FileError(path, f"has a damaged data.pkl ({one_line(e)})", AGAIN) from e

  def make(tensor):
    storage = tensor.storage
    info = records[f"{root}/data/{storage.key}"]
    return tensor.of(_record(path, info, storage.dtype)[: storage.size])

  return Weights({k: functools.partial(make, v) for k, v in tensors.items()})


def _check_storage(path, name: str, tensor: pickles.Tensor, info) -> None:
  storage = tensor.storage
  if info is None:
    raise FileError(path, f"lacks the storage {storage.key} of {name}", AGAIN)
  there, needed = info.file_size // storage.dtype.itemsize, storage.size
  if there < needed or tensor.end > needed:
    needed = max(needed, tensor.end)
    found = f"has a storage too small for {name} ({min(there, storage.size)} numbers, "
    raise FileError(path, f"{found}needs {needed})", AGAIN)


def _record(path: pathlib.Path, info: zipfile.ZipInfo, dtype: np.dtype) -> np.ndarray:
  """The numbers of one record [size]; mapped, not read, where it is stored plainly."""
  count = info.file_size // dtype.itemsize
  if info.compress_type != zipfile.ZIP_STORED or not count:
    with zipfile.ZipFile(path) as archive:
      return np.frombuffer(archive.read(info), dtype, count)
  with path.open("rb") as f:
    # The local header says how long its own name and padding are.
    f.seek(info.header_offset + 26)
    lengths = f.read(4)
  skip = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
  start = info.header_offset + 30 + skip
  return np.memmap(path, dtype, "r", start, (count,))
