"""Images in a folder with captions in metadata.jsonl (the layout of HF's imagefolder).

FOLDER/SPLIT/metadata.jsonl, or one FOLDER/metadata.jsonl that is split here by a hash
of the file name. A line is {"file_name": "a/b.png", "text": "caption", ...}; what else
it holds goes to meta.
"""

import dataclasses
import json
import pathlib
import zlib

import numpy as np

from fluid import config
from fluid.config import ConfigError
from fluid.data import BadExample, images

# With one metadata.jsonl for all, a file in this many is validation.
VAL_EVERY = 20
# Ids of FOLDER/val are counted from here, so that they differ from FOLDER/train's.
VAL_IDS = 1 << 30


@dataclasses.dataclass(frozen=True)
class FolderConfig(config.Part):
  """Your own images.

  Attributes:
    path: of the folder.
  """

  kind = "folder"

  path: str = ""

  def make(self, *, split: str, image_size: int, seed: int = 0) -> "Folder":
    """The source of a split."""
    if not self.path:
      raise ConfigError("source 'folder' needs config key 'data.source.path'")
    return Folder(split=split, image_size=image_size, seed=seed, path=self.path)


class Folder:
  """Images cut to their central square and resized; transparency becomes white."""

  def __init__(self, *, split: str, image_size: int, seed: int = 0, path: str):
    del seed  # Nothing here is random.
    self.size = image_size
    root = pathlib.Path(path)
    own = (root / split / "metadata.jsonl").is_file()
    self.root = root / split if own else root
    self.file = self.root / "metadata.jsonl"
    first = VAL_IDS if own and split == "val" else 0
    self.rows = []
    for number, row in enumerate(self._lines()):
      if own or (zlib.crc32(row["file_name"].encode()) % VAL_EVERY == 0) == (
        split == "val"
      ):
        self.rows.append((first + number, row))
    if split not in ("train", "val") and not own:
      raise ConfigError(f"{path} has no split '{split}': add {split}/metadata.jsonl")

  def __len__(self) -> int:
    return len(self.rows)

  def caption(self, index: int) -> str:
    return self.rows[index][1]["text"]

  def __getitem__(self, index: int) -> dict:
    number, row = self.rows[index]
    meta = {k: v for k, v in row.items() if k != "text"}
    image = self._image(self.root / row["file_name"])
    return {"image": image, "caption": row["text"], "id": number, "meta": meta}

  def _lines(self):
    try:
      lines = self.file.read_text("utf-8").splitlines()
    except OSError as e:
      raise ConfigError(
        f"no {self.file}: config key 'data.source.path' must name a folder with "
        'images and a metadata.jsonl of lines {"file_name": ..., "text": ...}'
      ) from e
    for number, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
        good = isinstance(row["file_name"], str) and isinstance(row["text"], str)
      except (ValueError, KeyError, TypeError):
        good = False
      if not good:
        raise ConfigError(
          f'{self.file} line {number} is not {{"file_name": ..., "text": ...}}'
        )
      yield row

  def _image(self, path: pathlib.Path) -> np.ndarray:
    try:
      return images.square(images.read(path), self.size)
    except FileNotFoundError as e:
      raise BadExample(f"image {path} is missing, but {self.file} names it") from e
    except (images.ImageError, OSError) as e:
      raise BadExample(
        f"image {path} cannot be read ({e}): repair it or remove its line from "
        f"{self.file}"
      ) from e
