"""fluid.config.upgrade: what older code stored is read as the run it was.

tests/data/configs_v1.json holds what the last code of layout 1 wrote to config.json for
runs of configs/, and the identity it wrote to the metadata of their caches.
"""

import copy
import json

import jax
import pytest

from fluid import config, files, tokenizers
from fluid.config import upgrade
from fluid.durable import workdir
from fluid.tokenizers import store
from fluid.tokenizers.vq import VQConfig
from launch.points import resolve
from tests.conftest import ROOT

V1 = json.loads((ROOT / "tests/data/configs_v1.json").read_text())
RUNS = pytest.mark.parametrize("name", V1["runs"])
# What the toy study has changed of its recipe since then.
RECIPE = {
  "data.source.detail": 1.0,
  "data.num_train": 64_000,
  "model.trunk.scan": True,
  "optim.lr_width": 0,
  "optim.lr_power": 1.0,
  "optim.muon": 0.0,
  "optim.ema": 0.99,
  "steps": 6000,
  "batch": 32,
  "accum": 1,
  "eval_every": 1500,
  "checkpoint_every": 1500,
}
VQ = {
  "width": 64,
  "multipliers": (1, 2),
  "attention": "none",
  "codebook_decay": VQConfig().codebook_decay,
  "l2_weight": VQConfig().l2_weight,
  "steps": 3000,
  "lr": 3e-3,
}


def wanted_of(name: str) -> config.Run:
  """Today's config file, with the recipe of then."""
  run = resolve(name, {})
  if not name.startswith("configs/toy"):
    return run
  shapes = run.data.source.kind == "shapes"
  changes = {k: v for k, v in RECIPE.items() if shapes or not k.startswith("data.")}
  if run.model.order.kind == "random":
    changes["model.order.masks"] = 1
  if run.model.head.kind == "diffusion":
    changes["model.head.batch_mul"] = 4
    changes["tokenizer.steps"] = 1000
  else:
    changes |= {f"tokenizer.{k}": v for k, v in VQ.items()}
  changes["sample.guidance"] = 3.0
  evals = {k: v for k, v in run.evals.items() if k != "likelihood"}
  return config.replaced(run, changes | {"evals": evals})


@RUNS
def test_a_run_of_layout_1_is_that_of_todays_config_file(name):
  old = V1["runs"][name]
  before = copy.deepcopy(old)
  upgraded = upgrade.run(old)
  assert config.from_config_dict(upgraded) == wanted_of(name)
  assert old == before
  assert upgrade.run(upgraded) is upgraded  # One of today stays.


def test_all_cells_are_there():
  cells = {resolve(name, {}).model.cell for name in V1["runs"]}
  assert len(cells) == 4


@RUNS
def test_changed_values_arrive(name):
  """Every value of layout 1 that its model, tokenizer or sampler used, moved off."""
  old = copy.deepcopy(V1["runs"][name])
  model, head = old["model"], old["model"]["head"]
  model |= {"layers": 7, "width": 48, "heads": 4, "mlp_ratio": 3, "text_drop": 0.3}
  model |= {"aligner_layers": 5, "residual_init": 0.1, "remat": "dots", "scan": False}
  model |= {"attention": "xla", "mask": "arccos", "mask_min": 0.7}
  model |= {"head_layers": 9, "head_width": 24, "head_batch_mul": 3}
  model |= {"diffusion_steps": 500, "tie_embeddings": False}
  old["text"] |= {"width": 11, "path": "/t", "vocab_size": 99, "length": 13}
  old["sample"] |= {"steps": 5, "solver": "ddim", "diffusion_steps": 6, "clip": 2.0}
  old["sample"] |= {"diffusion_steps_last": 3, "guidance": 1.5}
  old["tokenizer"] |= {"patch": 1, "kl_weight": 0.5, "vocab": 33, "cosine": True}
  old["tokenizer"] |= {"commitment": 0.1, "codebook_decay": 0.5, "path": "/v"}
  changes = {
    "model.trunk.layers": 7,
    "model.trunk.width": 48,
    "model.trunk.heads": 4,
    "model.trunk.mlp_ratio": 3,
    "model.trunk.residual_init": 0.1,
    "model.trunk.remat": "dots",
    "model.trunk.scan": False,
    "model.trunk.attention": "xla",
    "model.condition.layers": 5,
    "model.condition.drop": 0.3,
    "model.condition.width": 11,
    "text.path": "/t",
    "text.vocab_size": 99,
    "text.length": 13,
    "sample.guidance": 1.5,
    "tokenizer.path": "/v",
  }
  if model["order"] == "random":
    changes |= {"model.order.mask": "arccos", "model.order.mask_min": 0.7}
    changes |= {"sample.order.steps": 5}
  if head == "diffusion":
    changes |= {"model.head.layers": 9, "model.head.width": 24}
    changes |= {"model.head.batch_mul": 3, "model.head.steps": 500}
    changes |= {"sample.head.solver": "ddim", "sample.head.diffusion_steps": 6}
    changes |= {"sample.head.diffusion_steps_last": 3, "sample.head.clip": 2.0}
  else:
    changes |= {"model.head.tie_embeddings": False}
  if old["tokenizer"]["kind"] == "vae":
    changes |= {"tokenizer.patch": 1, "tokenizer.kl_weight": 0.5}
  else:
    changes |= {"tokenizer.vocab": 33, "tokenizer.cosine": True}
    changes |= {"tokenizer.commitment": 0.1, "tokenizer.codebook_decay": 0.5}
  wanted = config.replaced(wanted_of(name), changes)
  assert config.from_config_dict(upgrade.run(old)) == wanted


