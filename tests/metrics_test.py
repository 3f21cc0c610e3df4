"""Means that add up, files without duplicates, rates that count training only."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np

from fluid.training.clocks import Clocks
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


def test_laps_leave_evaluation_out_and_count_waiting():
  clock = Clock()
  clocks = Clocks(clock=clock, wall=clock)
  clocks.started()
  clock.now = 4.0
  with clocks.of("input"):
    clock.now = 5.0
  with clocks.of("evaluations"):
    clock.now = 100.0
  clock.now = 103.0
  assert clocks.lap() == (8.0, 1 / 8)
  clock.now = 105.0
  assert clocks.lap() == (2.0, 0.0)


def test_goodput_is_of_all_starts_and_every_second_has_one_cause(tmp_path):
  clock, file = Clock(), tmp_path / "goodput.json"

  def start(began, saved):
    clock.now = began + 3.0  # Of imports, one to join.
    clocks = Clocks(began, join=1.0, clock=clock, wall=clock)
    with clocks.of("restore"):
      clock.now += 2.0
    clocks.resume(file, saved)
    with clocks.of("compile"):
      clock.now += 4.0
    said = clocks.started()
    assert said | {"rest": 0} == {
      "imports": 2, "join": 1, "restore": 2, "compile": 4, "rest": 0,
    }  # fmt: skip
    return clocks

  def steps(clocks, seconds):
    clock.now += seconds
    clocks.tend()

  first = start(1000.0, {})
  steps(first, 40.0)
  with first.of("saves"):
    clock.now += 1.0
    first.write()
    saved = first.total()
  steps(first, 20.0)  # Written at its end, and not again before the kill.
  clock.now += 5.0
  assert clock.now == 1075.0
  # Ten seconds later it begins again: 20 s are done again, and of 5 s nobody knows.
  second = start(1085.0, saved)
  found = second.total()
  assert found["steps"] == 40.0 and found["redone"] == 20.0 and found["down"] == 15.0
  second.write()
  # That start saves nothing either, and the one after it knows of both.
  steps(second, 30.0)
  third = start(clock.now, saved)
  steps(third, 30.0)
  with third.of("input"):
    clock.now += 2.0
  total = third.total()
  assert total == {
    "steps": 70, "imports": 6, "join": 3, "restore": 6, "compile": 12, "saves": 1,
    "input": 2, "redone": 50, "down": 15,
  }  # fmt: skip
  assert sum(total.values()) == clock.now - 1000.0
  shares = third.shares()
  assert shares["goodput"] == round(70 / 165, 5)
  assert abs(sum(shares.values()) - 1) < 1e-4
  third.write(finished=True)
  # What lies between the end of a run and its going on is nobody's loss.
  clock.now += 1e6
  fourth = start(clock.now, total)
  assert fourth.total()["down"] == 15 and fourth.total()["redone"] == 50
  file.unlink()  # Then the checkpoint says what it knows.
  assert start(clock.now, saved).total()["steps"] == 40


class Good:
  counts = {}

  def check(self, step, values, report):
    pass


def test_log_reads_one_step_late_and_reports_rates(tmp_path, capsys):
  clock = Clock()
  cfg = dataclasses.replace(tiny.run(), log_every=2, steps=5, batch=8)
  clocks = Clocks(clock=clock, wall=clock)
  log = Log(cfg, tmp_path, Good(), clocks, step=0, flops=100.0, peak=1200.0)
  value = lambda step: {"train/loss": jnp.float32(step)}
  clock.now = 10.0
  log.step(1, value(1))
  assert log.first(1) == {"rest": 10.0}
  assert "first step after 10.0 s: rest 10.0" in capsys.readouterr().out
  for step in (2, 3, 4, 5):
    clock.now += 2.0
    log.step(step, value(step))
    assert [x["step"] for x in _read(tmp_path)] == list(range(2, step, 2))
  log.flush()
  lines = _read(tmp_path)
  assert [(x["step"], x["train/loss"]) for x in lines] == [(2, 2), (4, 4), (5, 5)]
  # Steps 3 and 4 in 4 s: 16 images; 3 x 100 FLOPs each of 1200 a second.
  assert lines[1]["images_per_s"] == 4.0 and lines[1]["mfu"] == 1.0
  # Of step 4, as it is read: 8 s of 18 in steps.
  assert lines[1]["goodput"] == 0.44444 and lines[1]["lost/rest"] == 0.55556
  out = capsys.readouterr().out
  assert "step 4/5  loss 4.0000  4.0 images/s  MFU 100.0%  ETA 0:02" in out
  log.close()
