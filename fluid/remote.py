"""Folders in a bucket, gs://BUCKET/FOLDER, and their copies on this host.

An object is there whole or not at all; it can be replaced, but neither appended to nor
locked. So work is done in a scratch folder (`Mirror`), of which what has changed is
uploaded whole. Checkpoints are no part of that: Orbax writes them to the bucket itself.

A bucket that fails now and then is asked again by gcsfs, six times in half a minute.
"""

import atexit
import contextlib
import logging
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fluid.errors import REQUEUE, ConfigError, causes, exit_code, one_line

# Orbax's paths go through gcsfs like all else, also where tensorflow is installed.
os.environ.setdefault("EPATH_USE_TF", "false")
# It logs what it tries again, and with a traceback what it gives up, which we say.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)

AT_ONCE = 16  # Objects that are written or read together.
LARGE = 2**26  # Bytes of a file that is sent in parts, and not read whole before.
# In a work folder, what nobody asks of a mirror: there by name alone.
_LEFT = (
  "cache", "checkpoints", "checkpoints-damaged", "profile", "samples", "tensorboard",
)  # fmt: skip
_KEPT = "eval/images/"  # Gigabytes that an evaluation goes on from: of this host alone.
_REFUSALS = (
  ValueError, FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError,
  NotADirectoryError,
)  # fmt: skip


class BucketError(ConfigError):
  """A bucket that cannot be read or written; it may be well again later."""

  def __init__(self, url: str, error: Exception):
    said = one_line(error) or type(error).__name__
    super().__init__(
      f"{url} cannot be reached or refuses ({type(error).__name__}: {said}): see that "
      "the bucket is there and that this account may read and write it "
      "(gcloud auth application-default login)"
    )
    self.exit_code = exit_code(error) if _refuses(error) else REQUEUE


def _refuses(error: Exception) -> bool:
  """Whether a bucket, or this host's disk, says something that it would say again.

  All else is the network, whose errors have no common base.
  """
  from google.auth.exceptions import GoogleAuthError, TransportError

  chain = list(causes(error))
  # gcsfs makes an answer, 401, of a token that it could not ask for.
  if any(isinstance(e, TransportError) or getattr(e, "retryable", 0) for e in chain):
    return False
  code = getattr(error, "code", None)  # Of HTTP, where there was an answer.
  if isinstance(code, int):
    return 400 <= code < 500 and code not in (408, 429)
  # A plain OSError is of the disk, or what gcsfs makes of 403.
  no = type(error) is OSError or isinstance(error, _REFUSALS)
  return no or any(isinstance(e, GoogleAuthError) for e in chain)


class Url(str):
  """An address that names can be joined to, as to a path."""

  def __truediv__(self, name: str) -> "Url":
    return Url(f"{self}/{name}")


def is_url(path: Any) -> bool:
  return "://" in str(path)


def is_bucket(path: Any) -> bool:
  return bool(re.match("gs://[^/]", str(path)))


def check(path: Any, name: str) -> None:
  """Refuses an address that is not of a bucket, or for which a package is missing.

  Raises:
    ConfigError: naming the flag or key `name`.
  """
  scheme, _, rest = str(path).partition(":/")
  cut = bool(rest) and not rest.startswith("/") and scheme.isalnum()
  if cut or (is_url(path) and not is_bucket(path)):  # 'gs:/' lacks a slash.
    raise ConfigError(
      f"{name} is {path}: of addresses only gs://BUCKET/FOLDER is understood; mount "
      "what is elsewhere and name the folder that it is there"
    )
  if is_url(path):
    opened(path)


def opened(url: Any) -> tuple[Any, str]:
  """-> (fsspec's file system, the name of the folder in it); asks nothing of it yet."""
  try:
    import fsspec

    bucket, root = fsspec.core.url_to_fs(str(url))
  except ImportError as e:
    raise ConfigError(
      f"{url} needs the package gcsfs: pip install gcsfs (extra 'gcs')"
    ) from e
  except Exception as e:
    raise BucketError(str(url), e) from e
  return bucket, root.rstrip("/")


def below(root: str, name: str) -> str:
  """An object's name without that of the folder `root` that it lies in."""
  return name.removeprefix(root).strip("/")


def download(url: Any, names: Iterable[str], folder: pathlib.Path) -> None:
  """Copies objects below `url` into a folder, several at a time."""
  bucket, root = opened(url)
  files = {f"{root}/{name}".rstrip("/"): folder / name for name in names}
  for file in files.values():
    file.parent.mkdir(parents=True, exist_ok=True)
  with asking(url):
    bucket.get(list(files), [str(file) for file in files.values()])


@contextlib.contextmanager
def asking(url: Any) -> Iterator[None]:
  """What a bucket raises becomes a BucketError; what is not there stays as it is."""
  try:
    yield
  except (ConfigError, FileNotFoundError):
    raise
  except Exception as e:  # Of gcsfs, aiohttp and google.auth, without a common base.
    raise BucketError(str(url), e) from e


def write(url: Any, contents: dict[str, bytes]) -> None:
  """Replaces objects below `url`, each whole."""
  bucket, root = opened(url)
  with asking(url):
    try:
      bucket.pipe({f"{root}/{name}": content for name, content in contents.items()})
    except FileNotFoundError as e:  # An object needs no folder: the bucket is missing.
      raise BucketError(str(url), e) from e


def upload(url: Any, file: pathlib.Path, name: str) -> None:
  """Replaces an object below `url`, as soon as all of the file is there."""
  bucket, root = opened(url)
  with asking(url):
    try:
      bucket.put_file(str(file), f"{root}/{name}")
    except FileNotFoundError as e:
      raise BucketError(str(url), e) from e


