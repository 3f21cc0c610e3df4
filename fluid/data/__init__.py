"""Sources of captioned images, found by name, and the tokens cached from them.

A source is a random-access set of one split ('train', 'val' and what it adds):

  source = config.make(split=..., image_size=..., seed=...)
  len(source)
  source[i] -> {'image': uint8 [S, S, 3], 'caption': str, 'id': int, 'meta': dict}

A source raises BadExample where one example alone cannot be read.

`source[i]` depends on nothing but (seed, split, i). An id is below 2**31 and names one
example over all splits; meta is JSON-able and goes to the evaluation. A source may have
`caption(i)` == source[i]['caption'], where that is cheaper than the image; it is ''
where source[i] is bad for its caption. A source goes to worker processes by pickle.

An image with several captions has them all in 'captions', 'caption' being the first. A
source of such has `captions(i)` == source[i]['captions'] as well, [] where that is bad
for its caption.

Filters ask for 'size', the (width, height) of an image before it was cut and resized;
without, it is that of the image. An example whose mirror image would be something else
has 'handed': True, unless its captions say left or right.

A source of labelled images has `classes` (names, each once) and `label(i)` as well. A
new source is one file, with its config, and one row of SOURCES.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from fluid import config

SOURCES = {
  "shapes": "fluid.data.shapes:ShapesConfig",
  "emoji": "fluid.data.emoji:EmojiConfig",
  "iconify": "fluid.data.iconify:IconifyConfig",
  "folder": "fluid.data.folder:FolderConfig",
  "coco": "fluid.data.coco:COCOConfig",
  "imagenet": "fluid.data.imagenet:ImageNetConfig",
  "webdataset": "fluid.data.webdataset:WebDatasetConfig",
  "parquet": "fluid.data.parquet:ParquetConfig",
  "tfds": "fluid.data.tfds:TfdsConfig",
}


class BadExample(config.ConfigError):
  """One example that cannot be used; others may be. The message names file and remedy.

  Attributes:
    kind: entry of fluid.data.packing.BAD.
  """

  def __init__(self, message: str, kind: str = "image"):
    super().__init__(message)
    self.kind = kind


class Source(Protocol):
  """Images and captions of one split by index."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...


def make_source(data: config.Data, split: str) -> Source:
  """The source a config names; ConfigError for what the source itself refuses."""
  return data.source.make(split=split, image_size=data.image_size, seed=data.seed)


class Images(Sequence):
  """Images of a source, uint8 [H, W, 3]; in place of one that is bad, the next of them.

  Args:
    chosen: which ones of the source.

  Attributes:
    replaced: place -> why it has the image of another. As far as they were asked for.
  """

  def __init__(self, source: Source, chosen: Sequence[int]):
    self.source, self.chosen = source, chosen
    self.replaced: dict[int, str] = {}

  def __len__(self) -> int:
    return len(self.chosen)

  def __getitem__(self, place):
    if isinstance(place, slice):
      return np.stack([self[i] for i in range(*place.indices(len(self)))])
    error = None
    for i in range(place, place + len(self)):
      try:
        return self.source[self.chosen[i % len(self)]]["image"]
      except BadExample as e:
        error = error or e
        self.replaced.setdefault(place, config.one_line(e))
    assert error is not None
    raise error


def caption(source: Source, index: int) -> str:
  """Caption of one example, without its image where the source can do that."""
  if hasattr(source, "caption"):
    return source.caption(index)
  return source[index]["caption"]


def all_captions(source: Source, index: int) -> list[str]:
  """All captions of one example, without its image where the source can do that."""
  if hasattr(source, "captions"):
    return source.captions(index)
  return [caption(source, index)]


def kept_captions(captions: Iterable[str], data: config.Data) -> list[str]:
  """Those that records of an image have: each once, of fitting length, so many."""
  words = data.filter
  found = list(dict.fromkeys(captions))
  fit = [c for c in found if words_fit(c, words)]
  return (fit or found[:1])[: data.captions or None]


def is_text(value: Any) -> bool:
  """Whether it is a text that UTF-8 can hold: JSON may have half a character."""
  if not isinstance(value, str):
    return False
  try:
    value.encode()
  except UnicodeEncodeError:
    return False
  return True


def words_fit(caption: str, wanted: config.Filter) -> bool:
  """Whether a caption has as many words as a filter asks for."""
  return within(len(caption.split()), wanted.min_words, wanted.max_words)


def within(value: float, low: float, high: float) -> bool:
  """Whether a value is inside a filter's bounds, of which a high one of 0 is none."""
  return low <= value and (value <= high or not high)


def count(data: config.Data, split: str, source: Source) -> int:
  """Examples a config takes of a split."""
  limit = {"train": data.num_train, "val": data.num_val}.get(split, 0)
  return min(limit, len(source)) if limit else len(source)
