"""The code of a job: a copy, an image or a commit, which nothing changes afterwards."""

import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from fluid import shipped
from fluid.errors import ConfigError
from launch.spec import Code

ROOT = Path(__file__).resolve().parents[1]


def copied(workdir: Path, root: Path = ROOT) -> Code:
  """The tracked files as they are now, in a folder of the sweep (see `write`)."""
  commit, _ = _state(root)
  return Code(commit, folder=f"{workdir}/code/{commit.replace('+', '-')[:53]}")


def in_image(image: str, root: Path = ROOT) -> Code:
  """An image, which has to be named by digest; the commit is that of this checkout."""
  if not re.search(r"@sha256:[0-9a-f]{64}$", image):
    raise ConfigError(
      f"image '{image}' has no digest, so a restart could get another one: name it "
      "as NAME@sha256:... (docker push and docker inspect print it)"
    )
  return Code(_state(root)[0], image=image)


def cloned(repository: str, root: Path = ROOT) -> Code:
  """This checkout's commit, from where machines can clone it."""
  commit, _ = _state(root)
  if not repository:
    try:
      repository = _git(root, "remote", "get-url", "origin").strip()
    except ConfigError:
      raise ConfigError(
        "this checkout has no remote to clone from: --set repository=URL"
      ) from None
  return Code(commit, repository=repository)


def committed(code: Code, root: Path = ROOT) -> None:
  """Refuses what machines could not clone, as far as this checkout knows."""
  if "+" in code.commit:
    raise ConfigError(
      "files differ from the last commit, and the machines clone that: commit and push"
    )
  if ":" not in code.repository:
    raise ConfigError(
      f"{code.repository} is a folder here, which the machines that clone it do not "
      "have: --set repository=URL"
    )
  remotes = [
    name for name in _git(root, "remote").split()
    if _git(root, "remote", "get-url", name).strip() == code.repository
  ]  # fmt: skip
  there = ("branch", "--remotes", "--contains", code.commit, "--list")
  if remotes and not _git(root, *there, *(f"{name}/*" for name in remotes)):
    raise ConfigError(
      f"no branch of {code.repository} has commit {code.commit[:12]}, and the machines "
      "clone that: git push (and git fetch, where it was pushed from elsewhere)"
    )


def write(code: Code, root: Path = ROOT) -> None:
  """Makes `code.folder`, where it is not there yet."""
  folder = Path(code.folder)
  if not code.folder or folder.is_dir():
    return
  commit, tree = _state(root)
  if commit != code.commit:
    raise ConfigError("files changed while the sweep was submitted; submit it again")
  archive = subprocess.run(
    ["git", "archive", "--format=tar", tree], cwd=root, capture_output=True, check=True
  )
  folder.parent.mkdir(parents=True, exist_ok=True)
  scratch = Path(tempfile.mkdtemp(dir=folder.parent))
  try:
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
      tar.extractall(scratch, filter="tar")
    scratch.chmod(0o755)
    os.rename(scratch, folder)
  finally:
    shutil.rmtree(scratch, ignore_errors=True)


def tracked(path: str, root: Path = ROOT) -> bool:
  """Whether a file of this checkout would be in a copy; others are named by path."""
  absolute = (root / path).resolve()
  if not absolute.is_relative_to(root) or os.path.isabs(path):
    return True
  try:
    _git(root, "ls-files", "--error-unmatch", path)
  except ConfigError:
    return False
  return True


def has(path: str, root: Path = ROOT) -> bool:
  """Whether a relative path is of a file or folder that the code of a job has, too."""
  found = Path(shipped.find(path)).resolve()
  return found.is_relative_to(root) and found == root / path and tracked(path, root)


def _state(root: Path) -> tuple[str, str]:
  """(commit, with '+tree' behind it where files differ; tree of the files as they are).

  Files that git was told of count, whether they are committed or not.
  """
  try:
    head = _git(root, "rev-parse", "HEAD").strip()
  except ConfigError as e:
    raise ConfigError(
      f"{root} is no git checkout, so a run could not say which code it is: launch "
      f"from a clone ({e})"
    ) from e
  with tempfile.TemporaryDirectory() as scratch:
    index = _git(root, "rev-parse", "--path-format=absolute", "--git-path", "index")
    there = Path(scratch) / "index"
    shutil.copy(index.strip(), there)
    env = os.environ | {"GIT_INDEX_FILE": str(there)}
    _git(root, "add", "-u", env=env)
    tree = _git(root, "write-tree", env=env).strip()
  same = tree == _git(root, "rev-parse", "HEAD^{tree}").strip()
  return (head if same else f"{head}+{tree[:12]}"), tree


def _git(root: Path, *args: str, env=None) -> str:
  try:
    done = subprocess.run(
      ["git", *args], cwd=root, env=env, capture_output=True, text=True
    )
  except OSError as e:
    raise ConfigError(f"git cannot be run: {e.strerror}") from e
  if done.returncode:
    said = done.stderr.strip().splitlines() or ["no output"]
    raise ConfigError(f"git {args[0]}: {said[-1]}")
  return done.stdout
