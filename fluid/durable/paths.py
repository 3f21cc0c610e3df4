"""Where a run finds what was made before it, from any folder and after a move."""

import dataclasses
import os

from fluid.config import Run

# (section, field) of the config.
_FIELDS = (
  ("tokenizer", "path"),
  ("data", "cache"),
  ("text", "path"),
  ("init", "workdir"),
)


def absolute(path: str) -> str:
  """A path that holds in any working directory; '' and gs://... stay."""
  return path if not path or "://" in path else os.path.abspath(path)


def made_absolute(run: Run) -> Run:
  """The same run with `absolute` paths, as its workdir's config.json keeps them."""
  return _with_paths(run, absolute)


def moved(run: Run, old: str, new: str) -> Run:
  """The run of workdir `old`, found in `new`: what is gone is looked for beside it.

  A sweep's folder can so be copied or renamed as a whole.
  """

  def move(path):
    if not path or "://" in path or os.path.exists(path):
      return path
    there = os.path.normpath(os.path.join(new, os.path.relpath(path, old)))
    return there if os.path.exists(there) else path

  return _with_paths(run, move)


def _with_paths(run, change):
  for section, field in _FIELDS:
    part = getattr(run, section)
    part = dataclasses.replace(part, **{field: change(getattr(part, field))})
    run = dataclasses.replace(run, **{section: part})
  return run
