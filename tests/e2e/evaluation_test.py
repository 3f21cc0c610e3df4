"""Evaluation of a shipped checkpoint: one set of numbers, however it was had."""

import json
import math
import pathlib
import shutil

import pytest

from tests.e2e import lab as lab_lib
from tests.shipped_test import configs  # noqa: F401

MODULE = "tests.e2e.evaluated"
OVERRIDES = (
  "geneval.n=6", "distribution.metrics=('all',)", "distribution.real=40",
  "reconstruction.examples=80", "reconstruction.metrics=('psnr','ssim','fid','fd')",
)  # fmt: skip


def _found(workdir: pathlib.Path) -> tuple[dict, list[dict]]:
  """Values, and records without what is another in each run."""
  [file] = workdir.glob("eval/*.json")
  content = json.loads(file.read_text())
  values = {k: v for k, v in content["values"].items() if "sample/seconds" not in k}
  records = content["records"]
  for record in records:
    record.pop("checkpoint")
  return values, records


def _said(records: list[dict]) -> list[dict]:
  """All but the numbers."""
  numbers = ("value", "lo", "hi", "std")
  return [{k: v for k, v in r.items() if k not in numbers} for r in records]


def _parts(workdir: pathlib.Path) -> list[pathlib.Path]:
  return sorted(workdir.glob("eval/images/*/*.npy"))


@pytest.mark.slow
def test_numbers_do_not_hang_on_devices_processes_and_interruptions(configs, tmp_path):  # noqa: F811
  """All metrics of one device, of two processes, and killed and gone on with eight."""
  lab = lab_lib.Lab(tmp_path, seed=0)
  (tmp_path / "logs").mkdir()
  shipped = next((configs / "checkpoints").glob("*/discrete-raster"))

  def run(name, processes=1, devices=1):
    workdir = shipped.with_name(name)  # Beside the others: tokenizers are found.
    if not workdir.exists():
      shutil.copytree(shipped, workdir)
    args = ["--workdir", str(workdir), "--evals=geneval,distribution,reconstruction"]
    args += [f"--override=evals.{o}" for o in OVERRIDES]
    if processes > 1:
      return workdir, lab.together(MODULE, processes, devices, *args)
    return workdir, [lab.start(MODULE, *args, devices=devices)]

  killed, [process] = run("killed")
  assert process.until(lambda: len(_parts(killed)) >= 2)
  process.kill()
  before = {p: p.stat().st_mtime_ns for p in _parts(killed)}
  assert 2 <= len(before) < 5 + 5  # Drawn images, and decoded ones.
  found = {}
  for name, options in (
    ("one", {}),
    ("killed", {"devices": 8}),
    ("two", {"processes": 2, "devices": 2}),
  ):
    workdir, processes = run(name, **options)
    for process in processes:
      process.end()
    found[name] = _found(workdir)
  assert {p: p.stat().st_mtime_ns for p in _parts(killed) if p in before} == before
  values, records = found["one"]
  metrics = {r["metric"].partition("@")[0] for r in records}
  assert {"fid", "sfid", "inception_score", "kid", "precision", "recall", "density",
    "coverage", "cmmd", "fd", "vendi", "clip_score", "fid_infinity", "psnr",
    "ssim"} <= metrics  # fmt: skip
  assert all(r["value"] is not None for r in records) and values["geneval/colors_n"]
  for name in ("killed", "two"):
    other, described = found[name]
    assert other.keys() == values.keys()
    for key, value in values.items():
      same = isinstance(value, float) and math.isclose(other[key], value, rel_tol=1e-4)
      assert same or other[key] == value, (name, key, other[key], value)
    assert _said(described) == _said(records)
