"""Data sets of TensorFlow Datasets (TFDS), prepared on disk in array_record format.

Nothing is downloaded or prepared here; where a set is missing, the error has the
command that does it. Reading imports no tensorflow, and needs no code of the set.

Fields that the config leaves empty are the first of stored.USUAL that the set has with
a type that fits. A caption is a Text or a Sequence of them; of a Sequence of
dictionaries (COCO), their field 'text'.
"""

import dataclasses
import difflib
import functools
import glob
import os
from typing import Any

import numpy as np

from fluid import config
from fluid.config import ConfigError
from fluid.data import BadExample, listed, stored
from fluid.data.listed import VAL_IDS
from fluid.errors import raise_passing

_FORMAT = "array_record"


@dataclasses.dataclass(frozen=True)
class TfdsConfig(listed.Cropped):
  """A prepared data set of TFDS.

  Attributes:
    name: as TFDS has it, with config and version where these matter: 'cifar10',
      'coco_captions/2014:1.1.0'.
    data_dir: folder that holds it ('': TFDS's own, ~/tensorflow_datasets).
    train, val: what TFDS calls the splits, slices included: 'train[:95%]'.
    image: feature of images ('': see above, as for the next two).
    caption: feature of captions, if there is one.
    label: feature of class labels, if there is one.
  """

  kind = "tfds"
  buckets = True  # TFDS reads a data_dir in one by itself.

  name: str = ""
  data_dir: str = config.place()
  train: str = "train"
  val: str = "validation"
  image: str = ""
  caption: str = config.said("")
  label: str = config.said("")

  def make(self, *, split: str, image_size: int, seed: int = 0) -> "Tfds":
    """The source of a split."""
    del seed  # Nothing here is random.
    return Tfds(self, split=split, image_size=image_size)


class Tfds(stored.Stored):
  """Examples in the order of the files; images as they were encoded."""

  def __init__(self, wanted: TfdsConfig, *, split: str, image_size: int):
    stored.check_split("tfds", split)
    if not wanted.name:
      raise ConfigError("source 'tfds' needs config key 'data.source.name'")
    self._wanted, self._split = wanted, split
    records, features = self._opened
    image, caption, label = self._features = _fields(wanted, features)
    self.captioned = bool(caption)
    scalars = [name for name, f in features.items() if f.shape == ()]
    self._meta = [name for name in scalars if name not in (image, caption)]
    if label:
      self.classes = stored.class_names(features[label].names)
    super().__init__(
      f"split '{getattr(wanted, split)}' of TFDS {wanted.name}",
      image_size=image_size,
      crop=wanted.crop,
      total=len(records),
      first=VAL_IDS if split == "val" else 0,
    )

  def _row(self, place, *, image):
    records, _ = self._opened
    where = f"example {place} of {self.name}"
    try:
      found = self._parsed(records[place], image)
    except Exception as e:  # The readers raise whatever a broken file provokes.
      raise_passing(e, where)
      raise BadExample(f"{where} is damaged ({config.one_line(e)})") from e
    content, said, label = (found.get(name) for name in self._features)
    return stored.Row(
      where=where,
      image=content,
      captions=said["text"] if isinstance(said, dict) else said,
      label=None if label is None else int(label),
      meta={name: _json(found[name]) for name in self._meta},
    )

  def _parsed(self, record: bytes, image: bool) -> dict[str, Any]:
    """Features of a record that are asked for; the image stays encoded."""
    features, decoders = self._parts[image]
    return features.deserialize_example_np(record, decoders=decoders)

  @functools.cached_property
  def _opened(self) -> tuple[Any, Any]:
    """Records [N] as bytes, and the features of the set."""
    return _open(self._wanted, self._split)

  @functools.cached_property
  def _parts(self) -> dict[bool, tuple[Any, Any]]:
    """With the image or without: features that are parsed, and their decoders."""
    import tensorflow_datasets as tfds

    features = self._opened[1]
    image, *others = self._features
    texts = {name: features[name] for name in (*others, *self._meta) if name}
    every = texts | {image: features[image]}
    skip = {image: tfds.decode.SkipDecoding()}
    make = tfds.features.FeaturesDict
    return {False: (make(texts), None), True: (make(every), skip)}

  def __getstate__(self):
    return {k: v for k, v in self.__dict__.items() if k not in ("_opened", "_parts")}


