"""Installed from a wheel, it works from any folder, and the analysis without jax."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata

import pytest
from packaging.requirements import Requirement

import fluid
from fluid import shipped
from fluid.durable import workdir
from tests.conftest import ROOT

PACKAGES = ("analysis", "configs", "fluid", "launch")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CHECKPOINT = "configs/checkpoints/shapes32-m/discrete-raster"

# Commands, one after the other, in one process that has imported what all of them need;
# modules whose top-level name is in HIDDEN are not there.
COMMANDS = """
import json, os, runpy, sys
from importlib.machinery import PathFinder

hidden, modules, commands = map(json.loads, sys.argv[1:])
class Finder(PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    if name.partition(".")[0] not in hidden:
      return super().find_spec(name, path, target)
sys.meta_path = [Finder if f is PathFinder else f for f in sys.meta_path]
for name in modules:
  __import__(name)
for command in commands:
  sys.stdout.flush()
  if not (child := os.fork()):
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    sys.exit(0)
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if status:
    sys.exit(f"{command} ended with status {status}")
"""


def sections(file) -> dict[str, list[str]]:
  """Extra ('' before the first) -> its requirements, without what is said of them."""
  out: dict[str, list[str]] = {"": []}
  for line in file.read_text().splitlines():
    if heading := re.fullmatch(r"# \[(\w+)\]", line):
      out[heading[1]] = []
    elif line := line.partition("#")[0].strip():
      out[list(out)[-1]].append(line)
  return out


def test_extras_are_the_sections_of_the_requirements():
  wanted = sections(ROOT / "requirements.txt")
  assert wanted.pop("") == sections(ROOT / "analysis/requirements.txt")[""]
  assert {name: EXTRAS[name] for name in wanted} == wanted
  train = f"{PROJECT['name']}[train]"
  of_tpu = sections(ROOT / "requirements-tpu.txt")[""]
  assert (
    of_tpu == ["-r requirements.txt", EXTRAS["tpu"][1]] and EXTRAS["tpu"][0] == train
  )
  assert EXTRAS["cuda"] == [train, of_tpu[1].replace("tpu", "cuda12")]


def test_a_version_and_a_name_are_one():
  cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
  assert cited and cited[1] == fluid.__version__
  assert PROJECT["name"] == workdir.DISTRIBUTION
  assert f"{PROJECT['name']}[train]" in (ROOT / "fluid/__init__.py").read_text()


@pytest.mark.parametrize("kind", ["tpu", "cuda"])
def test_images_install_what_the_extra_names(kind):
  text = (ROOT / f"launch/docker/{kind}.Dockerfile").read_text()
  packages, code = re.findall(r"^RUN pip install --no-cache-dir (.*)$", text, re.M)
  wanted = {"tpu": "-r requirements-tpu.txt"}
  wanted["cuda"] = f"-r requirements.txt '{EXTRAS['cuda'][1]}'"
  assert packages == wanted[kind] and "Not built" in text
  asked = re.fullmatch(r"-e \.\[(.*)\]", code)
  assert asked and {kind, "data", "eval", "gcs"} == set(asked[1].split(",")) <= set(
    EXTRAS
  )
  for names in re.findall(r"^COPY (.*requirements.*) \./$", text, re.M):
    assert all((ROOT / name).is_file() for name in names.split())


def test_what_comes_with_the_code_is_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert shipped.find("configs/toy.py") == str(ROOT / "configs/toy.py")
  for same in ("fluid/api.py", "configs/none.py", "toy.py", "", "gs://configs/toy.py"):
    assert shipped.find(same) == same
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs/toy.py").touch()
  assert shipped.find("configs/toy.py") == "configs/toy.py"
  assert fluid.load(CHECKPOINT).config.model.cell == "discrete-raster"


def test_the_commit_is_that_of_this_code_and_of_no_repository_around_it(
  tmp_path, monkeypatch
):
  def git(*args):
    subprocess.run(["git", "-C", tmp_path, *args], check=True, capture_output=True)

  git("init")
  who = ("-c", "user.name=a", "-c", "user.email=a@b")
  git(*who, "commit", "--allow-empty", "-m", "someone's own")
  monkeypatch.setattr(workdir, "__file__", str(tmp_path / "workdir.py"))
  origin = {"url": "https://x.y/fluid", "vcs_info": {"vcs": "git", "commit_id": "abc"}}
  found = {"direct_url.json": None}

  class Distribution:
    read_text = found.get

  monkeypatch.setattr(workdir.metadata, "distribution", lambda name: Distribution)
  assert workdir.commit() == {}
  found["direct_url.json"] = json.dumps(origin)
  assert workdir.commit() == {"commit": "abc", "commit_clean": True}


def hidden(*extras: str) -> list[str]:
  """Top-level names here that an installation with these extras need not have."""
  own = sections(ROOT / "requirements.txt")
  asked = [Requirement(line) for name in ("", *extras) for line in own[name]]
  there: set[str] = set()
  while asked:
    one = asked.pop()
    name = re.sub(r"[-_.]+", "-", one.name).lower()
    if one.marker and not any(
      one.marker.evaluate({"extra": e}) for e in (one.extras or {""})
    ):
      continue
    if name not in there:
      there.add(name)
      try:
        asked += map(Requirement, metadata.requires(name) or ())
      except metadata.PackageNotFoundError:
        continue  # Of another platform.
  return [
    module
    for module, names in metadata.packages_distributions().items()
    if module not in PACKAGES
    and not there & {re.sub(r"[-_.]+", "-", n).lower() for n in names}
  ]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel, made from a copy: setuptools leaves its files in the source."""
  folder = tmp_path_factory.mktemp("wheel")
  for name in PACKAGES:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignore)
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, folder / "source")
  left = folder / "source" / CHECKPOINT / "eval/1-ema.json"
  left.parent.mkdir(exist_ok=True)
  left.write_text("{}")
  done = subprocess.run(
    [sys.executable, "-m", "pip", "wheel", "--no-deps", f"--wheel-dir={folder}",
     str(folder / "source")],
    env=os.environ | {"PIP_RETRIES": "1", "PIP_DEFAULT_TIMEOUT": "15"},
    capture_output=True, text=True,
  )  # fmt: skip
  if "No matching distribution found for setuptools" in done.stderr:
    pytest.skip("no package index that has setuptools, which makes the wheel")
  assert done.returncode == 0, done.stderr
  (made,) = folder.glob("*.whl")
  return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
  """Runs commands with the wheel, of what it needs only that of some extras."""
  target = tmp_path_factory.mktemp("site")
  pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
  subprocess.run([*pip, f"--target={target}", str(wheel)], check=True)
  env = os.environ | {"PYTHONPATH": str(target)}

  def run(folder, *commands, imports=(), extras=(), code=COMMANDS):
    given = (hidden(*extras), imports, [c.split() for c in commands])
    argv = [sys.executable, "-c", code, *map(json.dumps, given)]
    return subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)

  where = "import fluid, sys; sys.exit(fluid.__file__)"
  out = run(target.parent, code=where)
  assert out.stderr == f"{target / 'fluid/__init__.py'}\n"
  return run


