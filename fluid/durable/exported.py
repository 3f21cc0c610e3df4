"""Weights to give away: one safetensors file in the place of a run's checkpoints.

It is written and read an array at a time: a host never holds all of them twice.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import safetensors
from flax import traverse_util

from fluid import config, files, remote, trees
from fluid.convert import containers
from fluid.parallel import distributed

FILE = "weights.safetensors"


@dataclasses.dataclass(frozen=True)
class Stored:
  """An array that is in the file: `stored[index]` reads that part, `stored[()]` all."""

  path: pathlib.Path
  name: str
  shape: tuple[int, ...]

  def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
    # Opened anew, since what was read of a mapped file stays until it is closed.
    with safetensors.safe_open(self.path, "numpy") as file:
      return file.get_slice(self.name)[index]


def write(folder: pathlib.Path, params: Any, *, weights: str, step: int) -> str:
  """Writes parameters under the names of their tree; returns the file's SHA-256."""
  # The file that safetensors' own writer makes, which first copies all arrays to bytes.
  kinds = {dtype: kind for kind, dtype in containers.SAFETENSORS.items()}
  order = lambda named: (-named[1].dtype.itemsize, named[0])
  flat = dict(sorted(trees.paths(params).items(), key=order))
  header: dict[str, Any] = {"__metadata__": {"weights": weights, "step": str(step)}}
  end = 0
  for name, x in flat.items():
    start, end = end, end + x.nbytes
    header[name] = {"dtype": kinds[x.dtype], "shape": x.shape}
    header[name]["data_offsets"] = start, end
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  head = len(text).to_bytes(8, "little") + text
  digest = hashlib.sha256(head)
  with files.replacing(folder / FILE) as scratch, scratch.open("wb") as f:
    f.write(head)
    for x in flat.values():
      content = np.ascontiguousarray(x).reshape(-1).view(np.uint8).data
      f.write(content)
      digest.update(content)
  return digest.hexdigest()


def there(workdir) -> bool:
  """Whether a folder, also one in a bucket, is one of these."""
  if remote.is_url(workdir):
    return FILE in remote.names(workdir)
  return (pathlib.Path(workdir) / FILE).is_file()


def read(
  workdir, weights: str, step: int | None, *, together: bool = False
) -> tuple[dict, int]:
  """Nested dict of `Stored`, and the step they are of.

  Args:
    together: all processes call this. The first alone reads the whole file, to hold it
      against its SHA-256; what it finds, all of them say.

  Raises:
    ConfigError: the file is damaged, or holds other weights than those asked for.
  """
  path = pathlib.Path(workdir) / FILE
  check = lambda: _check(path)
  distributed.first(check) if together else check()
  try:
    with safetensors.safe_open(path, "numpy") as file:
      said = file.metadata() or {}
      shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    found = {"weights": said["weights"], "step": int(said["step"])}
  except (OSError, ValueError, KeyError, safetensors.SafetensorError) as e:
    raise _unreadable(path, e) from e
  for name, asked in (("weights", weights), ("step", step)):
    if asked is not None and asked != found[name]:
      raise config.ConfigError(f"{path} has {name} {found[name]} alone, not {asked}")
  flat = {name: Stored(path, name, shape) for name, shape in shapes.items()}
  return traverse_util.unflatten_dict(flat, sep="/"), found["step"]


def _check(path: pathlib.Path) -> None:
  """Holds the file against its SHA-256."""
  model = path.with_name("model.json")
  try:
    with path.open("rb") as f:
      found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != json.loads(model.read_text())["weights_sha256"]:
      raise ValueError(f"its SHA-256 is not the one in {model.name}")
  except (OSError, ValueError, KeyError) as e:
    raise _unreadable(path, e) from e


def _unreadable(path: pathlib.Path, error: Exception) -> config.ConfigError:
  return config.ConfigError(f"{path} cannot be read ({error}); get the folder again")
