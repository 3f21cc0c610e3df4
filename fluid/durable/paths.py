"""Where a run finds what was made before it, from any folder and after a move."""

import os

from fluid.config import Run
from fluid.config.identity import places


def absolute(path: str) -> str:
  """A path that holds in any working directory; '' and gs://... stay."""
  return path if not path or "://" in path else os.path.abspath(path)


def made_absolute(run: Run) -> Run:
  """The same run with `absolute` paths, as its workdir's config.json keeps them."""
  return places(run, absolute)


def moved(run: Run, old: str, new: str) -> Run:
  """The run of workdir `old`, found in `new`: what is gone is looked for beside it.

  A sweep's folder can so be copied or renamed as a whole.
  """

  def move(path):
    if path and "://" not in path and not os.path.isabs(path):
      return os.path.normpath(os.path.join(new, path))  # Of a folder given away.
    if not path or "://" in path or os.path.exists(path):
      return path
    there = os.path.normpath(os.path.join(new, os.path.relpath(path, old)))
    return there if os.path.exists(there) else path

  return places(run, move)
