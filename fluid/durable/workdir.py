"""Whose a workdir is: one process at a time, one config, and still the same folder.

WORKDIR/config.json says which run it belongs to, WORKDIR/saved.json which checkpoint
was complete last: where that is gone, a run does not silently begin again.
"""

import json
import os
import pathlib

import jax

from fluid import config, files
from fluid.durable.lock import lock


class WorkdirError(config.ConfigError):
  """A workdir of another run, in use, damaged, or gone."""


class GoneError(WorkdirError):
  """A workdir that is not there any more."""

  at_once = True  # Nothing that is still being written has a place.


# What may differ between a workdir's config and the run that continues it: nothing
# here changes what the parameters are or what the next update computes.
_FREE = {
    'steps', 'log_every', 'eval_every', 'checkpoint_every', 'keep', 'mesh', 'evals',
    'sample', 'profile_steps', 'tensorboard', 'accum', 'data.cache', 'data.workers',
    'data.max_bad', 'optim.max_skipped', 'init', 'tokenizer.path', 'text.path',
    'model.remat', 'model.scan', 'model.attention',
}  # fmt: skip


class Workdir:
  """The folder of a run, which process 0 claims for as long as it lives."""

  def __init__(self, path):
    self.path = pathlib.Path(path)
    self._lock = self._id = None

  def claim(self, run: config.Run) -> None:
    """Makes the folder this run's, and this process its only owner.

    Raises:
      ConfigError: another process or another config has it.
      OSError: it cannot be written.
    """
    check(self.path, run)
    self.path.mkdir(parents=True, exist_ok=True)
    self._lock = lock(self.path)
    self._id = _identity(self.path)

  def check(self) -> None:
    """Raises GoneError where the folder is not the one that was claimed."""
    if self._id and _identity(self.path) != self._id:
      raise GoneError(
        f"workdir {self.path} has vanished or was replaced while the run went on; put "
        "it back and start again"
      )

  def close(self) -> None:
    """Gives the folder back."""
    if self._lock is not None:
      os.close(self._lock)


def _identity(path):
  try:
    found = os.stat(path)
  except OSError:
    return None
  return found.st_dev, found.st_ino


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
    theirs = config.to_dict(config.from_config_dict(json.loads(file.read_text())))
  except ValueError as e:
    raise WorkdirError(f"{file} is damaged ({e}); restore or remove it") from e
  mine = json.loads(json.dumps(config.to_dict(run)))
  a, b = _flat(theirs), _flat(mine)
  differ = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
  if differ:
    named = ", ".join(
      f"{k} ({a.get(k)!r} there, {b.get(k)!r} here)" for k in differ[:3]
    )
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    raise WorkdirError(
      f"workdir {path} belongs to another config: {named}{more}; "
      "choose another --workdir"
    )


def write_json(path: pathlib.Path, value) -> None:
  """Replaces the file in one step; only process 0 writes."""
  if jax.process_index() == 0:
    files.write_json(path, value)


def _flat(tree: dict, prefix: str = "") -> dict:
  out = {}
  for key, value in tree.items():
    name = prefix + key
    if name in _FREE:
      continue
    # source_args is one value: its keys belong to the data source.
    if isinstance(value, dict) and name != "data.source_args":
      out |= _flat(value, name + ".")
    else:
      out[name] = value
  return out
