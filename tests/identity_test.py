"""fluid.config.identity: what makes two runs, tokenizers or caches the same."""

import dataclasses
import json

import pytest

from configs import toy
from fluid import config
from fluid.config import identity, upgrade
from fluid.data.folder import FolderConfig
from fluid.data.shapes import ShapesConfig
from fluid.durable import paths
from fluid.evals.loss import LossConfig
from fluid.models.orders.raster import Raster
from fluid.models.trunks.fluid import FluidConfig
from fluid.text.classes import ClassesConfig
from fluid.tokenizers.vq import VQConfig
from launch.points import resolve
from tests.upgrade_test import V1, wanted_of

RUN = config.from_config_dict(toy.get_config("tokens=continuous,order=random"))

# All that may differ between a run and what continues it.
FREE = {
  "data.workers": 3,
  "data.max_bad": 0.5,
  "model.trunk.attention": "xla",
  "model.trunk.remat": "dots",
  "model.trunk.scan": True,
  "optim.max_skipped": 9,
  "mesh": config.Mesh(fsdp=2),
  "sample": RUN.model.sample(guidance=7.0, steps=3, diffusion_steps=5),
  "init": config.Init(workdir="/w", step=3, weights="raw", match="trunk/.*"),
  "evals": {"loss": LossConfig(examples=3)},
  "steps": 7,
  "accum": 2,
  "log_every": 3,
  "eval_every": 3,
  "checkpoint_every": 3,
  "keep": 9,
  "profile_steps": "2:3",
  "tensorboard": True,
}
PLACES = {
  "data.cache": "/a",
  "tokenizer.path": "/b",
  "text.path": "/c",
  "data.mixture": ("/d", "/e"),
}
# Younger than what is stored: at their defaults they are in no identity.
ADDED = {
  "data.captions": 5,
  "data.flips": True,
  "data.dedupe": True,
  "data.weights": (0.5, 0.5),
  "data.filter.min_side": 256,
  "data.filter.min_aspect": 0.5,
  "data.filter.max_aspect": 2.0,
  "data.filter.min_words": 3,
  "data.filter.max_words": 20,
  "data.filter.score": "aesthetic",
  "data.filter.min_score": 4.5,
}


def flat(tree, prefix=""):
  """Every dotted name of a config's dict."""
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      yield from flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key


def test_everything_counts_but_what_says_otherwise():
  left_out = set(flat(config.to_dict(RUN))) - identity.identity(RUN).keys()
  within = ("mesh.", "sample.", "init.", "evals.")
  assert {k for k in left_out if not k.startswith(within)} == (
    FREE.keys() | PLACES.keys() | ADDED.keys()
  ) - {"mesh", "sample", "init", "evals"}
  assert identity.identity(RUN).keys() <= set(flat(config.to_dict(RUN)))


@pytest.mark.parametrize("key", [*FREE, *PLACES])
def test_what_is_free_or_a_place_changes_nothing(key):
  other = config.replaced(RUN, {key: (FREE | PLACES)[key]})
  assert other != RUN
  assert identity.identity(other) == identity.identity(RUN)
  for of in (identity.of_tokenizer, identity.of_text, identity.of_cache):
    assert of(other) == of(RUN)


@pytest.mark.parametrize(
  "key, value, tokenizer, cache",
  [
    # What a tokenizer, or a cache, is made from is part of its identity too.
    ("model.trunk.width", 80, False, False),
    ("model.head.layers", 5, False, False),
    ("model.order.mask", "cosine", False, False),
    ("model.condition.drop", 0.2, False, False),
    ("optim.lr", 0.5, False, False),
    ("seed", 1, False, False),
    ("batch", 64, False, False),
    ("data.seed", 1, True, True),
    ("data.num_train", 9, True, True),
    ("data.source.tags", ("counting",), True, True),
    ("text.length", 9, False, True),
    ("tokenizer.lr", 0.5, True, False),
    # What is said of images, and which are drawn, is of no account to a tokenizer.
    *((key, value, False, key != "data.weights") for key, value in ADDED.items()),
  ],
)
def test_what_a_run_is_made_of_is_named(key, value, tokenizer, cache):
  other = config.replaced(RUN, {key: value})
  differ = lambda of: identity.differences(of(RUN), of(other))
  assert differ(identity.identity) == [key]
  assert differ(identity.of_tokenizer) == [key] * tokenizer
  assert differ(identity.of_cache) == [key] * cache
  a, b = (identity.digest(identity.identity(r)) for r in (RUN, other))
  assert a != b and len(a) == len(b) == 12


