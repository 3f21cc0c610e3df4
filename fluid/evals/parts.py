"""Work of many images in parts: kept in files, and had as it is asked for.

What ended early goes on at the first part that is missing, and no more than a part or
two are in memory: 50,000 images of 256 pixels are 10 GB.

Legend: N images, H, W pixels.
"""

import functools
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, TypeVar

import numpy as np

from fluid import files
from fluid.errors import one_line
from fluid.parallel import distributed

PART = 1024  # Images of one.
# What numpy says of a file that is cut short or of something else.
_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)

Content = TypeVar("Content")


class InParts(Sequence):
  """Images in parts of PART, of which the last one that was asked for is held.

  Args:
    total: N.
    make: images first..stop -> uint8 [stop - first, H, W, 3].
    digest: of what the images depend on; their features are kept under it ('': not).
  """

  def __init__(
    self, total: int, make: Callable[[int, int], np.ndarray], digest: str = ""
  ):
    self.total, self.digest = total, digest

    @functools.lru_cache(1)
    def part(number: int) -> np.ndarray:
      return make(number * PART, min((number + 1) * PART, total))

    self._part = part

  def __len__(self) -> int:
    return self.total

  def __getitem__(self, index):
    if isinstance(index, slice):
      index = np.arange(*index.indices(self.total))
    if isinstance(index, np.ndarray):
      return np.stack([self[int(i)] for i in index])
    number, place = divmod(range(self.total)[index], PART)
    return self._part(number)[place]


def kept(
  path: pathlib.Path,
  make: Callable[[], Content],
  *,
  read: Callable[[pathlib.Path], Content],
  write: Callable[[BinaryIO, Content], Any],
) -> Content:
  """What a file holds; made and written where it is missing or damaged.

  All processes call it. Process 0 writes; who sees its file reads it, so that what is
  mapped from disk is in nobody's memory.
  """
  found = _read(path, read)
  if distributed.everyone(found is not None):
    assert found is not None
    return found
  made = make()

  def store():
    # A run beside this one never reads half a file.
    with files.replacing(path) as scratch, scratch.open("wb") as f:
      write(f, made)

  distributed.first(store)
  found = _read(path, read)
  return made if found is None else found


def _read(path: pathlib.Path, read):
  try:
    return read(path)
  except FileNotFoundError:
    return None
  except _DAMAGED as e:
    distributed.say(f"{path} is damaged ({one_line(e)}): made again")
    return None
