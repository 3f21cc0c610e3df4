"""What every text encoder's config has, and where its files lie."""

import dataclasses
import pathlib
import shutil
from typing import Any, ClassVar

from fluid import config


@dataclasses.dataclass(frozen=True)
class TextConfig(config.Part):
  """See fluid.text.

  Attributes:
    path: its file ('' lets prepare make one beside the data).
    vocab_size: upper limit of a vocabulary that is made.
    length: tokens per prompt, padding included.
    FILE: name of the file in the folder of a cache or of a run.
  """

  FILE: ClassVar[str] = ""

  path: str = config.place()
  vocab_size: int = 512
  length: int = 32

  def files(self, path: pathlib.Path) -> list[pathlib.Path]:
    """The file at `path` and what lies beside it; the one that vouches comes last."""
    return [path]

  def prompt(self, source: Any, index: int, example: dict | None = None) -> str:
    """What it encodes of an example of a data source, which may be read already."""
    raise NotImplementedError

  def fit(self, source: Any, total: int, path: pathlib.Path) -> None:
    """Makes the file from the first examples of a source.

    Raises:
      ConfigError: the source has not what it takes.
    """
    raise NotImplementedError

  def open(self, path: pathlib.Path) -> Any:
    """The encoder of a file; ConfigError where that is missing or damaged."""
    raise NotImplementedError


def load(text: TextConfig, *folders: str | pathlib.Path) -> Any:
  """The encoder of a config: its own file, or the first that one of the folders has."""
  paths = [pathlib.Path(f) / text.FILE for f in folders]
  found = [p for p in paths if p.is_file()]
  return text.open(pathlib.Path(text.path) if text.path else [*found, *paths][0])


def copy(text: TextConfig, origin: pathlib.Path, folder: str | pathlib.Path) -> None:
  """Copies an encoder's file and those beside it into a folder."""
  target = pathlib.Path(folder) / text.FILE
  for a, b in zip(text.files(origin), text.files(target)):
    if a.is_file() and a.resolve() != b.resolve():
      shutil.copyfile(a, b)
