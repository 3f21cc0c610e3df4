"""A run given away draws and scores what the run does, from any place."""

import json
import os
import shutil
import tracemalloc

import jax
import numpy as np
import pytest
import safetensors.numpy

import fluid
from fluid import api, config, evaluate, export, models
from fluid.durable import card, exported, parameters
from fluid.evals import features
from fluid.parallel import distributed
from tests.random_run import FakeFeatures


@pytest.fixture(scope="module")
def given(workdir, tmp_path_factory):
  """A copy of the exported folder and its tokenizer, away from where both were made."""
  home = tmp_path_factory.mktemp("given")
  tokenizer = api.read_config(workdir).tokenizer.path
  shutil.copytree(tokenizer, home / "first" / "tokenizer")
  run = api.read_config(workdir)
  moved = config.replaced(run, {"tokenizer.path": str(home / "first" / "tokenizer")})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(api, "read_config", lambda *_, **__: moved)
    export.export(workdir, home / "first" / "model")
  os.rename(home / "first", home / "second")
  return home / "second" / "model"


def test_it_draws_and_scores_what_the_run_does(workdir, given, monkeypatch):
  names = {p.name for p in given.iterdir()}
  assert {"config.json", "model.json", "weights.safetensors"} <= names
  assert not names & {"checkpoints", "metrics.jsonl"}
  said = (given / "README.md").read_text()
  assert "random order" in said and "2 steps of 8" in said and "| commit |" in said
  prompts = ["a red circle", "two stars"]
  one, other = fluid.load(workdir), fluid.load(given)
  assert one.step == other.step and other.weights == "ema"
  np.testing.assert_array_equal(
    one.sample(prompts, key=3), other.sample(prompts, key=3)
  )
  monkeypatch.setitem(features.FEATURES, "Fake", FakeFeatures)
  wanted = evaluate.evaluate(workdir, names=["loss", "geneval"])
  got = evaluate.evaluate(given, names=["loss", "geneval"])  # It makes its own cache.
  for name in ("val/loss", "val/loss_count", "geneval/overall", "geneval/chance"):
    assert got[name] == pytest.approx(wanted[name], rel=1e-5), name


def test_training_starts_from_it(workdir, given):
  net = fluid.load(given).net
  params = models.Net.init(net, jax.random.key(9))
  for folder in (workdir, given):
    new = parameters.graft(params, config.Init(workdir=str(folder), match="trunk/.*"))
    want = fluid.load(given).params
    jax.tree.map(np.testing.assert_array_equal, new["trunk"], want["trunk"])
    jax.tree.map(np.testing.assert_array_equal, new["head"], params["head"])


def test_what_it_has_not_is_one_line(given, tmp_path):
  with pytest.raises(config.ConfigError, match="has weights ema alone, not raw"):
    fluid.load(given, "raw")
  with pytest.raises(config.ConfigError, match="has step 2 alone, not 7"):
    fluid.load(given, step=7)
  with pytest.raises(config.ConfigError, match="alone, not raw"):
    evaluate.sweep(given, "guidance=1:4:1,weights=ema,raw", images=32)
  shutil.copytree(given, tmp_path / "cut")
  file = tmp_path / "cut" / "weights.safetensors"
  file.write_bytes(file.read_bytes()[:-4])
  with pytest.raises(config.ConfigError, match="safetensors cannot be read .its SHA"):
    fluid.load(tmp_path / "cut")


def write(folder, params):
  """A folder with these weights of step 3, and nothing else."""
  digest = exported.write(folder, params, weights="ema", step=3)
  (folder / "model.json").write_text(json.dumps({"weights_sha256": digest}))
  return folder / exported.FILE


