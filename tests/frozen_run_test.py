"""Runs whose text encoder is frozen: prepared, trained, sampled and given away."""

import dataclasses
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import fluid
from fluid import api, config, evaluate, export, models, prepare, text, train
from fluid.config import identity
from fluid.data import packing, pipeline, records
from fluid.evals import images, loss
from fluid.models.conditions.text import TextConfig
from fluid.parallel import sharding
from fluid.tokenizers import store
from fluid.tokenizers.vq import VQConfig
from tests import frozen, tiny

PROMPTS = {"t5": ["a small red house", "two blue birds"], "minilm": ["a red star"] * 2}


@pytest.fixture(scope="module", params=PROMPTS)
def made(request, tmp_path_factory):
  """A prepared run of each kind of encoder."""
  root = tmp_path_factory.mktemp(request.param)
  if request.param == "t5":
    encoder = frozen.t5(request.getfixturevalue("fixtures"), root, length=24)
  else:
    encoder = frozen.bert(root, length=20)
  run = tiny.run(
    order="random",
    changes={"condition": TextConfig(layers=1)},
    text=encoder,
    data=config.Data(image_size=16, num_train=24, num_val=9, cache=str(root / "data")),
    tokenizer=VQConfig(
      stem=4, width=8, multipliers=(1,), vocab=16, path=str(root / "tokenizer")
    ),
    sample=tiny.model(order="random").sample(steps=2, batch=8),
    evals={"loss": loss.LossConfig(), "images": images.ImagesConfig(n=2)},
    steps=3,
  )
  tokenizer = run.tokenizer.make(16)
  variables = jax.tree.map(np.asarray, jax.jit(tokenizer.init)(jax.random.key(0)))
  store.save(run.tokenizer.path, run.tokenizer.make(16, variables), {})
  prepare.prepare(run, batch=12, log=lambda line: None)
  return run, root


@pytest.fixture(scope="module")
def workdir(made):
  run, root = made
  train.run(run, root / "w")
  return root / "w"


def float32(x):
  return np.asarray(x, np.float32)


def test_the_cache_has_what_the_encoder_gives(made):
  run, _ = made
  encoder = text.load(run.text, run.data.cache)
  metadata = records.read_metadata(run.data.cache)
  assert metadata["text"]["features"] == run.text.width
  assert metadata["config"]["text.file"] == encoder.digest()
  read = records.Records(run.data.cache, "train")
  for i in range(4):
    example = read[i]
    n = len(example["text_ids"])
    assert example["features"].shape == (n, run.text.width)
    ids, mask = encoder.encode(
      [example["caption"]], run.text.length, on_unknown="keep", on_long="cut"
    )
    assert ids[0, :n].tolist() == example["text_ids"]
    live = float32(encoder.features(ids, mask))[0, :n]
    np.testing.assert_allclose(float32(example["features"]), live, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("memory", [0, 1 << 30])
def test_batches_are_features_padded_to_the_length(made, memory):
  run, _ = made
  longer = dataclasses.replace(
    run, text=dataclasses.replace(run.text, length=run.text.length + 3)
  )
  batch = next(
    iter(pipeline.loader(longer, "train", batch=8, shuffle=True, memory=memory))
  )
  net = models.Net.of(longer)
  for name, like in net.example(8).items():
    assert batch[name].shape == like.shape and batch[name].dtype == like.dtype, name
  features, mask = float32(batch["text"]), batch["text_mask"]
  assert not features[~mask].any() and (np.abs(features[mask]).sum(-1) > 0).all()


def test_worker_processes_hand_features_on(made):
  run, _ = made
  one, other = (
    next(iter(pipeline.loader(run, "val", batch=8, shuffle=False, workers=n)))
    for n in (0, 1)
  )
  for name, value in one.items():
    np.testing.assert_array_equal(value, other[name])
    assert value.dtype == other[name].dtype


def test_damaged_features_are_empty_rows(made, tmp_path):
  run, _ = made
  cache = tmp_path / "cache"
  shutil.copytree(run.data.cache, cache)
  file = records.shard_path(cache, "train", 0)
  rows = [packing.unpack(r) for r in records.read_shard(file)]
  for row in rows:
    row["meta"] = json.loads(row["meta"])
  rows[1]["features"] = rows[1]["features"][:-1]
  del rows[2]["features"]
  rows[3]["features"] = np.full_like(rows[3]["features"], np.nan)
  records.write_shard(file, [packing.pack(r) for r in rows])
  metadata = records.read_metadata(cache)
  metadata["splits"]["train"]["shards"][0]["bytes"] = file.stat().st_size
  records.write_metadata(cache, metadata)
  read = records.Records(cache, "train")
  got = read.gather(np.arange(5))
  found = [packing.BAD[k - 1] if k else "" for k in got["bad"]]
  assert found == ["", "text", "text", "nonfinite", ""]
  assert not float32(got["features"])[1:4].any()
  assert read.damage(2).startswith("text in record 2 of")


def test_prepared_again_is_done_and_other_weights_are_refused(made, tmp_path):
  run, _ = made
  before = {p: p.read_bytes() for p in sorted((made[1] / "data").iterdir())}
  prepare.prepare(run, batch=12, log=lambda line: None)
  assert {p: p.read_bytes() for p in sorted((made[1] / "data").iterdir())} == before
  other = tmp_path / "other"
  shutil.copytree(run.text.path, other)
  tensors = safetensors.numpy.load_file(other / "model.safetensors")
  name = min(n for n in tensors if "LayerNorm" in n or "layer_norm" in n)
  tensors[name] = tensors[name] * 2
  safetensors.numpy.save_file(tensors, other / "model.safetensors")
  changed = config.replaced(run, {"text.path": str(other)})
  differ = identity.differences(identity.of_text(run), identity.of_text(changed))
  assert differ == ["text.file"]
  with pytest.raises(config.ConfigError, match="holds tokens of another config .text"):
    prepare.prepare(changed, batch=12, log=lambda line: None)
  # A copy elsewhere is the same encoder.
  same = tmp_path / "same"
  shutil.copytree(run.text.path, same)
  moved = config.replaced(run, {"text.path": str(same)})
  assert identity.of_cache(moved) == identity.of_cache(run)


def test_training_has_no_weights_of_the_encoder(made, workdir):
  run, _ = made
  assert json.loads((workdir / "done.json").read_text())["step"] == 3
  lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert any(np.isfinite(x.get("val/loss", np.nan)) for x in lines)
  described = api.read_model(workdir)
  network = text.load(run.text).network
  known = network in type(run.text).KNOWN  # By its width; else by its files.
  assert described["params"]["text_encoder"] > 0 and not known
  params = fluid.load(workdir).params
  assert set(params["aligner"]) == {"null", "pos", "proj", "stack"}
  assert params["aligner"]["proj"]["w"].shape == (run.text.width, 16)
  assert not (workdir / "model.safetensors").exists()


def test_what_is_drawn_does_not_depend_on_batch_or_mesh(made, workdir):
  run, _ = made
  prompts = PROMPTS[run.text.kind]
  loaded = fluid.load(workdir)
  whole = loaded.sample(prompts, key=3)
  assert whole.shape == (2, 16, 16, 3)
  np.testing.assert_array_equal(loaded.sample(prompts[:1], key=3), whole[:1])
  mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=2, model=2))
  sharded = fluid.load(workdir, mesh=mesh).sample(prompts, key=3)
  np.testing.assert_array_equal(sharded, whole)


