"""Sources of captioned images, found by name, and the tokens cached from them.

A source is a random-access set of one split ('train', 'val' and what it adds):

  Source(split=..., image_size=..., seed=..., **data.source_args)
  len(source)
  source[i] -> {'image': uint8 [S, S, 3], 'caption': str, 'id': int, 'meta': dict}

A source raises BadExample where one example alone cannot be read.

`source[i]` depends on nothing but (seed, split, i). An id is below 2**31 and names one
example over all splits; meta is JSON-able and goes to the evaluation. A source may have
`caption(i)` == source[i]['caption'], where that is cheaper than the image.

A new source is one file and one row of SOURCES.
"""

import importlib
import inspect
from typing import Any, Protocol

from fluid import config

SOURCES = {
  "shapes": "fluid.data.shapes:Shapes",
  "emoji": "fluid.data.emoji:Emoji",
  "folder": "fluid.data.folder:Folder",
}


class BadExample(config.ConfigError):
  """One example that cannot be used; others may be. The message names file and remedy.

  Attributes:
    kind: entry of fluid.data.records.BAD.
  """

  def __init__(self, message: str, kind: str = "image"):
    super().__init__(message)
    self.kind = kind


class Source(Protocol):
  """Images and captions of one split by index."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]: ...


def make_source(data: config.Data, split: str) -> Source:
  """The source a config names; the module is imported only now.

  Raises:
    ConfigError: unknown source or argument, or what the source itself refuses.
  """
  if data.source not in SOURCES:
    raise config.ConfigError(
      f"config key 'data.source' is '{data.source}'; choose from {', '.join(SOURCES)}"
    )
  module, name = SOURCES[data.source].split(":")
  cls = getattr(importlib.import_module(module), name)
  arguments = inspect.signature(cls).parameters
  own = [k for k in arguments if k not in ("split", "image_size", "seed")]
  for key in data.source_args:
    if key not in own:
      raise config.ConfigError(
        f"unknown config key 'data.source_args.{key}'; source '{data.source}' knows "
        f"{', '.join(own) or 'none'}"
      )
  for key in own:
    if (
      arguments[key].default is inspect.Parameter.empty and key not in data.source_args
    ):
      raise config.ConfigError(
        f"source '{data.source}' needs config key 'data.source_args.{key}'"
      )
  return cls(
    split=split, image_size=data.image_size, seed=data.seed, **data.source_args
  )


def caption(source: Source, index: int) -> str:
  """Caption of one example, without its image where the source can do that."""
  if hasattr(source, "caption"):
    return source.caption(index)
  return source[index]["caption"]


def count(data: config.Data, split: str, source: Source) -> int:
  """Examples a config takes of a split."""
  limit = {"train": data.num_train, "val": data.num_val}.get(split, 0)
  return min(limit, len(source)) if limit else len(source)
