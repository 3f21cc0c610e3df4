"""Where a run finds what was made before it, from any folder and after a move."""

import fcntl
import hashlib
import json
import os
import pathlib
import shutil

from fluid import config, remote
from fluid.config import Run
from fluid.config.identity import places
from fluid.parallel import distributed


def absolute(path: str) -> str:
  """A path that holds in any working directory; '' and gs://... stay."""
  return path if not path or "://" in path else os.path.abspath(path)


def made_absolute(run: Run) -> Run:
  """The same run with `absolute` paths, as its workdir's config.json keeps them."""
  return places(run, absolute)


def near(run: Run) -> Run:
  """The run with copies on this host of caches and a tokenizer that lie in buckets.

  A copy is made once, whole, in $FLUID_CACHE (~/.cache/fluid), and belongs to just
  these objects: others in their place are copied anew.
  """
  return config.replaced(
    run,
    {
      "data.cache": here(run.data.cache),
      "data.mixture": tuple(map(here, run.data.mixture)),
      "tokenizer.path": here(run.tokenizer.path),
    },
  )


def here(path: str) -> str:
  """The copy of a folder that lies in a bucket, see `near`; others are their own."""
  if not remote.is_url(path):
    return path
  bucket, root = remote.opened(path)
  with remote.asking(path):
    found = bucket.find(root, detail=True)
  if not found:
    raise config.ConfigError(f"nothing is at {path}")
  names = sorted(found)
  stamps = [[n, found[n]["size"], str(found[n].get("generation"))] for n in names]
  key = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]
  base = pathlib.Path(os.environ.get("FLUID_CACHE", "~/.cache/fluid")).expanduser()
  base.mkdir(parents=True, exist_ok=True)
  target = base / f"{root.rpartition('/')[2]}-{key}"
  with (base / f".{target.name}.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # One process of a host copies, the others wait.
    if not target.exists():
      scratch = base / f".{target.name}.tmp"
      shutil.rmtree(scratch, ignore_errors=True)
      relative = [remote.below(root, name) for name in names]
      batches = [relative[i : i + 8] for i in range(0, len(names), 8)]
      for batch in distributed.track(batches, f"copying {path}", len(batches)):
        remote.download(path, batch, scratch)
      scratch.rename(target)
  return str(target)


def moved(run: Run, old: str, new: str, url: str = "") -> Run:
  """The run of workdir `old`, found in `new`: what is gone is looked for beside it.

  A sweep's folder can so be copied or renamed as a whole.

  Args:
    url: of the folder in a bucket that `new` is a copy of.
  """
  bucket, there, folder = (url or new).rpartition("://")

  def move(path):
    if path and "://" not in path and not os.path.isabs(path):  # Of one given away.
      return bucket + there + os.path.normpath(os.path.join(folder, path))
    if not path or "://" in path or os.path.exists(path):
      return path
    beside = os.path.normpath(os.path.join(new, os.path.relpath(path, old)))
    return beside if os.path.exists(beside) else path

  return places(run, move)
