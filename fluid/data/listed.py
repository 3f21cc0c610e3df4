"""What sources of image files share: long lists kept small, and reading by name."""

import array
import dataclasses
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from fluid import config
from fluid.config import rules
from fluid.data import BadExample, images

# With one set for all, an image in this many is validation.
VAL_EVERY = 20
# Ids of a split val with files of its own are counted from here: train's are below.
VAL_IDS = 1 << 30


class Strings:
  """A list of strings as one run of bytes.

  A million take what their letters take, and are handed to worker processes at once,
  where a million Python objects would be copied one by one.
  """

  def __init__(self, strings: Iterable[str]):
    content, ends = bytearray(), array.array("q", [0])
    for string in strings:
      # Names of files hold surrogates where their bytes are no UTF-8.
      content += string.encode("utf-8", "surrogatepass")
      ends.append(len(content))
    self._content, self._ends = bytes(content), np.asarray(ends)

  def __len__(self) -> int:
    return len(self._ends) - 1

  def __getitem__(self, index: int) -> str:
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)}")
    start, stop = self._ends[index : index + 2].tolist()
    return self._content[start:stop].decode("utf-8", "surrogatepass")


@dataclasses.dataclass(frozen=True)
class Cropped(config.Part):
  """A source of image files of any size.

  Attributes:
    crop: how they become square: 'square' (the central square by Pillow's bicubic
      filter), 'adm' (as published ImageNet models) or 'torchvision'; see images.FITS.
  """

  crop: str = "square"

  def check(self, name):
    rules.choice(f"{name}crop", self.crop, images.FITS)


def read_square(
  root: pathlib.Path, name: str, size: int, remove: str, crop: str
) -> dict[str, Any]:
  """An image file, cut to a square -> 'image' and 'size', as images.fitted.

  Args:
    root: folder that the file has to be in; links in it may lead out of it.
    name: of the file, as something lists it.
    size: pixels per side.
    crop: entry of images.FITS.
    remove: for the message, what to remove where the file cannot be repaired.

  Raises:
    BadExample: it is missing, damaged, no image, or outside the folder.
  """
  inside = os.path.normpath(name)
  if os.path.isabs(inside) or inside.split(os.sep)[0] == os.pardir:
    raise BadExample(f"image {name} is outside the folder {root}: remove {remove}")
  path = root / inside
  try:
    return images.fitted(path, size, crop)
  except FileNotFoundError as e:
    raise BadExample(f"image {path} is missing: add it, or remove {remove}") from e
  except images.ImageError as e:
    raise BadExample(
      f"image {path} cannot be read ({e}): repair it, or remove {remove}"
    ) from e
