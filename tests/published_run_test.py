"""Published families as runs: trained, and from a converted folder on."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import fluid
from configs import toy_published
from configs.reproduce import imagenet
from fluid import config, evaluate, flops, models, prepare, text, train
from fluid.convert import models as convert
from fluid.data import captions
from fluid.models.published import RUNS
from fluid.tokenizers import store

# Parameters in millions, as the authors say.
SAID = {"mar_b": 208, "mar_l": 479, "mar_h": 943, "llamagen_b": 111, "llamagen_l": 343}
SAID |= {"llamagen_xl": 775, "llamagen_xxl": 1400, "llamagen_3b": 3100, "rar_b": 261}
SAID |= {"var_d16": 310, "var_d20": 600, "var_d24": 1000, "var_d30": 2000}
SAID |= {"rar_l": 461, "rar_xl": 955, "rar_xxl": 1500, "maskgit": 172}


@pytest.mark.parametrize("name", SAID)
def test_published_sizes(name):
  """RAR's files have positions for 1,024 tokens more than an image has."""
  run = RUNS[name]()
  found = flops.parameters(models.Net.of(run))["total"] / 1e6
  if name.startswith("rar"):
    found += (2 * 1024 + 100) * run.model.trunk.width / 1e6
  assert found == pytest.approx(SAID[name], rel=0.04)


@pytest.mark.parametrize("name", RUNS)
def test_recipes_are_runs(name):
  run = config.from_config_dict(imagenet.get_config(f"model={name}"))
  assert config.from_config_dict(config.to_dict(run)) == run
  assert run.tokenizer.make(run.data.image_size).spec.length >= 256


def small(family: str, root) -> config.Run:
  """The toy config of a family on 16 px shapes, with a tokenizer of random weights."""
  run = config.from_config_dict(toy_published.get_config(f"family={family},size=xs"))
  few = {"stem": 4, "width": 8, "multipliers": (1,), "attention": "none", "vocab": 16}
  few |= {"patch": 1, "groups": 4, "scales": (1, 2, 4), "path": str(root / "tok")}
  known = {f.name for f in dataclasses.fields(run.tokenizer)}
  tokenizer = dataclasses.replace(
    run.tokenizer, **{k: v for k, v in few.items() if k in known}
  )
  made = tokenizer.make(16)
  variables = jax.tree.map(np.asarray, jax.jit(made.init)(jax.random.key(0)))
  store.save(tokenizer.path, tokenizer.make(16, variables), {})
  sample = run.sample.replace(
    batch=4, **({"diffusion_steps": 4} if run.model.head.kind == "diffusion" else {})
  )
  return dataclasses.replace(
    run,
    data=dataclasses.replace(
      run.data, image_size=16, num_train=64, num_val=16, cache=str(root / "data")
    ),
    tokenizer=tokenizer,
    sample=sample,
    evals={"loss": run.evals["loss"]},
    batch=8,
    accum=1,
    steps=2,
    log_every=1,
    eval_every=0,
    checkpoint_every=2,
  )


@pytest.mark.parametrize("family", toy_published.FAMILIES)
def test_a_family_is_trained_sampled_and_judged(family, tmp_path, monkeypatch):
  run, reads = small(family, tmp_path), []
  read = lambda *args, real=store.read_weights: reads.append(args) or real(*args)
  monkeypatch.setattr(store, "read_weights", read)
  prepare.prepare(run, batch=16, log=lambda line: None)
  reads.clear()
  train.run(run, tmp_path / "w")
  assert len(reads) == 1  # Of the tokenizer, by whoever needs it.
  lines = [json.loads(x) for x in (tmp_path / "w/metrics.jsonl").open()]
  assert np.isfinite([x["train/loss"] for x in lines if "train/loss" in x]).all()

  # What python -m fluid.convert writes of other weights, with names of the classes.
  net = models.Net.of(run, vocab=text.load(run.text, run.data.cache).size)
  params = jax.tree.map(np.asarray, jax.jit(net.init)(jax.random.key(7)))
  names = dataclasses.replace(
    run.text, path=str(tmp_path / "data/classes.txt"), vocab_size=net.vocab
  )
  given = dataclasses.replace(
    run, text=names, data=dataclasses.replace(run.data, cache="")
  )
  convert.save(str(tmp_path / "given"), given, {}, params)
  reads.clear()
  loaded = fluid.load(tmp_path / "given")
  assert len(reads) == 1
  images = loaded.sample([captions.TAGS[1], "1"], key=0)
  assert images.shape == (2, 16, 16, 3)
  for prompt, said in (("a red circle", "not on text"), ("60", "out of range")):
    with pytest.raises(text.PromptError, match=said):
      loaded.sample(prompt)
  judged = evaluate.evaluate(tmp_path / "given", names=["loss"])
  assert np.isfinite(judged["val/loss"])

  started = dataclasses.replace(run, steps=3, init=config.Init(str(tmp_path / "given")))
  train.run(started, tmp_path / "w2")
  assert fluid.load(tmp_path / "w2").step == 3


def test_a_tokenizer_is_for_one_size_of_images(tmp_path):
  """LlamaGen's weights fit images of any size, and would draw those of another."""
  run = small("llamagen", tmp_path)
  larger = dataclasses.replace(run.data, image_size=32, cache="")
  said = "'data.image_size' is 32, but the tokenizer .* is for 16: .*image_size=32"
  changes = {"tokenizer.path": run.tokenizer.path, "data.image_size": 32}
  family = convert.FAMILIES["llamagen_b"]
  with pytest.raises(config.ConfigError, match=said):
    family.change(changes)
  assert family.change(changes | {"data.image_size": 16}).config.data.image_size == 16
  given = dataclasses.replace(run, data=larger)
  zeros = lambda a: np.zeros(a.shape, a.dtype)
  params = jax.tree.map(zeros, convert.abstract(given, {}))
  convert.save(str(tmp_path / "given"), given, {}, params)
  with pytest.raises(config.ConfigError, match=said):
    fluid.load(tmp_path / "given")
