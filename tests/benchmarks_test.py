"""Benchmarks run on any config, and say what they say of it."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import safety, sample, sample_speed, timing
from fluid import config, flops, models
from fluid.console import cli
from fluid.models import orders
from fluid.models.trunks.fluid import FluidConfig
from tests import tiny

ROOT = pathlib.Path(__file__).parents[1]


def _command(module, *args):
  command = [sys.executable, "-m", f"benchmarks.{module}", *args]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_train_step_by_its_command(tmp_path):
  file = tmp_path / "report.json"
  done = _command(
    "train_step", "--config=configs/toy.py:size=xs", "--batch=4", "--rounds=2",
    f"--json={file}", "--config.model.trunk.layers=1", "--config.text.vocab_size=40",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  report = json.loads(file.read_text())
  ours = report["ours"]
  assert ours["rounds"] == 2 and ours["median_s"] > 0
  rate = report["flops"] / ours["median_s"]
  assert ours["flops_per_s"] == pytest.approx(rate)
  share = rate / report["matmul_flops_per_s"]
  assert ours["share_of_matmul"] == pytest.approx(share)
  # Parameters, two moments and the average are held, in float32.
  assert report["program_bytes"] > 4 * 4 * report["parameters"]


def _tiny(head, order, **sample):
  cfg = tiny.run(head, order, changes={"trunk__layers": 2})
  few = {"diffusion_steps": 3, "steps": 4}
  few = {k: v for k, v in few.items() if k in cfg.sample.flat()}
  changed = cfg.sample.replace(batch=3, **few, **sample)
  return tiny.net(cfg), dataclasses.replace(cfg, sample=changed)


# Orders that Fluid's trunk can follow.
FOLLOWED = [
  o for o in orders.ORDERS if config.resolve("order", o).pattern in FluidConfig.follows
]


@pytest.mark.parametrize("head", tiny.SPECS)
@pytest.mark.parametrize("order", FOLLOWED)
def test_sample_speed_counts_the_work_of_any_cell(head, order, monkeypatch):
  net, cfg = _tiny(head, order, guidance=2.0)
  monkeypatch.setattr(models.Net, "of", lambda run: net)
  monkeypatch.setattr(timing, "MATMUL", 64)
  raster = order == "raster"
  report = sample_speed.measure(cfg, None, positions=raster, rounds=2)
  # The trunk runs on both halves, once a step on all tokens or on each token once.
  trunk = 2 * 3 * flops.forward(net)["core"]
  passes = cfg.sample.flat().get("steps", 1)
  assert 0.3 * passes * trunk < report["flops"]
  assert report["ours"]["seconds_per_image"] == report["ours"]["median_s"] / 3
  assert ("positions" in report) == raster


def test_safety_splits_a_save_from_the_steps_around_it(tmp_path, monkeypatch):
  monkeypatch.setattr(models.Net, "of", tiny.net)
  monkeypatch.setattr(
    safety, "random_batch", lambda net, rows: tiny.batch(tiny.run(), rows)
  )
  report = safety.saving(tiny.run(), tmp_path, every=200, rounds=1)
  assert len(report["ratios"]) == report["cost"]["rounds"] == 1
  # Parameters, two moments and the average, in float32, and the counts.
  assert report["state_bytes"] > 16 * flops.parameters(tiny.net(tiny.run()))["total"]
  assert 0 < report["pause"]["median_s"] and 0 < report["step"]["median_s"]


def test_positions_are_for_raster_order():
  _, cfg = _tiny("diffusion", "random")
  with pytest.raises(cli.UserError, match="raster"):
    sample_speed.measure(cfg, None, positions=True, rounds=1)


def _row(seconds, kid, geneval):
  return {
    "seconds_per_image": seconds, "kid": kid, "kid_lo": kid - 0.1, "kid_hi": kid + 0.1,
    "geneval/overall": geneval, "geneval/overall_lo": geneval - 0.1,
    "geneval/overall_hi": geneval + 0.1, "setting": {},
  }  # fmt: skip


def test_the_fastest_setting_inside_the_intervals_becomes_the_default():
  rows = [_row(8, 0.2, 0.5), _row(4, 0.25, 0.45), _row(2, 0.35, 0.5), _row(1, 0.2, 0.3)]
  sample.judge(rows)
  assert [r["as_good"] for r in rows] == [True, True, False, False]
  assert [r["default"] for r in rows] == [False, True, False, False]
  assert [r["speedup"] for r in rows] == [1, 2, 4, 8]
  text = sample.table({"cell": "c", "size": "s", "workdir": "w", "rows": rows})
  assert text.count("worse") == 2 and text.count("default") == 1


def test_settings_are_parsed_and_refused():
  assert sample.parse("solver=dpmpp,steps=8,guidance=1.5") == {
    "solver": "dpmpp", "steps": 8, "guidance": 1.5,
  }  # fmt: skip
  with pytest.raises(cli.UserError, match="unknown sampling option 'stepz'"):
    sample.parse("stepz=8")


def test_prepare_stands_beside_its_parts(tmp_path):
  """Share of the floor is of the same images, all of which are prepared each time."""
  file = tmp_path / "report.json"
  done = _command(
    "prepare", "--images=24", "--rounds=1", "--batch=8", f"--json={file}",
    "--config=configs/toy.py:tokens=discrete",
    "--config.tokenizer.path=configs/tokenizers/shapes32-vq",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  report = json.loads(file.read_text())
  assert 16 < report["images"] <= 24  # Some are held out.
  rates = report["images_per_second"]
  assert report["floor"] < min(rates["decode"], rates["encode"])
  assert report["share_of_floor"] == pytest.approx(rates["prepare"] / report["floor"])