def test_a_dropped_caption_is_the_learned_null(made, workdir):
  loaded = fluid.load(workdir)
  example = loaded.net.example(2)
  values = jax.random.normal(jax.random.key(0), example["text"].shape)
  of = lambda drop: loaded.net.condition(
    loaded.params, values.astype(jnp.bfloat16), example["text_mask"], jnp.array(drop)
  )
  dropped, kept = of([True, True]), of([False, False])
  np.testing.assert_array_equal(dropped.tokens[0, 0], dropped.tokens[1, 0])
  assert dropped.mask.sum() == 2
  assert np.abs(kept.tokens[0, 0] - kept.tokens[1, 0]).max() > 1e-3


def test_a_run_given_away_finds_its_encoder(made, workdir, tmp_path):
  run, root = made
  prompts = PROMPTS[run.text.kind]
  wanted = fluid.load(workdir).sample(prompts, key=3)
  home = tmp_path / "first"
  for path in (run.text.path, run.tokenizer.path):
    shutil.copytree(path, home / os.path.basename(path))
  moved = config.replaced(
    run,
    {
      "text.path": str(home / os.path.basename(run.text.path)),
      "tokenizer.path": str(home / "tokenizer"),
    },
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(api, "read_config", lambda *_, **__: moved)
    export.export(workdir, home / "model")
  os.rename(home, tmp_path / "second")
  given = tmp_path / "second" / "model"
  np.testing.assert_array_equal(fluid.load(given).sample(prompts, key=3), wanted)
  got = evaluate.evaluate(given, names=["loss"])  # It makes its own cache.
  assert got["val/loss"] == pytest.approx(
    evaluate.evaluate(workdir, names=["loss"])["val/loss"], rel=1e-4
  )
  # Without the encoder: one line, and it names the key.
  shutil.rmtree(tmp_path / "second" / os.path.basename(run.text.path))
  (given / run.text.FILE).write_text(
    json.dumps({"kind": run.text.kind, "path": "/gone", "sha256": "0"})
  )
  with pytest.raises(config.ConfigError, match="no text encoder in.*'text.path'"):
    fluid.load(given)
