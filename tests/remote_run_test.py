"""Work folders in a bucket: runs, tokenizers, caches, sweeps and their reports."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import analysis
import fluid
from analysis import report
from fluid import api, config, evaluate, export, prepare, remote, train
from fluid.durable import checkpoint, parameters
from fluid.files import place
from fluid.parallel.preemption import Preempted
from fluid.text.learned import LearnedConfig
from fluid.tokenizers import train as train_tokenizer
from fluid.training import clocks
from launch import order, retry, status
from tests import caches, pixels, synthetic, tiny
from tests.buckets import files, free_port
from tests.conftest import ROOT
from tests.machines import specs_with

pytestmark = pytest.mark.slow

# Ends like a lost machine once the fifth step is there; that of step 3 is saved.
KILLED = """
import json, os, signal, sys
from fluid import config, train
from fluid.durable import checkpoint
from fluid.training import log

def step(self, number, values, do=log.Log.step):
  do(self, number, values)
  if number == 5:
    saved.wait()
    os.kill(os.getpid(), signal.SIGKILL)

def init(self, *args, do=checkpoint.Checkpoints.__init__, **kwargs):
  global saved
  saved = self
  do(self, *args, **kwargs)

log.Log.step, checkpoint.Checkpoints.__init__ = step, init
train.run(config.from_config_dict(json.loads(sys.argv[1])), sys.argv[2])
"""


def lines(text):
  """Lines of metrics.jsonl without what a clock makes."""
  rows = map(json.loads, text.splitlines())
  return [{k: v for k, v in row.items() if not clocks.made(k)} for row in rows]


def test_a_run_killed_in_a_bucket_becomes_what_it_would_have_been(
  bucket, tmp_path, monkeypatch
):
  cfg = tiny.with_cache(tiny.run(), tiny.cache(tmp_path / "cache"))
  train.run(cfg, tmp_path / "run")
  url, cache = "gs://bucket/study/run", "gs://bucket/caches/tiny"
  files(url).put(cfg.data.cache, cache, recursive=True)
  there = tiny.with_cache(cfg, cache)
  argv = [sys.executable, "-c", KILLED, json.dumps(config.to_dict(there)), url]
  env = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
  done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
  assert json.loads(remote.read_bytes(f"{url}/saved.json")) == {"step": 3}
  assert remote.read_bytes(f"{url}/done.json") is None
  bucket["every"] = 7
  try:
    train.run(there, url)
  finally:
    bucket["every"] = 0
  assert bucket["failed"] > 3
  local = (tmp_path / "run/metrics.jsonl").read_text()
  text = remote.read_bytes(f"{url}/metrics.jsonl").decode()
  assert lines(text) == lines(local)
  told = json.loads(remote.read_bytes(f"{url}/config.json"))
  assert told["data"]["cache"] == cache
  for a, b in zip(
    *map(
      jax.tree.leaves, [checkpoint.restore_params(x) for x in (url, tmp_path / "run")]
    )
  ):
    np.testing.assert_array_equal(a, b)
  assert len(os.listdir(os.environ["FLUID_CACHE"])) == 2  # A copy and its lock.

  tokenizer = types.SimpleNamespace(
    spec=tiny.SPECS["categorical"], image_size=cfg.data.image_size
  )
  vocabulary = types.SimpleNamespace(size=tiny.WORDS)
  monkeypatch.setattr(api.tokenizers, "load", lambda *args: tokenizer)
  monkeypatch.setattr(api.text, "load", lambda *args: vocabulary)
  found = evaluate.evaluate(url, names=["loss"])
  assert found == evaluate.evaluate(tmp_path / "run", names=["loss"])
  assert remote.read_bytes(f"{url}/eval/6-ema-loss.json")
  rows = [analysis.load(str(x)) for x in (url, tmp_path / "run")]
  assert rows[0]["val/loss"].item() == rows[1]["val/loss"].item() == found["val/loss"]


def test_a_model_given_away_is_loaded_from_a_bucket(bucket, tmp_path):
  """With the tokenizer that its config names beside it."""
  folder = ROOT / "configs/checkpoints/shapes32-m/discrete-raster"
  name = json.loads((folder / "config.json").read_text())["tokenizer"]["path"]
  tokenizer = (folder / name).resolve()
  for there in (folder, tokenizer):
    url = f"gs://bucket/given/{there.relative_to(ROOT)}"
    files(url).put(str(there), url, recursive=True)
  here, url = fluid.load(folder), f"gs://bucket/given/{folder.relative_to(ROOT)}"
  away = fluid.load(url)
  assert away.step == here.step
  assert pathlib.Path(away.config.tokenizer.path).is_relative_to(
    os.environ["FLUID_CACHE"]
  )
  drawn = [x.sample("a red circle", key=3) for x in (here, away)]
  np.testing.assert_array_equal(*drawn)
  found, step = parameters.restore(url, "ema")
  assert step == here.step
  jax.tree.map(np.testing.assert_array_equal, found, here.params)
  with pytest.raises(config.ConfigError, match="has weights ema alone, not raw"):
    fluid.load(url, "raw")
  export.export(url, tmp_path / "again")  # Its tokenizer stays where all can have it.
  told = json.loads((tmp_path / "again/config.json").read_text())
  assert told["tokenizer"]["path"] == f"gs://bucket/given/{tokenizer.relative_to(ROOT)}"
  assert fluid.load(tmp_path / "again").step == here.step


def test_a_tokenizer_and_a_cache_are_made_in_a_bucket(bucket, tmp_path, monkeypatch):
  """The bytes that are made in a folder, also where another host goes on."""

  def run(tokenizer, cache=""):
    part = pixels.shrunk("vae", steps=4, batch=8, warmup=1, path=tokenizer)
    source = config.Data(image_size=16, num_train=24, num_val=8, cache=cache)
    return config.Run(data=source, tokenizer=part)

  def contents(folder):
    found = files(folder).find(folder)
    return {n.rpartition("/")[2]: files(folder).cat_file(n) for n in found}

  here, there = str(tmp_path / "t"), "gs://bucket/made/t"
  train_tokenizer.train(run(here))
  asked = iter([False, True])
  with pytest.raises(Preempted, match="after step 2 of 4"):
    train_tokenizer.train(run(there), lambda: next(asked))
  assert "training.safetensors" in contents(there)
  bucket["every"] = 5
  try:
    train_tokenizer.train(run(there))
  finally:
    bucket["every"] = 0
  one, other = (tmp_path / "t/weights.safetensors").read_bytes(), contents(there)
  assert other["weights.safetensors"] == one and "training.safetensors" not in other
  rows = other["metrics.jsonl"].decode().splitlines()
  assert [json.loads(x)["step"] for x in rows] == [1, 2, 3, 4, 4]
  before = files(there).info(f"{there}/weights.safetensors")
  train_tokenizer.train(run(there))  # It is done.
  assert files(there).info(f"{there}/weights.safetensors")["mtime"] == before["mtime"]

  local, cache = str(tmp_path / "c"), "gs://bucket/made/c"
  prepare.prepare(run(here, local), batch=8, log=lambda line: None)
  said = []
  prepare.prepare(run(there, cache), batch=8, log=said.append)
  assert said[-1].startswith(f"{cache} is complete: 24 train, 8 val")
  found = contents(cache)
  told = json.loads(found.pop("metadata.json"))
  assert told.pop("tokenizer") == there
  want = {p.name: p.read_bytes() for p in (tmp_path / "c").iterdir()}
  metadata = json.loads(want.pop("metadata.json"))
  assert metadata.pop("tokenizer") == here
  assert told == metadata and found == want

  # On another host: shards are not fetched, and one that is torn is written again.
  whole, fetched, download = contents(cache), [], remote.download
  told = json.loads(whole["metadata.json"]) | {"splits": {}}
  files(cache).pipe_file(f"{cache}/metadata.json", json.dumps(told).encode())
  files(cache).pipe_file(f"{cache}/val-00000.array_record", b"torn")

  def watched(url, names, folder):
    fetched.extend(names := list(names))
    download(url, names, folder)

  monkeypatch.setattr(remote, "download", watched)
  before = files(cache).info(f"{cache}/train-00000.array_record")["mtime"]
  prepare.prepare(run(there, cache), batch=8, log=said.append)
  assert contents(cache) == whole
  assert files(cache).info(f"{cache}/train-00000.array_record")["mtime"] == before
  assert not [name for name in fetched if name.endswith(".array_record")]
  other = dataclasses.replace(run(there, cache), seed=1)
  other = config.replaced(other, {"data.num_train": 16})
  with pytest.raises(config.ConfigError, match=f"^{cache} holds tokens of another"):
    prepare.prepare(other, batch=8)


PROCESS = """
import sys
from fluid.parallel import distributed
from tests import caches

