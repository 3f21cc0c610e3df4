"""Whose a workdir is: one process at a time, one config, and still the same folder.

WORKDIR/config.json says which run it belongs to, WORKDIR/saved.json which checkpoint
was complete last: where that is gone, a run does not silently begin again.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import time
import uuid
from importlib import metadata
from typing import Any

from fluid import config, files, remote
from fluid.config.identity import differences, identity
from fluid.durable.lock import lock
from fluid.errors import NO_PROGRESS

DISTRIBUTION = "fluid-scaling"  # As pyproject.toml names it.


class WorkdirError(config.ConfigError):
  """A workdir of another run, in use, damaged, or gone."""


class GoneError(WorkdirError):
  """A workdir that is not there any more."""

  at_once = True  # Nothing that is still being written has a place.


class NoProgressError(WorkdirError):
  """A run that is started again and again, and gets nowhere."""

  exit_code = NO_PROGRESS


OWNER = "owner.json"
LOST = (
  120.0  # Seconds given to the lock of a machine that is lost: NFS keeps it for 90.
)
TEND = 60.0  # Seconds between two uploads of what was logged.


class Workdir:
  """The folder of a run, which process 0 claims for as long as it lives.

  One in a bucket has no lock: owner.json says who has it, whoever starts last writes
  that, and those before it stop where they read it.

  Attributes:
    path: of its files; of a bucket's folder, of their mirror on this host.
    place: where checkpoints lie: the folder itself, or its URL.
  """

  def __init__(self, path):
    self._mirror = remote.Mirror(path)
    self.path, self._url = self._mirror.path, self._mirror.url
    self.place = self._url or self.path
    self._lock = self._id = None
    self._tended = time.monotonic()

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    self.close()
    if self._url and error is not None:
      if not isinstance(error, GoneError):
        with contextlib.suppress(config.ConfigError):  # There is one to tell already.
          self.push()
      here = str(self.path)
      error.args = tuple(
        a.replace(here, self._url) if isinstance(a, str) else a for a in error.args
      )

  def claim(self, run: config.Run) -> None:
    """Makes the folder this run's, and this process its only owner.

    Raises:
      ConfigError: another process or another config has it.
      AwayError: one of another machine has it, or had it and is lost.
      OSError: it cannot be written.
    """
    check(self.path, run)
    self.path.mkdir(parents=True, exist_ok=True)
    self._lock = lock(self.path, wait=LOST)
    if self._url:
      who = {"host": socket.gethostname(), "process": os.getpid()}
      files.write_json(f"{self._url}/{OWNER}", who | {"start": uuid.uuid4().hex})
    self._id = self._identity()

  def check(self) -> None:
    """Raises GoneError where the folder is not the one that was claimed."""
    if self._id and self._identity() != self._id:
      taken = f", or another start has taken it ({OWNER} names it)" if self._url else ""
      raise GoneError(
        f"workdir {self.place} has vanished or was replaced while the run went on"
        f"{taken}; put it back and start again"
      )

  def push(self) -> None:
    """Uploads what has changed, where the folder is in a bucket and still ours."""
    if self._url and self._id:
      self.check()
      self._mirror.push()
      self._tended = time.monotonic()

  def tend(self) -> None:
    """`check`, and now and then `push`, as a bucket is not asked at every step."""
    if not self._url:
      self.check()
    elif time.monotonic() - self._tended > TEND:
      self.push()

  def _identity(self):
    if self._url:
      return remote.read_bytes(f"{self._url}/{OWNER}")
    try:
      found = os.stat(self.path)
    except OSError:
      return None
    return found.st_dev, found.st_ino

  def count_start(self, most: int) -> None:
    """Counts this start; process 0 calls it, once it has claimed the folder.

    Args:
      most: starts in a row that may bring no new checkpoint; 0: any number.

    Raises:
      NoProgressError: there were as many.
    """
    file = self.path / "starts.json"
    try:
      old = json.loads(file.read_text())
    except (OSError, ValueError):
      old = {}
    saved = self._saved()
    since = old.get("since", 0) if old.get("saved", saved) == saved else 0
    if most and since >= most:
      raise NoProgressError(
        f"{self.path} was started {since} times in a row without a new checkpoint "
        f"(the last one is of step {saved}): read its log, repair what ends it, remove "
        f"{file} and start again"
      )
    said = {"saved": saved, "since": since + 1, "total": old.get("total", 0) + 1}
    files.write_json(file, said)

  def _saved(self) -> int:
    try:
      return int(json.loads((self.path / "saved.json").read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
      return 0

  def close(self) -> None:
    """Gives the folder back."""
    if self._lock is not None:
      os.close(self._lock)


def commit() -> dict[str, Any]:
  """The commit of this code, and whether it was changed since; empty where unknown.

  FLUID_COMMIT says it where the code is a copy: 'COMMIT', or 'COMMIT+...' if changed.
  """
  if said := os.environ.get("FLUID_COMMIT"):
    stated, changed, _ = said.partition("+")
    return {"commit": stated, "commit_clean": not changed}
  here = pathlib.Path(__file__)

  def git(*args):
    done = subprocess.run(
      ["git", *args], cwd=here.parent, capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else None

  try:  # Installed below someone's own repository, this file is none of its files.
    ours = git("ls-files", "--error-unmatch", here.name) is not None
    found, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
  except OSError:  # There is no git.
    ours = False
  if not ours:
    found, changed = _installed(), ""
  return {"commit": found, "commit_clean": not changed} if found else {}


def _installed() -> str | None:
  """The commit that pip installed from, where that was a URL of git."""
  try:
    origin = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
  except metadata.PackageNotFoundError:
    return None
  return json.loads(origin or "{}").get("vcs_info", {}).get("commit_id")


def check(path: pathlib.Path, run: config.Run) -> None:
  """Refuses a workdir whose config.json belongs to another run.

  Raises:
    WorkdirError: naming the first keys that differ and both values.
  """
  file = path / "config.json"
  if not file.exists():
    if (path / "checkpoints").exists():
      raise WorkdirError(
        f"workdir {path} has checkpoints but no config.json; restore it, or choose "
        "another --workdir"
      )
    return
  try:
    theirs = identity(config.from_file(file))
  except config.ConfigError as e:
    raise WorkdirError(str(e)) from e
  mine = identity(run)
  if differ := differences(theirs, mine):
    named = ", ".join(
      f"{k} ({theirs.get(k)!r} there, {mine.get(k)!r} here)" for k in differ[:3]
    )
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    raise WorkdirError(
      f"workdir {path} belongs to another config: {named}{more}; "
      "choose another --workdir"
    )
