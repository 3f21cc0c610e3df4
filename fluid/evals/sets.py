"""Sets of images that metrics compare, and files of statistics that stand for one.

A set is a folder of images, an .npz as ADM's evaluator takes ('arr_0', uint8
[N, H, W, 3]), or arrays at hand. A file of statistics holds mean and covariance of
features ('mu', 'sigma', and ADM's 'mu_s', 'sigma_s' of spatial ones), as pytorch-fid,
torch-fidelity's users and ADM publish them; ours says in 'made_with' which network and
resize they are of.

N images, H, W pixels, D features.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fluid import config, files
from fluid.config import identity
from fluid.data import images as image_files
from fluid.evals import geneval
from fluid.evals.metrics.frechet import Statistics

# Names of mean and covariance in a file, by the output of the network.
STATISTICS = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
NAMED = 8  # Of many bad files.
_DAMAGED = (OSError, ValueError, TypeError, KeyError)


@dataclasses.dataclass
class ImageSet:
  """Images, statistics of their features, or both.

  Attributes:
    name: printed with numbers.
    images: sequence of uint8 [H, W, 3], which may differ in size (None: statistics
      alone).
    statistics: output of a network -> what a file said of it.
    made_with: what the file says they were made with; empty where it says nothing.
    digest: of what the images are, for caches.
    texts: prompts of the images, in their order, where they are known.
    lines: metadata of GenEval's layout, one for each image.
    names: of the files below the folder, without endings.
    replaced: place -> why the image there is another one's, see fluid.data.Images.
  """

  name: str
  images: Sequence[np.ndarray] | np.ndarray | None = None
  statistics: dict[str, Statistics] = dataclasses.field(default_factory=dict)
  made_with: dict = dataclasses.field(default_factory=dict)
  digest: str = ""
  texts: Sequence[str] = ()
  lines: Sequence[dict] = ()
  names: Sequence[str] = ()
  replaced: dict[int, str] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return 0 if self.images is None else len(self.images)


class Folder(Sequence):
  """Image files, read as they are asked for.

  Args:
    paths: of the files.
    whole: those of the set that they are a part of (empty: these are all).
  """

  def __init__(self, paths: Sequence[pathlib.Path], whole: Sequence[pathlib.Path] = ()):
    self.paths = list(paths)
    self.whole = whole or self.paths

  def __len__(self) -> int:
    return len(self.paths)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return Folder(self.paths[index], self.whole)
    path = self.paths[index]
    try:
      return image_files.read(path)
    except (image_files.ImageError, OSError) as e:
      raise self._refused(path, e) from e

  def _refused(self, path: pathlib.Path, error: Exception) -> config.ConfigError:
    """Names what comes after it and cannot be read either: all is repaired at once."""

    def why(path):
      try:
        image_files.read(path)
      except (image_files.ImageError, OSError) as e:
        return e
      return None

    rest = self.whole[self.whole.index(path) + 1 :]
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
      found = [(p, e) for p, e in zip(rest, pool.map(why, rest)) if e]
    bad = [f"{p} ({config.one_line(e)})" for p, e in [(path, error), *found]]
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return config.ConfigError(
      f"{len(bad)} of {len(self.whole)} images cannot be read: "
      f"{', '.join(bad[:NAMED])}{more}; repair or remove them: a set that lost images "
      "gives another number"
    )


def open_set(path: str | os.PathLike) -> ImageSet:
  """The set at a path.

  Raises:
    ConfigError: nothing there, no images, no array or statistics that are known.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return _folder(path)
  if not path.is_file():
    raise config.ConfigError(f"no {path}: name a folder of images or an .npz file")
  if path.suffix != ".npz":
    raise config.ConfigError(
      f"{path} is no set of images: name a folder of them, or an .npz with 'arr_0' "
      "(uint8 images) or 'mu' and 'sigma'"
    )
  return _npz(path)


