"""Parquet files with images, as Hugging Face data sets have them.

A row is read with its row group, which is kept until another is asked for: reading in
order takes a group once, reading at random takes one for each row.
"""

import dataclasses
import functools
import json
import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import types

from fluid import config
from fluid.config import ConfigError
from fluid.data import BadExample, listed, stored
from fluid.data.listed import VAL_EVERY, VAL_IDS
from fluid.errors import raise_passing

_GROUPS = 2  # Kept: one with images, and the texts of one.


@dataclasses.dataclass(frozen=True)
class ParquetConfig(listed.Cropped):
  """Rows of Parquet files.

  Attributes:
    train: the files, as 'data/train-*.parquet' or 'data/{000..127}.parquet'.
    val: files of the split val; without, it is one row in 20 of train, drawn by its
      number: where an image has several rows, name files.
    image: column of images: {bytes, path}, bytes, or paths ('': see stored.USUAL).
    caption: column of texts or lists of them ('': as for images, if there is one).
    label: column of numbers of classes ('': as for captions).
    folder: that paths of images start from ('': that of the file).
  """

  kind = "parquet"

  train: str = ""
  val: str = ""
  image: str = ""
  caption: str = config.said("")
  label: str = config.said("")
  folder: str = config.place()

  def make(self, *, split: str, image_size: int, seed: int = 0) -> "Parquet":
    """The source of a split."""
    del seed  # Nothing here is random.
    return Parquet(self, split=split, image_size=image_size)


class Parquet(stored.Stored):
  """Rows in the order of files, and in these as they lie.

  G row groups in all.
  """

  def __init__(self, wanted: ParquetConfig, *, split: str, image_size: int):
    stored.check_split("parquet", split)
    key, self.paths = stored.split_files(wanted, split, ".parquet")
    self._folder = wanted.folder
    schema = _footer(self.paths[0]).schema.to_arrow_schema()
    found = _columns(wanted, schema, self.paths[0])
    image, caption, label = self._columns = found
    self.captioned = bool(caption)
    named = _names(schema, label)
    plain = [f.name for f in schema if _plain(f.type)]
    self._meta = [name for name in plain if name not in (image, caption)]
    groups: list[tuple[int, int, int]] = []
    classes = 0
    for number, path in enumerate(self.paths):
      footer = _footer(path)
      names = footer.schema.to_arrow_schema().names
      if gone := [name for name in found if name and name not in names]:
        raise ConfigError(f"{path} has no column '{gone[0]}', {self.paths[0]} does")
      rows = (footer.row_group(g).num_rows for g in range(footer.num_row_groups))
      groups += [(number, g, n) for g, n in enumerate(rows)]
      if label and not named:
        classes = max(classes, _classes(path, footer, label))
    if label:
      self.classes = stored.class_names(named or map(str, range(classes)))
    # File and number in it, first row of each group and of what would come next.
    self._groups = np.array([g[:2] for g in groups], np.int32).reshape(-1, 2)
    self._starts = np.cumsum([0] + [g[2] for g in groups])
    total = int(self._starts[-1])
    super().__init__(
      f"split '{split}' of {getattr(wanted, key)}",
      image_size=image_size,
      crop=wanted.crop,
      total=total,
      first=VAL_IDS if key == "val" else 0,
      rows=None if wanted.val else stored.share(_held_out(total), split),
    )

  def _row(self, place, *, image):
    group = int(np.searchsorted(self._starts, place, side="right")) - 1
    file, number = self._groups[group].tolist()
    row = place - int(self._starts[group])
    table = self._tables(group, image)
    if isinstance(table, str):
      raise BadExample(f"row group {number} of {self.paths[file]} is damaged ({table})")
    where = f"row {row} of row group {number} of {self.paths[file]}"
    try:
      found = {name: table[name][row].as_py() for name in table.column_names}
    except UnicodeDecodeError as e:
      raise BadExample(f"a text of {where} is not UTF-8 ({e})", "caption") from e
    content, caption, label = (found.get(name) for name in self._columns)
    return stored.Row(
      where=where,
      image=self._file(content, self.paths[file], where),
      captions=caption,
      label=label,
      meta={name: found[name] for name in self._meta if name in found},
    )

  def _file(self, found: Any, path: str, where: str) -> bytes | str | None:
    """What an image column holds -> bytes, or the path of the image."""
    if isinstance(found, dict):
      content = found.get("bytes")
      found = found.get("path") if content is None else content
    if not isinstance(found, str):
      return found
    if "://" in found:
      raise BadExample(
        f"image {found!r} of {where} is an address: fetch the images first "
        "(img2dataset writes tars and Parquet files that have them)"
      )
    folder = os.path.normpath(self._folder or os.path.dirname(path) or ".")
    inside = os.path.relpath(os.path.join(folder, found), folder)
    if inside.split(os.sep)[0] == os.pardir:
      raise BadExample(
        f"image {found!r} of {where} is outside the folder {folder}: name another in "
        "config key 'data.source.folder', or remove the row"
      )
    return os.path.join(folder, inside)

  @functools.cached_property
  def _tables(self):
    """(group, with images?) -> table, or what is wrong with it."""
    return functools.lru_cache(_GROUPS)(self._load)

  def _load(self, group: int, image: bool) -> pa.Table | str:
    file, number = self._groups[group].tolist()
    columns = [*self._columns[0 if image else 1 :], *self._meta]
    try:
      with pq.ParquetFile(self.paths[file], page_checksum_verification=True) as f:
        return f.read_row_group(number, columns=[c for c in columns if c])
    except (pa.ArrowException, OSError, MemoryError) as e:
      raise_passing(e, self.paths[file])
      return config.one_line(e)

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k != "_tables"}


