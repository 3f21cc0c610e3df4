"""torch's checkpoints before 1.6: pickles one after another, then the storages.

The pickles are a magic number, the version, the byte order and sizes of types, the tree
of tensors, and the keys of the storages, which follow in that order: 8 bytes of count,
and the numbers. No torch, and nothing in the file is run: see fluid.convert.pickles.
"""

import functools
import pathlib
import pickle

import numpy as np

from fluid.convert import pickles
from fluid.convert.weights import AGAIN, FileError, Weights, leaves
from fluid.errors import one_line


class _Unpickler(pickles.Unpickler):
  """Keeps the storages it comes across.

  Attributes:
    storages: key -> storage.
  """

  def __init__(self, file):
    super().__init__(file)
    self.storages = {}

  def persistent_load(self, pid):
    storage = super().persistent_load(pid)
    if not isinstance(storage, pickles.Storage) or any(pid[5:]):
      raise pickle.UnpicklingError(f"a storage is {pid!r:.60}")
    return self.storages.setdefault(storage.key, storage)


def read(path: pathlib.Path) -> Weights:
  """All tensors of the file, under their names.

  Raises:
    FileError: it is damaged or would run code.
  """
  size = path.stat().st_size
  try:
    with path.open("rb") as f:
      _, _, about = (pickles.Unpickler(f).load() for _ in range(3))
      if not about["little_endian"]:
        raise FileError(path, "has big-endian numbers", "save it on another machine")
      program = _Unpickler(f)
      tensors = dict(leaves(program.load(), pickles.Tensor, path))
      storages, places = program.storages, {}
      for key in pickles.Unpickler(f).load():
        head = f.read(8)
        places[key] = f.tell(), int.from_bytes(head, "little")
        end = f.seek(places[key][1] * storages[key].dtype.itemsize, 1)
        if len(head) < 8 or end > size:
          raise FileError(path, f"is cut short (before the end of {key})", AGAIN)
  except pickles.RunsCode as e:
    raise FileError(path, f"would run code if it could ({e})", "do not use it") from e
  except FileError:
    raise
  except Exception as e:  # A damaged pickle may raise anything.
    found = f"is cut short or damaged (torch before 1.6: {one_line(e)})"
    raise FileError(path, found, AGAIN) from e
  for name, tensor in tensors.items():
    _, count = places.get(tensor.storage.key, (0, 0))
    if tensor.end > count or tensor.storage.key not in places:
      found = f"has a storage too small for {name} ({count} numbers, "
      raise FileError(path, f"{found}needs {tensor.end})", AGAIN)

  def make(tensor):
    start, count = places[tensor.storage.key]
    return tensor.of(np.fromfile(path, tensor.storage.dtype, count, offset=start))

  return Weights({k: functools.partial(make, v) for k, v in tensors.items()})