def _folder(path: pathlib.Path) -> ImageSet:
  texts: tuple[str, ...] = ()
  lines: tuple[dict, ...] = ()
  if (path / "samples.json").is_file():  # Of fluid.sample: a grid is beside them.
    try:
      rows = json.loads((path / "samples.json").read_text())["images"]
      paths = [path / row["file"] for row in rows]
      texts = tuple(row["prompt"] for row in rows)
    except (ValueError, KeyError, TypeError) as e:
      raise config.ConfigError(
        f"{path}/samples.json is not what fluid.sample writes ({e!r}): remove it"
      ) from e
  elif layout := sorted(path.glob("[0-9]*/metadata.jsonl")):  # GenEval's.
    pairs = []
    for file in layout:
      about, samples = geneval.read_metadata(file), file.parent / "samples"
      if len(about) != 1 or not samples.is_dir():
        what = "no folder samples" if len(about) == 1 else f"{len(about)} lines"
        raise config.ConfigError(
          f"{path} looks like GenEval's layout, but {file} has {what}: one line, and "
          "samples beside it"
        )
      pairs += [(about[0], p) for p in sorted(samples.iterdir())]
    lines, paths = tuple(line for line, _ in pairs), [p for _, p in pairs]
    texts = tuple(line["prompt"] for line in lines)
  else:
    found = (
      pathlib.Path(folder, name)
      for folder, _, names in os.walk(path, followlinks=True)
      for name in names
    )
    paths = sorted(p for p in found if p.suffix.lower() in image_files.ENDINGS)
  if not paths:
    endings = ", ".join(sorted(image_files.ENDINGS))
    raise config.ConfigError(f"{path} has no images ({endings}) in it or below it")
  for p in paths:
    if not p.is_file():
      raise config.ConfigError(f"{p} is missing: what names it, or a link, is broken")
  stats = [(p.relative_to(path).as_posix(), p.stat()) for p in paths]
  said = {name: [s.st_size, s.st_mtime_ns] for name, s in stats}
  digest = identity.digest(said)
  names = [os.path.splitext(name)[0] for name in said]
  return ImageSet(
    str(path), Folder(paths), digest=digest, texts=texts, lines=lines, names=names
  )


def _npz(path: pathlib.Path) -> ImageSet:
  try:
    with np.load(path) as found:
      names = set(found.files)
      statistics = {
        output: Statistics(
          mean=found[mu].astype(np.float64), given=found[s].astype(np.float64)
        )
        for output, (mu, s) in STATISTICS.items()
        if {mu, s} <= names
      }
      said = dict(json.loads(str(found["made_with"]))) if "made_with" in names else {}
      images = _array(path, found) if "arr_0" in names else None
  except config.ConfigError:
    raise
  except (*_DAMAGED, zipfile.BadZipFile, zlib.error) as e:
    raise config.ConfigError(f"{path} cannot be read ({e}); download it again") from e
  if images is None and not statistics:
    raise config.ConfigError(
      f"{path} has {', '.join(sorted(names)) or 'nothing'}, but neither 'arr_0' (uint8 "
      "images) nor 'mu' and 'sigma'"
    )
  for output, found_ in statistics.items():
    d = found_.width
    if found_.covariance.shape != (d, d):
      raise config.ConfigError(
        f"{path}: the mean of '{output}' has {d} features, its covariance "
        f"{found_.covariance.shape}"
      )
    if not (np.isfinite(found_.mean).all() and np.isfinite(found_.covariance).all()):
      raise config.ConfigError(
        f"{path}: statistics of '{output}' are not finite; make them again"
      )
  stat = path.stat()
  digest = identity.digest({"npz": [path.name, stat.st_size, stat.st_mtime_ns]})
  return ImageSet(str(path), images, statistics, said, digest)


def _array(path: pathlib.Path, found) -> np.ndarray:
  """'arr_0', from disk as it is asked for where it is not compressed (10 GB are)."""
  info = zipfile.ZipFile(path).getinfo("arr_0.npy")
  if info.compress_type == zipfile.ZIP_STORED:
    with path.open("rb") as f:
      f.seek(info.header_offset + 26)
      lengths = int.from_bytes(f.read(2), "little"), int.from_bytes(f.read(2), "little")
      f.seek(sum(lengths), os.SEEK_CUR)
      version = np.lib.format.read_magic(f)
      read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
      }[version]
      shape, fortran, dtype = read(f)
      at, order = f.tell(), "F" if fortran else "C"
      array: Any = np.memmap(path, dtype, "r", at, shape, order)  # type: ignore
  else:
    array = found["arr_0"]
  known = array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3
  if not known or not len(array):
    floats = array.dtype.kind == "f" and array.size
    bad = int((~np.isfinite(array)).sum()) if floats else 0
    raise config.ConfigError(
      f"{path}: 'arr_0' is {array.dtype} {list(array.shape)}"
      + (f" with {bad} values that are no numbers" if bad else "")
      + ", not uint8 images [N, H, W, 3]: save whole numbers from 0 to 255"
    )
  return array


def write_statistics(path, statistics: dict[str, Statistics], made_with: dict) -> None:
  """Writes statistics as others read them, and what they were made with."""
  if any(found.count < 2 for found in statistics.values()):
    raise config.ConfigError("statistics need 2 images or more")
  arrays = {"made_with": np.array(json.dumps(made_with))}
  for output, found in statistics.items():
    mu, sigma = STATISTICS[output]
    arrays |= {mu: np.asarray(found.mean), sigma: found.covariance}
  with files.replacing(path) as scratch, scratch.open("wb") as f:
    np.savez(f, **arrays)  # type: ignore[arg-type]
