"""Configs: every key checked, every error one line that names it."""

import dataclasses
import re

import jax
import ml_collections
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import arguments, sizes, toy
from configs import data as data_sets
from configs import fluid as paper
from fluid import config, sampling
from fluid.config import part, read
from tests import tiny


@pytest.mark.parametrize(
  "get_config,ladder", [(paper.get_config, sizes.PAPER), (toy.get_config, sizes.TOY)]
)
def test_every_cell_and_size_is_a_valid_run(get_config, ladder):
  for tokens in paper.HEADS:
    for order in ("random", "raster"):
      for size, (layers, width, heads) in ladder.items():
        run = config.from_config_dict(
          get_config(f"tokens={tokens},order={order},size={size}")
        )
        trunk = run.model.trunk
        assert (trunk.layers, trunk.width, trunk.heads) == (layers, width, heads)
        assert run.model.cell == f"{tokens}-{order}"
        # What is written to config.json reads back as the same run.
        assert config.from_config_dict(config.to_dict(run)) == run


@pytest.mark.parametrize("name", [*data_sets.SETS, "tfds:mine/a:1.0.0", "emoji"])
def test_every_named_set_is_a_valid_run(name):
  for get_config in (paper.get_config, toy.get_config):
    run = config.from_config_dict(get_config(f"data={name}"))
    assert run.data.source == data_sets.source(name)
    assert config.from_config_dict(config.to_dict(run)) == run
  if name in data_sets.SETS:
    row = data_sets.SETS[name]
    assert row.what and row.licence
    given = [part.partition("=")[0] for part in row.where.split(", ")]
    assert set(given) <= {f.name for f in dataclasses.fields(row.source)}
  elif name.startswith("tfds:"):
    assert run.data.source.name == "mine/a:1.0.0"


def test_the_old_name_of_an_argument_is_read():
  assert paper.get_config("source=coco") == paper.get_config("data=coco")
  assert paper.get_config() == paper.get_config("data=folder")


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"stesp": 3}, "unknown config key 'stesp'; did you mean 'steps'?"),
    ({"model": {"trunk": {"width": "x"}}}, "'model.trunk.width' must be int, not 'x'"),
    ({"model": {"trunk": {"width": True}}}, "'model.trunk.width' must be int"),
    ({"model": 3}, "'model' is a section"),
    ({"model": {"head": "gan"}}, "'model.head' is a section"),
    ({"model": {"head": {"kind": "gan"}}}, "'model.head.kind' is 'gan'; choose from"),
    (
      {"model": {"head": {"kind": "categorical", "layers": 3}}},
      "unknown config key 'model.head.layers'; known keys: bias, ",
    ),
    (
      {"model": {"trunk": {"width": 100, "heads": 3}}},
      "multiple of model.trunk.heads",
    ),
    ({"batch": 10, "accum": 3}, "multiple of accum"),
    ({"sample": {"steps": 0}}, "'sample.steps' must be positive"),
    (
      {"model": {"order": {"kind": "raster"}}, "sample": {"steps": 3}},
      "unknown config key 'sample.steps'",
    ),
    ({"sample": {"diffusion_steps": 2000}}, "must not exceed model.head.steps"),
    ({"data": {"source": {"kind": "x"}}}, "'data.source.kind' is 'x'; choose from"),
    ({"tokenizer": {"vocab": 9}}, "unknown config key 'tokenizer.vocab'"),
    ({"evals": {"fun": {}}}, "unknown config key 'evals.fun'; choose from loss"),
    ({"evals": {"loss": {"n": 3}}}, "unknown config key 'evals.loss.n'"),
    ({"optim": {"schedule": "step"}}, "'optim.schedule' is 'step'"),
    ({"data": {"mixture": ("a", "b")}}, "'data.weights' is (); it must hold a number"),
    ({"data": {"mixture": ("a",), "weights": (0.0,)}}, "'data.weights' is (0.0,)"),
    ({"data": {"weights": (1, "x")}}, "'data.weights' must be float, not 'x'"),
    ({"data": {"captions": -1}}, "'data.captions' must not be negative"),
    (
      {"data": {"filter": {"min_words": 4, "max_words": 3}}},
      "'data.filter.min_words' (4) is above 'data.filter.max_words' (3)",
    ),
    ({"data": {"filter": {"min_score": 4.0}}}, "'data.filter.score' names no key"),
  ],
)
def test_wrong_configs_are_named(changes, message):
  with pytest.raises(config.ConfigError) as e:
    config.from_config_dict(ml_collections.ConfigDict(changes))
  assert message in str(e.value) and "\n" not in str(e.value)


