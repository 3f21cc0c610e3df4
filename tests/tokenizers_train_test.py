"""Training of tokenizers: what it writes, ends, goes on from; many processes."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import toy
from fluid import config as config_lib
from fluid import tokenizers
from fluid.errors import REQUEUE, exit_code
from fluid.parallel.preemption import Preempted
from fluid.tokenizers import store, train
from tests.conftest import ROOT
from tests.pixels import (
  SIZE,
  TINY_VQ,
  Pictures,
  pictures,
  shrunk,
)


def test_train_writes_the_folder_once(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(train.data, "make_source", lambda data, split: Pictures(split))
  path = str(tmp_path / "t")
  run = config_lib.Run(
    tokenizer=dataclasses.replace(TINY_VQ, steps=4, path=path),
    data=config_lib.Data(image_size=SIZE),
  )
  first = train.train(run)
  assert sorted(os.listdir(path)) == [
    "config.json",
    "done.json",
    "metrics.jsonl",
    "recon.png",
    "weights.safetensors",
  ]
  with open(os.path.join(path, "metrics.jsonl"), encoding="utf-8") as f:
    lines = [json.loads(line) for line in f]
  assert lines[0]["train/loss"] > 0 and lines[-1]["val/psnr"] > 0
  assert "ETA" in capsys.readouterr().out
  time = os.path.getmtime(os.path.join(path, "weights.safetensors"))
  again = train.train(run)
  assert os.path.getmtime(os.path.join(path, "weights.safetensors")) == time
  jax.tree.map(np.testing.assert_array_equal, again.variables, first.variables)
  other = dataclasses.replace(run, tokenizer=dataclasses.replace(run.tokenizer, lr=1.0))
  with pytest.raises(config_lib.ConfigError, match="tokenizer.lr = 0.005, not 1.0"):
    train.train(other)


def test_a_loss_that_is_not_finite_stops_training(tmp_path):
  progress = train.Progress(str(tmp_path / "metrics.jsonl"), steps=2, every=1)
  with pytest.raises(config_lib.ConfigError, match="loss is nan at step 1"):
    progress(1, {"loss": float("nan"), "mse": 1.0})


def test_same_seed_same_weights():
  config = dataclasses.replace(TINY_VQ, steps=3)
  images = train.Images(Pictures("train"))
  runs = [train.fit(config, SIZE, images.batches(16, 7), seed=7)[1:] for _ in "ab"]
  jax.tree.map(np.testing.assert_array_equal, *runs)


@pytest.mark.parametrize("kind", ["vae", "vq"])
def test_a_training_that_is_stopped_comes_to_the_same_weights(kind, tmp_path, capsys):
  def run(name, **changes):
    tokenizer = shrunk(kind, steps=4, batch=8, warmup=1, path=str(tmp_path / name))
    source = config_lib.Data(image_size=SIZE, num_train=24, num_val=8, **changes)
    return config_lib.Run(data=source, tokenizer=tokenizer)

  def files(name):
    found = (tmp_path / name / "weights.safetensors").read_bytes()
    rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(x) for x in rows]
    return found, [{k: r[k] for k in r if k not in ("time", "seconds")} for r in rows]

  train.train(run("whole"))
  for stop_at in (1, 3):
    asked = iter(range(1, 9))
    left = 0 if stop_at == 1 else 1  # Steps that the call before has done.
    with pytest.raises(Preempted, match=f"after step {stop_at} of 4") as error:
      train.train(run("parts"), lambda: next(asked) + left == stop_at)  # noqa: B023
    assert exit_code(error.value) == REQUEUE
  train.train(run("parts"))
  assert files("parts") == files("whole")
  assert "goes on after step 3 of 4" in capsys.readouterr().out
  assert not (tmp_path / "parts" / store.TRAINING).exists()

  # What was saved of another training is not gone on with.
  with pytest.raises(Preempted):
    train.train(run("other"), lambda: True)
  train.train(run("other", seed=1))
  assert "goes on" not in capsys.readouterr().out


PROCESS = """
import sys
from absl import flags
from fluid.parallel import distributed, preemption
from fluid.tokenizers import train

distributed.define_flags()
flags.FLAGS(sys.argv)
asked = iter([False, True])
preemption.Preemption.reached = lambda self: next(asked, False)
try:
  train.main([])
  sys.exit("it was to stop")
except preemption.Preempted:
  distributed.join_by_flags = lambda: None
train.main([])
"""


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
  """They stop after the second step, and go on."""
  changes = {
    "tokenizer.width": 8, "tokenizer.multipliers": (1,), "tokenizer.stem": 4,
    "tokenizer.steps": 4, "tokenizer.batch": 8, "tokenizer.warmup": 1,
    "data.num_train": 24, "data.num_val": 8,
  }  # fmt: skip
  run = config_lib.from_config_dict(toy.get_config("tokens=continuous"))
  one = config_lib.replaced(run, changes | {"tokenizer.path": str(tmp_path / "one")})
  train.train(one)
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = s.getsockname()[1]
  argv = [sys.executable, "-c", PROCESS, "--config=configs/toy.py:tokens=continuous"]
  argv += [f"--config.{k}={v}" for k, v in changes.items()]
  argv += [f"--config.tokenizer.path={tmp_path / 'two'}", "--processes=2"]
  argv += [f"--coordinator=localhost:{port}"]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
  two = [
    subprocess.Popen([*argv, f"--process={i}"], env=env, cwd=ROOT, **pipes)
    for i in range(2)
  ]
  said = [p.communicate(timeout=600)[0] for p in two]
  assert [p.returncode for p in two] == [0, 0], said
  assert "goes on after step 2 of 4" in said[0] and "tokenizer" not in said[1]
  found = []
  for name in ("one", "two"):
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(x) for x in lines]
    found.append(
      [{k: v for k, v in r.items() if k not in ("time", "seconds")} for r in rows]
    )
  assert [r["step"] for r in found[0]] == [1, 2, 3, 4, 4]
  for a, b in zip(*found, strict=True):
    assert a == pytest.approx(b, rel=1e-5)
  assert not (tmp_path / "two" / store.TRAINING).exists()


@pytest.mark.parametrize("kind", tokenizers.TOKENIZERS)
def test_every_kind_trains_a_step(kind):
  config = shrunk(kind, steps=2, batch=8, warmup=1)
  found = []
  batches = train.Images(Pictures("train")).batches(8, 0)
  report = lambda step, metrics: found.append(float(metrics["loss"]))
  tokenizer, params, state = train.fit(config, SIZE, batches, 0, report)
  variables = tokenizer.finish(params, state, train.to_float(pictures(8)), 8)
  assert np.isfinite(found).all() and len(found) == 2
  metrics, _ = train.evaluate(config.make(SIZE, variables), train.to_float(pictures(8)))
  assert np.isfinite(metrics["val/psnr"])


def test_what_is_measured_of_images_is_from_all_over_them():
  """Sets by class begin with images of one class, whose latents are like no others."""
  images = train.Images([{"image": np.full((2, 2, 3), i, np.uint8)} for i in range(90)])
  some = (images.some(9)[:, 0, 0, 0] + 1) * 127.5
  np.testing.assert_allclose(some, range(0, 90, 10), atol=1e-3)
  assert len(images.some(200)) == 90