def test_what_was_not_there_yet_gets_its_default():
  old = copy.deepcopy(V1["runs"]["configs/toy.py:tokens=continuous,order=random"])
  wanted = config.from_config_dict(upgrade.run(old))
  for section, key in (
    ("data", "max_bad"),
    ("data", "source_args"),
    ("optim", "max_skipped"),
    ("sample", "guidance_to"),
    ("model", "residual_init"),
  ):
    del old[section][key]
  del old["init"]
  assert config.from_config_dict(upgrade.run(old)) == wanted
  assert config.from_config_dict(upgrade.run({})) == config.Run()
  only = {"model": {"head": "categorical"}, "tokenizer": {"kind": "vq"}}
  assert config.from_config_dict(upgrade.run(only)).model.cell == "discrete-random"


@RUNS
def test_a_workdir_of_layout_1_goes_on(name, tmp_path):
  files.write_json(tmp_path / "config.json", V1["runs"][name])
  run = wanted_of(name)
  assert config.from_file(tmp_path / "config.json") == run
  workdir.check(tmp_path, run)
  other = config.replaced(run, {"model.trunk.width": 24})
  with pytest.raises(workdir.WorkdirError, match=r"model.trunk.width \(\d+ there, 24"):
    workdir.check(tmp_path, other)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"model": {"head": "gan"}}, "model.head.kind.*choose from"),
    ({"model": {"order": "spiral"}}, "model.order.kind.*choose from"),
    ({"tokenizer": {"kind": "gan"}}, "tokenizer.kind.*choose from vae, vq"),
    ({"version": 9}, "'version' is 9; this code reads 2"),
    ({"steps": "x"}, "'steps'"),
    ([], "damaged"),
  ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_file(change, message, tmp_path):
  files.write_json(tmp_path / "config.json", change)
  with pytest.raises(config.ConfigError, match=message) as error:
    config.from_file(tmp_path / "config.json")
  assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("tokens", ["continuous", "discrete"])
def test_a_tokenizer_of_layout_1_is_loaded(tokens, tmp_path):
  name = f"configs/toy.py:tokens={tokens},order=random"
  run = config.replaced(wanted_of(name), {"tokenizer.width": 8})
  tokenizer = run.tokenizer.make(32)
  variables = jax.jit(tokenizer.init)(jax.random.key(0, impl="rbg"))
  store.save(str(tmp_path), run.tokenizer.make(32, variables), {})
  content = store.read_config(str(tmp_path))
  content["tokenizer"] = V1["runs"][name]["tokenizer"] | {"width": 8}
  files.write_json(tmp_path / "config.json", content)
  loaded = tokenizers.load(str(tmp_path))
  assert loaded.config == run.tokenizer and loaded.spec == tokenizer.spec