def test_the_file_is_what_safetensors_writes(tmp_path):
  """Byte for byte but for the order of its two notes; also of views, and of scalars."""
  rows = np.arange(12, dtype=np.float32).reshape(3, 4)
  tree = {"b": {"w": rows.T, "s": np.float32(3)}, "a": jax.device_put(rows[1:])}
  tree["c"] = rows[:, :3].astype(np.float16)
  flat = {"b/w": rows.T.copy(), "b/s": np.array(3, np.float32), "a": rows[1:].copy()}
  flat["c"] = tree["c"]
  want = safetensors.numpy.save(flat, {"weights": "ema", "step": "3"})
  notes = [b'"weights":"ema"', b'"step":"3"']
  want = want.replace(b",".join(notes[::-1]), b",".join(notes))
  assert write(tmp_path, tree).read_bytes() == want
  found, step = parameters.restore(tmp_path)
  assert step == 3 and found["c"].dtype == np.float16
  jax.tree.map(np.testing.assert_array_equal, found, tree)


def test_writing_and_reading_hold_the_arrays_once(tmp_path):
  count, size = 16, 2**20
  tree = {f"w{i}": np.full((512, 512), i, np.float32) for i in range(count)}
  tracemalloc.start()
  try:
    write(tmp_path, tree)
    assert tracemalloc.get_traced_memory()[1] < 2 * size
    tracemalloc.reset_peak()
    parameters.restore(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < (count + 3) * size
  finally:
    tracemalloc.stop()


def test_a_process_reads_its_parts_and_one_checks_the_file(tmp_path, monkeypatch):
  rows = np.arange(64, dtype=np.float32).reshape(4, 16)
  file = write(tmp_path, {"w": rows, "b": rows[0]})
  place = lambda *spec: jax.NamedSharding(jax.make_mesh((8,), ("x",)), jax.P(*spec))
  like = {
    k: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
    for k, x, s in (("w", rows, place(None, "x")), ("b", rows[0], place()))
  }
  sizes, get = [], exported.Stored.__getitem__

  def spy(self, index):
    sizes.append(get(self, index).size)
    return get(self, index)

  monkeypatch.setattr(exported.Stored, "__getitem__", spy)
  found, _ = parameters.restore(tmp_path, like=like)
  np.testing.assert_array_equal(found["w"], rows)
  np.testing.assert_array_equal(found["b"], rows[0])
  assert found["w"].sharding == like["w"].sharding
  assert sorted(sizes) == [8] * 8 + [16]

  said = "2 it is damaged"
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  monkeypatch.setattr(distributed, "of_first", lambda text: text or said)
  with pytest.raises(config.ConfigError, match="^it is damaged"):
    exported.read(tmp_path, "ema", None, together=True)
  said = ""
  assert exported.read(tmp_path, "ema", None, together=True)[0]["w"].shape == (4, 16)
  for content, why in ((file.read_bytes()[:-4], "incomplete"), (b"", "header")):
    file.write_bytes(content)  # Of which this process has a copy of its own.
    with pytest.raises(config.ConfigError, match=f"cannot be read .*{why}") as e:
      exported.read(tmp_path, "ema", None, together=True)
    assert "\n" not in str(e.value)


def test_the_card_has_the_last_evaluation_up_to_its_step(tmp_path):
  lines = [
    {"step": 1, "train/loss": 3.0},
    {"step": 1, "time": 1.0, "evals": "loss", "val/loss": 2.0},
    {"step": 2, "time": 2.0, "evals": "loss", "val/loss": 1.5, "val/count": 7},
    {"step": 4, "time": 3.0, "evals": "loss", "val/loss": 1.0},
  ]
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 3')
  found = card.judged(path, 2)
  assert found == {"val/loss": 1.5, "val/count": 7}
  text = card.text(config.Run(), {"step": 2, "weights": "ema", "commit": "ab"}, found)
  assert "| val/loss | 1.5 |" in text and "| commit | ab |" in text
  assert card.judged(tmp_path / "none", 2) == {}


def test_the_card_claims_no_training_that_was_not():
  run = config.replaced(config.Run(), {"init.workdir": "/models/mar_b"})
  text = card.text(run, {"step": 3, "weights": "ema"}, {})
  assert "3 steps of" in text and "begun with weights of mar_b |" in text
  text = card.text(config.Run(), {"step": 0, "weights": "ema"}, {})
  assert "steps of" not in text and "training images" not in text