def _open(wanted: TfdsConfig, key: str) -> tuple[Any, Any]:
  """Records of split train or val as bytes, and the features of the set.

  Raises:
    ConfigError: TFDS does not know the set, it is not prepared, or not in this format,
      it has no such split, or train would learn what val is to judge.
  """
  # Takes a second, and only who reads such a set needs it.
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import read_only_builder

  place = {"data_dir": os.path.expanduser(wanted.data_dir)} if wanted.data_dir else {}
  try:
    builder = read_only_builder.builder_from_files(wanted.name, **place)
  except tfds.core.DatasetNotFoundError as e:
    raise ConfigError(_missing(wanted)) from e
  except (ValueError, OSError) as e:
    raise ConfigError(
      f"TFDS {wanted.name} in {_folder(wanted)} cannot be opened ({config.one_line(e)})"
    ) from e
  info = builder.info
  formats = [f.value for f in info.available_file_formats()]
  if _FORMAT not in formats:
    raise ConfigError(
      f"TFDS {wanted.name} in {_folder(wanted)} is in format {', '.join(formats)}, "
      f"which is not read at random: run tfds convert_format --dataset_version_dir="
      f"{builder.data_dir} --out_file_format={_FORMAT} (pip install apache-beam "
      "mlcroissant)"
    )
  split = getattr(wanted, key)
  raw = tfds.decode.DeserializeMethod.RAW_BYTES
  try:
    records = builder.as_data_source(split, deserialize_method=raw, file_format=_FORMAT)
  except (ValueError, KeyError, AssertionError) as e:
    found = ", ".join(f"{name} ({s.num_examples})" for name, s in info.splits.items())
    raise ConfigError(
      f"config keys 'data.source.train' and 'val' name splits of TFDS {wanted.name}, "
      f"which has {found}; '{split}' is none ({str(e).splitlines()[0]})"
    ) from e
  if key == "train" and (both := _in_both(info.splits, wanted)):
    raise ConfigError(
      f"{both} examples of TFDS {wanted.name} are of both splits: config keys "
      f"'data.source.train' ('{wanted.train}') and 'val' ('{wanted.val}') must share "
      "none, as 'train[:95%]' and 'train[95%:]'"
    )
  return records, info.features


def _in_both(splits: Any, wanted: TfdsConfig) -> int:
  """Examples that train has and val as well; none where there is no such val."""
  try:
    train, val = (splits[s].file_instructions for s in (wanted.train, wanted.val))
  except (ValueError, KeyError, AssertionError):
    return 0
  shared = (
    min(a.skip + a.take, b.skip + b.take) - max(a.skip, b.skip)
    for a in train
    for b in val
    if a.filename == b.filename
  )
  return sum(n for n in shared if n > 0)


def _folder(wanted: TfdsConfig) -> str:
  return wanted.data_dir or "~/tensorflow_datasets"


def _missing(wanted: TfdsConfig) -> str:
  """What to do about a set that is not on disk."""
  import tensorflow_datasets as tfds

  whole, _, version = wanted.name.partition(":")
  name = whole.partition("/")[0]
  folder = wanted.data_dir or tfds.core.constants.DATA_DIR
  there = os.path.join(os.path.expanduser(folder), whole, "[0-9]*.[0-9]*.[0-9]*")
  if version and (found := sorted(map(os.path.basename, glob.glob(there)))):
    return (
      f"TFDS {whole} is in {_folder(wanted)} as {', '.join(found)}, not as {version}: "
      "correct config key 'data.source.name', or prepare that version"
    )
  known = tfds.list_builders(with_community_datasets=False)
  if name in known:
    place = f", data_dir='{wanted.data_dir}'" if wanted.data_dir else ""
    return (
      f"TFDS {wanted.name} is not prepared in {_folder(wanted)}; to download it, run "
      'python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder('{wanted.name}', file_format='{_FORMAT}'{place})"
      '.download_and_prepare()"'
    )
  near = difflib.get_close_matches(name, known, 1)
  return (
    f"config key 'data.source.name' is '{wanted.name}', which TFDS does not know and "
    f"{_folder(wanted)} does not hold"
    + (f"; did you mean '{near[0]}'?" if near else "")
  )


def _fields(wanted: TfdsConfig, features: Any) -> tuple[str, ...]:
  """Features of image, caption and label; '' for none."""
  import tensorflow_datasets as tfds

  kinds = tfds.features

  def images(f) -> bool:
    # Images of floats are stored as if they were coloured, for TFDS alone to read.
    return isinstance(f, kinds.Image) and f.np_dtype in (np.uint8, np.uint16)

  def captions(f) -> bool:
    if isinstance(f, kinds.Sequence):
      f = f.feature
      f = f["text"] if isinstance(f, kinds.FeaturesDict) and "text" in f else f
    return _is_text(f)

  def labels(f) -> bool:
    return isinstance(f, kinds.ClassLabel) and bool(f.num_classes)

  fit = lambda test: [name for name, f in features.items() if test(f)]
  usable = {"image": fit(images), "caption": fit(captions), "label": fit(labels)}
  said = (f"{name} ({type(f).__name__})" for name, f in features.items())
  where = f"TFDS {wanted.name} has features {', '.join(said)}"
  return stored.fields(wanted, usable, where)


def _is_text(feature: Any) -> bool:
  return feature.shape == () and feature.np_dtype in (np.object_, np.str_, np.bytes_)


def _json(value: Any) -> Any:
  """A scalar as JSON has it."""
  if isinstance(value, bytes):
    return value.decode("utf-8", "replace")
  return value.item() if isinstance(value, np.generic | np.ndarray) else value