def _footer(path: str) -> pq.FileMetaData:
  try:
    return pq.read_metadata(path)
  except (pa.ArrowException, OSError) as e:
    raise ConfigError(
      f"{path} is no Parquet file, or its footer is damaged ({config.one_line(e)}): "
      "fetch it again or leave it out in config key 'data.source'"
    ) from e


def _columns(wanted: ParquetConfig, schema: pa.Schema, path: str) -> tuple[str, ...]:
  """Columns of image, caption and label; '' for none."""
  where = f"{path} has columns {', '.join(f'{f.name} ({f.type})' for f in schema)}"
  if len({*schema.names}) < len(schema.names):
    raise ConfigError(f"{where}, of which two have one name: write it again without")
  fit = lambda test: [f.name for f in schema if test(f.type)]
  usable = {
    "image": fit(lambda t: _is_bytes(t) or _is_text(t) or _is_file(t)),
    "caption": fit(lambda t: _is_text(t) or _is_list(t) and _is_text(t.value_type)),
    "label": fit(types.is_integer),
  }
  return stored.fields(wanted, usable, where)


def _is_text(t: pa.DataType) -> bool:
  if types.is_dictionary(t):
    t = t.value_type
  return types.is_string(t) or types.is_large_string(t) or types.is_string_view(t)


def _is_bytes(t: pa.DataType) -> bool:
  return types.is_binary(t) or types.is_large_binary(t) or types.is_binary_view(t)


def _is_file(t: pa.DataType) -> bool:
  """Of {bytes, path}, as the data sets of Hugging Face write images."""
  return types.is_struct(t) and t.get_field_index("bytes") >= 0


def _is_list(t: pa.DataType) -> bool:
  return types.is_list(t) or types.is_large_list(t) or types.is_fixed_size_list(t)


def _plain(t: pa.DataType) -> bool:
  """Whether JSON has it, and it is small."""
  number = types.is_integer(t) or types.is_floating(t) or types.is_boolean(t)
  return number or _is_text(t)


def _names(schema: pa.Schema, label: str) -> list[str]:
  """Names of classes that a Hugging Face data set wrote; empty where it did not."""
  try:
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    return list(features[label]["names"])
  except (KeyError, TypeError, ValueError):
    return []


def _classes(path: str, footer: pq.FileMetaData, label: str) -> int:
  """Number of classes that labels of a file need, by its statistics if it has any."""
  columns = {footer.schema.column(i).path: i for i in range(footer.num_columns)}
  most = -1
  for group in range(footer.num_row_groups):
    found = footer.row_group(group).column(columns[label]).statistics
    if found is None or not found.has_min_max:
      labels = pq.read_table(path, columns=[label])[label]
      return 1 + (pc.max(labels).as_py() or 0)
    most = max(most, found.max)
  return most + 1


def _held_out(total: int) -> np.ndarray:
  """Which rows [N] are for val: drawn, so that no period of the rows is met."""
  return np.random.PCG64(0).random_raw(total) % VAL_EVERY == 0
