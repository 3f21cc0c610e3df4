"""What every text encoder's config has, and where its files lie.

B prompts, T text tokens, E width of a frozen encoder's features.
"""

import dataclasses
import hashlib
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

  @property
  def feature_width(self) -> int:
    """E of a frozen encoder's features; 0 where the net takes ids."""
    return 0

  def files(self, path: pathlib.Path) -> list[pathlib.Path]:
    """The file at `path` and what lies beside it; the one that vouches comes last."""
    return [path]

  def prompt(self, source: Any, index: int, example: dict | None = None) -> str:
    """What it encodes of an example of a data source, which may be read already."""
    raise NotImplementedError

  def fit(self, source: Any, total: int, path: pathlib.Path, keep: Any = None) -> None:
    """Makes the file from the first examples of a source.

    Args:
      total: examples.
      path: of the file.
      keep: all captions of an example -> those to take (None: the first).

    Raises:
      ConfigError: the source has not what it takes.
    """
    raise NotImplementedError

  def open(self, path: pathlib.Path) -> Any:
    """The encoder of a file; ConfigError where that is missing or damaged."""
    raise NotImplementedError

  def load(self, folders: list[pathlib.Path]) -> Any:
    """The encoder of its own file, or of the first that one of the folders has."""
    paths = [folder / self.FILE for folder in folders]
    found = [p for p in paths if p.is_file()]
    return self.open(pathlib.Path(self.path) if self.path else [*found, *paths][0])

  def install(self, folder: pathlib.Path) -> bool:
    """Puts its file into a folder; False where that has yet to be made there."""
    if not self.path:
      return (folder / self.FILE).is_file()
    copy(self, pathlib.Path(self.path), folder)
    return True

  def digest(self) -> str:
    """Of what it is given by `path`, which no field says; '' where that is nothing.

    Raises:
      ConfigError: the file is missing, or no encoder's.
    """
    if not self.path:
      return ""
    self.open(pathlib.Path(self.path))
    return hashlib.sha256(pathlib.Path(self.path).read_bytes()).hexdigest()

  def shipped(self, folder: pathlib.Path) -> str:
    """`path` in the config of a run given away in a folder that has a copy of FILE."""
    del folder
    return ""

  def network(self) -> Any:
    """The frozen network (fluid.text.frozen.Network); None: none, or not known here."""
    return None


def load(text: TextConfig, *folders: str | pathlib.Path) -> Any:
  """The encoder of a config, whose file may lie in one of the folders."""
  return text.load([pathlib.Path(f) for f in folders])


def inputs(encoder: Any, ids: Any, mask: Any) -> Any:
  """What the net takes of prompts: features [B, T, E] of a frozen encoder, else ids."""
  return encoder.features(ids, mask) if hasattr(encoder, "features") else ids


def copy(text: TextConfig, origin: pathlib.Path, folder: str | pathlib.Path) -> None:
  """Copies an encoder's file and those beside it into a folder."""
  target = pathlib.Path(folder) / text.FILE
  for a, b in zip(text.files(origin), text.files(target)):
    if a.is_file() and a.resolve() != b.resolve():
      shutil.copyfile(a, b)
