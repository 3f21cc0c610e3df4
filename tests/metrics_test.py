"""Means that add up, files without duplicates, rates that count training only."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np

from fluid.training.clocks import Timer
from fluid.training.log import Log, Writer
from fluid.training.mean import Mean
from tests import tiny


def test_means_add_up_to_the_mean_of_everything():
  x = jnp.arange(12.0).reshape(3, 4)
  w = jnp.array([[1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
  parts = [Mean.of(a, b) for a, b in zip(x, w)]
  total = parts[0] + parts[1] + parts[2]
  np.testing.assert_allclose(total.value, np.asarray(x)[np.asarray(w)].mean())
  assert float(total.count) == 7 and float(parts[1].value) == 0


def test_weights_broadcast_over_trailing_axes_and_hide_nan():
  x = jnp.array([[1.0, 3.0], [jnp.nan, jnp.inf]])
  mean = Mean.of(x, jnp.array([True, False]))
  assert float(mean.value) == 2.0 and float(mean.count) == 2.0


def _read(path):
  return [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_file_has_every_step_once(tmp_path):
  first = Writer(tmp_path, clock=lambda: 5.0)
  for step in (1, 2, 3):
    first.write(step, {"a": np.float32(step), "features": "EffNet"})
  first.close()
  with (tmp_path / "metrics.jsonl").open("a") as f:
    f.write('{"step": 4, "a"')
  again = Writer(tmp_path, step=2, clock=lambda: 6.0)
  again.write(3, {"a": jnp.inf})
  again.close()
  assert _read(tmp_path) == [
    {"step": 1, "time": 5.0, "a": 1.0, "features": "EffNet"},
    {"step": 2, "time": 5.0, "a": 2.0, "features": "EffNet"},
    {"step": 3, "time": 6.0, "a": None},
  ]


def test_tensorboard_gets_the_numbers(tmp_path):
  writer = Writer(tmp_path, tensorboard=True)
  writer.write(1, {"a": 1.0, "features": "EffNet"})
  writer.close()
  assert list((tmp_path / "tensorboard").glob("events.*"))


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


def test_timer_leaves_evaluation_out_and_counts_waiting():
  clock = Clock()
  timer = Timer(clock)
  clock.now = 4.0
  with timer.wait():
    clock.now = 5.0
  with timer.exclude():
    clock.now = 100.0
  clock.now = 103.0
  assert timer.lap() == (8.0, 1 / 8)
  clock.now = 105.0
  assert timer.lap() == (2.0, 0.0)


class Good:
  counts = {}

  def check(self, step, values, report):
    pass


def test_log_reads_one_step_late_and_reports_rates(tmp_path, capsys):
  clock = Clock()
  cfg = dataclasses.replace(tiny.run(), log_every=2, steps=5, batch=8)
  log = Log(cfg, tmp_path, Good(), step=0, flops=100.0, peak=1200.0, clock=clock)
  value = lambda step: {"train/loss": jnp.float32(step)}
  clock.now = 10.0
  log.step(1, value(1))
  log.first(1, "first step after 10 s")
  assert "first step after 10 s" in capsys.readouterr().out
  for step in (2, 3, 4, 5):
    clock.now += 2.0
    log.step(step, value(step))
    assert [x["step"] for x in _read(tmp_path)] == list(range(2, step, 2))
  log.flush()
  lines = _read(tmp_path)
  assert [(x["step"], x["train/loss"]) for x in lines] == [(2, 2), (4, 4), (5, 5)]
  # Steps 3 and 4 in 4 s: 16 images; 3 x 100 FLOPs each of 1200 a second.
  assert lines[1]["images_per_s"] == 4.0 and lines[1]["mfu"] == 1.0
  out = capsys.readouterr().out
  assert "step 4/5  loss 4.0000  4.0 images/s  MFU 100.0%  ETA 0:02" in out
  log.close()