port, number, cache = sys.argv[1:]
distributed.join(f"localhost:{port}", 2, int(number))
caches.write(cache)
"""


def test_two_processes_fill_a_cache_in_a_bucket(bucket, tmp_path):
  """Each on its host, as it were: process 0 fetches what the other has written."""
  cache, port = "gs://bucket/made/two", str(free_port())
  with pytest.raises(config.ConfigError, match="vocab"):  # Of which nothing is left.
    caches.write(cache, text=LearnedConfig(vocab_size=3))
  files(cache).invalidate_cache()
  assert not files(cache).find(cache)
  command = [sys.executable, "-c", PROCESS, port]
  processes = [
    subprocess.Popen([*command, str(i), cache], cwd=ROOT, stdout=subprocess.DEVNULL)
    for i in range(2)
  ]
  assert [p.wait(400) for p in processes] == [0, 0]
  caches.write(tmp_path / "one")
  found = {
    n.rpartition("/")[2]: files(cache).cat_file(n) for n in files(cache).find(cache)
  }
  assert found == caches.content(tmp_path / "one") and len(found) > 5


# A stage of a sweep, in a bucket.
STAGE = """
import json, sys
from fluid import files

folder, mode = sys.argv[1:3]
if mode == "fail":
  print("error: no luck")
  sys.exit(3)