@pytest.mark.parametrize(
  "key, part",
  [
    ("model.order", Raster()),
    ("tokenizer", VQConfig()),
    ("text", ClassesConfig()),
    ("data.source", FolderConfig(path="/images")),
  ],
)
def test_another_kind_is_another_run(key, part):
  # Without __post_init__'s help, sampling options stay as they are: they are free.
  other = config.replaced(RUN, {key: part})
  found = identity.differences(identity.identity(RUN), identity.identity(other))
  assert f"{key}.kind" in found and all(k.startswith(f"{key}.") for k in found)


def test_an_identity_survives_files():
  for run in (RUN, resolve("configs/toy.py:tokens=discrete,condition=class", {})):
    own = identity.identity(run)
    assert json.loads(json.dumps(own)) == own
    again = config.from_config_dict(json.loads(json.dumps(config.to_dict(run))))
    assert identity.identity(again) == own
    assert identity.digest(identity.identity(again)) == identity.digest(own)


def test_every_place_is_changed_and_nothing_else():
  run = config.replaced(RUN, PLACES | {"init.workdir": "d"})
  moved = identity.places(run, lambda path: path + "/x")
  several = {"data.mixture": ("/d/x", "/e/x"), "init.workdir": "d/x"}
  wanted = {k: f"{v}/x" for k, v in PLACES.items()} | several
  assert moved == config.replaced(run, wanted)
  # A source's own folder is what its images are, wherever the run lies.
  folder = config.replaced(run, {"data.source": FolderConfig(path="images")})
  assert paths.made_absolute(folder).data.source.path == "images"


@pytest.mark.parametrize("name", [n for n in V1["caches"] if n != "tags"])
def test_the_identity_in_a_cache_of_layout_1_is_that_of_today(name):
  run = wanted_of(name)
  there = identity.stored(V1["caches"][name])
  own = identity.of_cache(run)
  assert {k: there[k] for k in own} == own
  rest = there.keys() - own.keys()
  assert {k.split(".")[0] for k in rest} == {"text", "tokenizer", "records"}
  assert identity.stored(there) == there  # One of today stays.


def test_a_cache_knows_nothing_of_fields_that_came_later():
  run = config.Run()
  now = identity.of_cache(run)
  older = {k: v for k, v in now.items() if k != "data.source.detail"}
  assert len(older) == len(now) - 1 and identity.stored(older) == now


def test_arguments_of_a_source_of_layout_1_are_its_fields():
  there = identity.stored(V1["caches"]["tags"])
  source = ShapesConfig(tags=("counting", "colors"))
  run = wanted_of("configs/toy.py:tokens=discrete,order=raster")
  run = config.replaced(run, {"data.source": source})
  own = identity.of_cache(run)
  assert {k: there[k] for k in own} == own
  assert upgrade.data({"source": "shapes", "source_args": {"length": 3}}) == {
    "source": {"kind": "shapes", "length": 3}
  }


def test_a_field_of_a_new_part_counts_unless_it_says_so():
  @dataclasses.dataclass(frozen=True)
  class Mine(FluidConfig):
    depth: int = 3
    kernel: str = config.free("fast")
    weights: str = config.place()

  trunk = {k for k in identity.identity(Mine(), "model.trunk.") if "trunk" in k}
  assert "model.trunk.depth" in trunk
  assert not trunk & {"model.trunk.kernel", "model.trunk.weights"}
