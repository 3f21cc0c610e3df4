"""Run directories and tables behind a URL: what the analysis reads of them, fetched.

Checkpoints stay where they are. Needs fsspec and the package of the protocol (gcsfs for
gs://), which are not requirements of the analysis of local files.
"""

import atexit
import shutil
import tempfile
from pathlib import Path, PurePosixPath

_ROOT = Path(__file__).parents[2]  # Of what comes with the code.
# Below a sweep, a run, or a folder of runs.
_WANTED = (
  "*.json",
  "metrics.jsonl",
  "samples/step_*.png",
  "samples/prompts.json",
  "eval/*.json",
)
_DEPTHS = ("", "*/", "runs/*/")
_TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


class RemoteError(ValueError):
  """A URL that cannot be read here; the message names the remedy."""


def local(path: str | Path) -> Path:
  """A local path for a path or URL; what is behind a URL is copied, anew each time.

  analysis/results/... and analysis/published/... come with the code, from any folder.
  """
  text = str(path)
  if "://" not in text:
    mine, ours = Path(text), _ROOT / text
    shipped = mine.parts[:1] == ("analysis",) and not mine.exists() and ours.exists()
    return ours if shipped else mine
  try:
    import fsspec

    files, root = fsspec.core.url_to_fs(text)
  except ImportError as error:
    package = getattr(error, "name", None) or "gcsfs"
    raise RemoteError(
      f"{text} needs the package {package}: pip install fsspec gcsfs"
    ) from error
  except ValueError as error:
    raise RemoteError(f"{text}: {error}") from error
  root = root.rstrip("/")
  folder = Path(tempfile.mkdtemp(prefix="fluid-analysis-"))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  target = folder / PurePosixPath(root).name
  if root.endswith(_TABLES):
    _get(files, root, target, text)
    return target
  patterns = [f"{root}/{depth}{want}" for depth in _DEPTHS for want in _WANTED]
  found = [name for pattern in patterns for name in files.glob(pattern)]
  if not found:
    raise FileNotFoundError(f"no run, sweep or table at {text}")
  prefix = root.lstrip("/")
  for name in dict.fromkeys(found):
    _get(files, name, target / name.lstrip("/")[len(prefix) + 1 :], text)
  return target


def _get(files, name: str, target: Path, text: str) -> None:
  target.parent.mkdir(parents=True, exist_ok=True)
  try:
    files.get_file(name, str(target))
  except FileNotFoundError as error:
    raise FileNotFoundError(f"no such file: {text}") from error