def read_bytes(url: Any) -> bytes | None:
  """An object's content; None where it is not there."""
  bucket, name = opened(url)
  with asking(url), contextlib.suppress(FileNotFoundError):
    return bucket.cat_file(name)
  return None


def tail(url: Any, size: int) -> bytes:
  """The last bytes of an object; none where it is not there."""
  bucket, name = opened(url)
  with asking(url), contextlib.suppress(FileNotFoundError):
    return bucket.cat_file(name, start=-size)[-size:]
  return b""


def names(url: Any) -> set[str]:
  """What lies in a folder, objects and folders; nothing where there is none."""
  bucket, root = opened(url)
  with asking(url), contextlib.suppress(FileNotFoundError):
    found = bucket.ls(root, detail=False, refresh=True)
    return {below(root, name) for name in found} - {""}
  return set()


def remove(url: Any) -> None:
  """Removes an object that may be there."""
  bucket, name = opened(url)
  with asking(url), contextlib.suppress(FileNotFoundError):
    bucket.rm_file(name)


def local(folder: Any, *, deep: bool = False) -> pathlib.Path:
  """A folder of this host with a folder's files; a local one is that itself.

  Args:
    deep: also what lies in its folders, but for checkpoints and what is only looked at.
  """
  if not is_url(folder):
    return pathlib.Path(folder)
  bucket, root = opened(folder)
  target = _scratch()
  with asking(folder):
    names = list(_names(bucket, root, target, deep))
  download(folder, names, target)
  return target


def _scratch() -> pathlib.Path:
  target = pathlib.Path(tempfile.mkdtemp(prefix="fluid-"))
  atexit.register(shutil.rmtree, target, ignore_errors=True)
  return target


def _names(bucket, root: str, target: pathlib.Path, deep: bool) -> Iterator[str]:
  try:
    entries = bucket.ls(root, detail=True, refresh=True)
  except FileNotFoundError:
    return
  for entry in entries:
    name = below(root, entry["name"])
    if entry["type"] != "directory":
      if name:  # A folder may have an object of its own.
        yield name
    elif deep and name in _LEFT:
      (target / name).mkdir()
    elif deep:
      for found in bucket.find(entry["name"]):
        yield below(root, found)


class Mirror:
  """A work folder as files of this host; of one in a bucket, a copy.

  Args:
    wanted: by name, what is copied at once (None: all but what `local` leaves out).

  Attributes:
    url: of the bucket's folder; '' of a local one, which is its own mirror.
    path: where the files are.
  """

  def __init__(self, folder: Any, wanted: Callable[[str], bool] | None = None):
    self.url = str(folder).rstrip("/") if is_url(folder) else ""
    self._there: dict[str, int] = {}  # Bytes by name, as the bucket was listed last.
    if self.url and wanted:
      self.path, self._pushed = _scratch(), {}
      self.pull(wanted)
    else:
      self.path = local(folder, deep=True)
      self._pushed = self._stamps()

  def push(self) -> None:
    """Uploads the files that have changed, each whole.

    Raises:
      BucketError: one cannot be written.
    """
    now = self._stamps()
    changed = [name for name in now if self._pushed.get(name) != now[name]]
    for name in [name for name in changed if now[name][1] > LARGE]:
      upload(self.url, self.path / name, name)
      self._pushed[name] = now[name]
      changed.remove(name)
    for first in range(0, len(changed), AT_ONCE):
      names = changed[first : first + AT_ONCE]
      write(self.url, {name: (self.path / name).read_bytes() for name in names})
      self._pushed |= {name: now[name] for name in names}

  def pull(self, wanted: Callable[[str], bool]) -> None:
    """Fetches the files that are wanted, by name, as others have written them."""
    if not self.url:
      return
    bucket, root = opened(self.url)
    found: dict[str, Any] = {}
    with asking(self.url), contextlib.suppress(FileNotFoundError):
      bucket.invalidate_cache(root)
      found = bucket.find(root, detail=True)
    self._there = {below(root, n): e["size"] for n, e in found.items()}
    self.fetch(filter(wanted, self._there))

  def fetch(self, names: Iterable[str]) -> None:
    """Fetches files by their names; of a local folder they are there."""
    if not (self.url and (names := list(names))):
      return
    download(self.url, names, self.path)
    now = self._stamps()
    self._pushed |= {name: now[name] for name in names if name in now}

  def size(self, name: str) -> int | None:
    """Bytes of a file, here or where it was not fetched from; None: there is none."""
    with contextlib.suppress(FileNotFoundError):
      return (self.path / name).stat().st_size
    return self._there.get(name)

  def remove(self, name: str) -> None:
    """Removes a file that may be there."""
    (self.path / name).unlink(missing_ok=True)
    self._pushed.pop(name, None)
    self._there.pop(name, None)
    if self.url:
      remove(f"{self.url}/{name}")

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if self.url and error is not None:  # A user knows the bucket alone.
      here = str(self.path)
      error.args = tuple(
        a.replace(here, self.url) if isinstance(a, str) else a for a in error.args
      )

  def _stamps(self) -> dict[str, tuple[int, int]]:
    """Name -> (time, size) of what belongs in the bucket; none of a local folder."""
    out: dict[str, tuple[int, int]] = {}
    for file in sorted(self.path.rglob("*")) if self.url else ():
      name = file.relative_to(self.path).as_posix()
      hidden = file.name.startswith(".") or name.startswith(_KEPT)
      if file.is_file() and not hidden:
        found = file.stat()
        out[name] = found.st_mtime_ns, found.st_size
    return out