line = json.dumps({"step": 4, "train/loss": 0.5})
files.write_text(f"{folder}/metrics.jsonl", line + chr(10))
done = {"step": 4, "splits": {"train": {}, "val": {}}}
name = "metadata.json" if "/data/" in folder else "done.json"
files.write_json(f"{folder}/{name}", done)
"""


@pytest.mark.parametrize("engine", ["gke", "tpu_vm"])
def test_a_sweep_lies_in_a_bucket(
  bucket, machine, engine, tmp_path, monkeypatch, capfd
):
  (tmp_path / "fake.py").write_text(STAGE)
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  url = f"gs://bucket/sweeps/{engine}"
  machine.workdir = place(url, "--workdir")
  fails = engine == "gke"  # What machines say of their end has no stand-in here.
  machine.modes |= {"run/dr1": "fail"} if fails else {}
  first = "failed" if fails else "finished"
  want = {"run/dr1": first, "run/dr2": "finished", "run/cr1": "finished"}
  ended = lambda s: all(s.get(k) == v for k, v in want.items())
  result, _ = machine.until(engine, ended, 400)
  assert result == int(fails)
  monkeypatch.setattr(order.Order, "specs", specs_with(machine.build))
  capfd.readouterr()
  assert status.main(["--workdir", url, "--json"]) == int(fails)
  rows = {r["stage"]: r for r in json.loads(capfd.readouterr().out)}
  assert rows["run/dr2"]["loss"] == 0.5 and rows["run/dr1"]["state"] == first
  told = json.loads(remote.read_bytes(f"{url}/jobs/dr2/job.json"))
  assert f"{url}/runs/dr2" in told["argv"] and told["times"] == 1
  if fails:
    machine.modes.clear()
    retry.main(["--failed", "--workdir", url], build=machine.build)
    machine.until(engine, lambda s: set(s.values()) == {"finished"}, 400)
  assert not pathlib.Path("gs:").exists()


def test_a_sweep_in_a_bucket_is_reported(bucket, tmp_path):
  """The page and its tables are those of the same folder on disk."""
  here, url = tmp_path / "w", "gs://bucket/sweeps/reported"
  synthetic.write_study(here, sizes=("xs", "s", "m", "l"))
  files(url).put(str(here), url, recursive=True)
  with pytest.raises(ValueError, match="--out is needed: a report is not written to"):
    report.write(url)
  local, away = (report.write(f, tmp_path / n) for f, n in ((here, "a"), (url, "b")))
  made = lambda index: {
    p.relative_to(index.parent): p.read_bytes()
    for p in index.parent.rglob("*")
    if p.suffix in (".csv", ".png")
  }
  assert made(away) == made(local) and len(made(local)) > 15
  assert away.read_text().replace(url, str(here)) == local.read_text()
