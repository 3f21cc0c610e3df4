"""Files that are there whole or not at all: a reader never sees a part.

What is written goes to a scratch file beside it, to disk, and takes the name at last.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import secrets
import time
from collections.abc import Iterator
from typing import Any

from fluid import remote
from fluid.errors import ConfigError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a path to write to, which becomes `path` where the block ends well.

  Folders that are missing are made. An error leaves what was there, and no scratch.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Hidden, and without the file's own ending: nothing takes it for one of its kind. Of
  # many hosts that write to one folder, containers give all processes one number.
  own = f"{os.getpid()}-{secrets.token_hex(4)}"
  scratch = path.with_name(f".{path.name}.{own}.tmp")
  try:
    yield scratch
    with scratch.open("rb+") as f:
      os.fsync(f.fileno())
    os.replace(scratch, path)
  except BaseException:
    with contextlib.suppress(OSError):
      scratch.unlink()
    raise


def remove_scratch(folder: pathlib.Path) -> None:
  """Removes what writers left that were killed: scratch nobody wrote to for an hour."""
  for scratch in folder.glob(".*.tmp"):
    with contextlib.suppress(FileNotFoundError):
      if time.time() - scratch.stat().st_mtime > 3600:
        scratch.unlink()


def sha256(path: str | os.PathLike) -> str:
  """Of a file's content, in hexadecimal."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
  if remote.is_url(path):  # An object is there whole or not at all.
    parent, _, name = str(path).rpartition("/")
    return remote.write(parent, {name: content})
  with replacing(path) as scratch:
    scratch.write_bytes(content)


def write_text(path: str | os.PathLike, content: str) -> None:
  write_bytes(path, content.encode())


def write_json(path: str | os.PathLike, value: Any) -> None:
  write_text(path, json.dumps(value, indent=2) + "\n")


def place(path: str | os.PathLike, name: str) -> pathlib.Path | remote.Url:
  """A folder to join names to: of this host, absolute, or in a bucket.

  Raises:
    ConfigError: it is empty, a file, or an address of something else; naming the flag
      `name`.
  """
  if not str(path):
    raise ConfigError(f"{name} is empty; a folder here is '.'")
  if remote.is_bucket(path):
    return remote.Url(str(path).rstrip("/"))
  remote.check(path, name)
  no_file(path, name)
  return pathlib.Path(path).resolve()


def no_file(path: str | os.PathLike, name: str) -> None:
  """Refuses a file where a folder is, or will be; naming the flag or key `name`."""
  if os.path.isfile(path):
    raise ConfigError(f"{name} is {path}, which is a file: name a folder")


def read_text(path: str | os.PathLike) -> str:
  """Raises FileNotFoundError where it is not there."""
  if not remote.is_url(path):
    return pathlib.Path(path).read_text()
  content = remote.read_bytes(path)
  if content is None:
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
  return content.decode()


def tail(path: str | os.PathLike, size: int) -> bytes:
  """The last bytes of a file; none where it is not there."""
  if remote.is_url(path):
    return remote.tail(path, size)
  try:
    with open(path, "rb") as f:
      f.seek(max(0, os.fstat(f.fileno()).st_size - size))
      return f.read()
  except FileNotFoundError:
    return b""


def names(folder: str | os.PathLike) -> set[str]:
  """What lies in a folder; nothing where there is none."""
  if remote.is_url(folder):
    return remote.names(folder)
  try:
    return set(os.listdir(folder))
  except FileNotFoundError:
    return set()


def remove(path: str | os.PathLike) -> None:
  """Removes a file that may be there."""
  if remote.is_url(path):
    return remote.remove(path)
  pathlib.Path(path).unlink(missing_ok=True)


def on_disk(path: str | os.PathLike, name: str) -> None:
  """Refuses an address where a folder of this host is needed.

  Raises:
    ConfigError: naming the flag or key `name`.
  """
  if remote.is_url(path):
    raise ConfigError(
      f"{name} is {path}, and has to lie on a file system here; mount the bucket "
      "(gcsfuse, a shared disk) and name the folder that it is there"
    )
  remote.check(path, name)


@contextlib.contextmanager
def turn(path: pathlib.Path, *, wait: bool) -> Iterator[bool]:
  """Yields whether a piece of work that processes share is ours to do now.

  Where the file system has no locks it always is: what is done twice must do no harm.

  Args:
    path: a file that stands for the work; made, and left there.
    wait: for another process to end with it, if one has it.
  """
  with path.open("w") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
      return
    except OSError:
      pass
    yield True