def test_the_wheel_holds_all_code_and_data_and_nothing_that_was_left(wheel):
  names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
  code = {p.relative_to(ROOT) for name in PACKAGES for p in (ROOT / name).rglob("*.py")}
  assert {n for n in names if n.endswith(".py")} == set(map(str, code))
  for folder in ("configs/tokenizers", "configs/checkpoints"):
    files = [p for p in (ROOT / folder).rglob("*") if p.is_file()]
    kept = [p for p in files if not {"eval", "samples"} & set(p.parts)]
    kept = [p for p in kept if p.name not in ("metrics.jsonl", "sample.json")]
    there = {n for n in names if n.startswith(folder)}
    assert there == {str(p.relative_to(ROOT)) for p in kept} and len(there) >= 6
  assert {"fluid/py.typed", "analysis/py.typed"} <= names
  assert wheel.stat().st_size < 25e6


def test_the_plain_install_analyses_from_any_folder(installed, tmp_path):
  out = installed(
    tmp_path,
    "analysis.fit --csv analysis/results/toy_study --json fits.json",
    "analysis.fit --csv analysis/published/fluid_table1.csv --y fid_30k",
    "analysis.plots --workdir analysis/results/toy_study --out . --only published",
    imports=["analysis"],
  )
  assert (out.returncode, out.stderr) == (0, "")
  assert "Fluid: 10x N -> fid_30k x 0.9" in out.stdout
  assert len(json.loads((tmp_path / "fits.json").read_text())) == 4
  assert (tmp_path / "published.png").is_file()
  lacking = installed(tmp_path, "fluid.sample --help")
  assert lacking.returncode and lacking.stderr.startswith(
    "error: No module named 'jax'; a plain install has what analysis needs, the rest "
    "comes with pip install 'fluid-scaling[train]'\n"
  )


def test_commands_work_from_any_folder_with_configs_of_here_and_of_the_code(
  installed, tmp_path
):
  (tmp_path / "configs").mkdir()
  mine = "from configs import toy\nget_config = toy.get_config\n"
  (tmp_path / "configs/mine.py").write_text(mine)
  tokenizer = "--config.tokenizer.path=configs/tokenizers/shapes32-vq"
  out = installed(
    tmp_path,
    f"fluid.tokenizers.train --config=configs/toy.py:tokens=discrete {tokenizer}",
    f"fluid.tokenizers.train --config=configs/mine.py:tokens=discrete {tokenizer}",
    "launch.sweep --config configs/sweeps/toy_study.py --workdir w --dry-run",
    "fluid.sample --help",
    extras=["train"],
    imports=["jax", "grain", "optax", "flax.linen", "orbax.checkpoint"],
  )
  assert (out.returncode, out.stderr) == (0, "")
  assert out.stdout.count("configs/tokenizers/shapes32-vq is done already\n") == 2
  assert out.stdout.count("-m fluid.train --config=configs/toy.py:") == 16
  assert "--prompt" in out.stdout