def numbers(section):
  """Name -> default of the fields that are numbers."""
  found = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
  is_number = lambda v: isinstance(v, int | float) and not isinstance(v, bool)
  return {k: v for k, v in found.items() if is_number(v)}


SECTIONS = [config.Run(), config.Data(), config.Optim(), config.Mesh(), config.Init()]
SECTIONS += [config.Filter()]
SECTIONS += [
  part.resolve(f, kind)() for f in part.FAMILIES for kind in part.registry(f)
]
SIGNED = {*vars(config.Mesh()), "step", "min_score"}  # -1 devices are what is left.


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: type(s).__name__)
def test_numbers_are_finite_and_not_negative(section):
  for field, value in numbers(section).items():
    wrong = [float("nan"), float("inf")] if isinstance(value, float) else []
    for number in wrong + ([type(value)(-1)] if field not in SIGNED else []):
      changed = dataclasses.replace(section, **{field: number})
      with pytest.raises(config.ConfigError, match=rf"'at\.{field}'") as e:
        read.validate(changed, "at.")
      assert "\n" not in str(e.value)


@pytest.mark.parametrize("tokens", paper.HEADS)
def test_sampling_numbers_are_finite_and_not_negative(tokens):
  model = config.from_config_dict(paper.get_config(f"tokens={tokens}")).model
  drawn = model.sample()
  given = numbers(drawn) | numbers(drawn.head) | numbers(drawn.order)
  for field, value in given.items():
    with pytest.raises(config.ConfigError, match=rf"'sample\.{field}'"):
      model.check_sample(drawn.replace(**{field: type(value)(-1)}), "sample.")


@pytest.mark.parametrize(
  "arg,message",
  [
    ("size=7B", "size='7B'; choose from"),
    ("colour=red", "'colour=red'"),
    ("size", "'size'"),
    ("tokens=both", "tokens='both'"),
    ("data=coc", "data='coc'; choose from coco, "),
    ("data=tfds:", "data='tfds:'; choose from .*tfds:NAME"),
  ],
)
def test_wrong_arguments_are_named(arg, message):
  with pytest.raises(config.ConfigError) as e:
    paper.get_config(arg)
  assert re.search(message, str(e.value)) and "\n" not in str(e.value)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40))
def test_any_argument_is_parsed_or_refused_in_one_line(arg):
  try:
    arguments.parse(arg, size=("s", "m"), steps=3)
  except config.ConfigError as e:
    assert str(e).count("\n") <= arg.count("\n")


_VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
  lambda v: st.dictionaries(st.text(max_size=8), v, max_size=3),
  max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
  st.dictionaries(
    st.sampled_from([f.name for f in dataclasses.fields(config.Run)]),
    _VALUES,
    max_size=4,
  )
)
def test_any_config_is_a_run_or_a_config_error(values):
  try:
    config.from_config_dict(values)
  except config.ConfigError:
    pass


def test_sampling_options_are_checked_where_they_are_given():
  net = tiny.net(tiny.run("categorical", "random"))
  sampler = sampling.Sampler(net, None, None)
  for options, message in [
    ({"cfg": 2.0}, "unknown sampling option 'cfg'"),
    ({"steps": 0}, "'sample.steps' must be positive"),
    ({"guidance_schedule": "x"}, "choose from linear"),
  ]:
    with pytest.raises(config.ConfigError, match=message):
      sampler({}, ["a"], key=jax.random.key(0), **options)
  with pytest.raises(config.ConfigError, match="no prompts"):
    sampler({}, [], key=jax.random.key(0))
