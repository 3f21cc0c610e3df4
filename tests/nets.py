"""Small nets over the registries, their parameters and batches, for tests of models."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluid import config, rng
from fluid.models import CONDITIONS, HEADS, ORDERS, TRUNKS, build
from fluid.tokenizers.base import TokenSpec
from fluid.tokenizers.latents import Latents
from fluid.tokenizers.multiscale import VARVQConfig

L, T, B = 16, 6, 8
SPECS = {
  "discrete": TokenSpec("discrete", L, (4, 4), vocab=32),
  "continuous": TokenSpec("continuous", L, (4, 4), channels=5),
}
# A tokenizer of several scales, whose fixed weights are drawn in `tiny`.
SCALED = VARVQConfig(
  width=8, groups=4, multipliers=(1,), blocks=1, channels=5, vocab=32, scales=(1, 2, 3)
)
# Sizes of the entries that have some.
SMALL = {
  "diffusion": {"layers": 2},
  "fluid": {"layers": 2, "heads": 2, "remat": "none"},
  "mar": {"layers": 2, "decoder_layers": 1, "heads": 2, "buffer": 3, "remat": "none"},
  "llamagen": {"layers": 2, "heads": 2, "multiple": 8, "remat": "none"},
  "maskgit": {"layers": 2, "heads": 2, "remat": "none"},
  "rar": {"layers": 2, "heads": 2, "remat": "none"},
  "var": {"layers": 2, "heads": 2, "remat": "none"},
  "text": {"layers": 1, "width": 12},
  "learned": {"length": T},
  "t5": {"length": T, "width": 12},
  "minilm": {"length": T, "width": 12},
}


class Cell(NamedTuple):
  """Kinds of the parts of a model; of the text encoder '': the condition's first."""

  head: str
  order: str
  trunk: str = "fluid"
  condition: str = "text"
  text: str = ""

  def __str__(self):
    return "-".join(filter(None, self))


def cell_of(head="", order="", trunk="", condition="", text="") -> Cell:
  """A cell with these parts; the others are the first ones that fit them."""
  resolve = config.resolve
  asked = ((trunk, TRUNKS), (order, ORDERS), (head, HEADS), (condition, CONDITIONS))
  kinds = itertools.product(*[[one] if one else [*table] for one, table in asked])
  for t, o, h, c in kinds:
    owner, steps = resolve("trunk", t), resolve("order", o)
    scaled = resolve("head", h).scaled == (steps.pattern == "scales")
    reads = owner.reads in resolve("condition", c).gives
    known = not text or text in resolve("condition", c).texts
    if steps.pattern in owner.follows and scaled and reads and known:
      return Cell(h, o, t, c, text)
  raise LookupError((head, order, trunk, condition, text))


# The paper's four cells, and every other entry of a registry in one or two of them.
GRID = [
  Cell(*c)
  for c in itertools.product(("categorical", "diffusion"), ("raster", "random"))
]


def _others():
  two = GRID[0], GRID[3]
  yield from (cell_of(head=h) for h in HEADS if h not in {c[0] for c in GRID})
  yield from (cell_of(order=o) for o in ORDERS if o not in {c[1] for c in GRID})
  for trunk in list(TRUNKS)[1:]:
    if "scales" in config.resolve("trunk", trunk).follows:
      yield cell_of(trunk=trunk)
      continue
    yield from (cell_of(head, trunk=trunk) for head in ("categorical", "diffusion"))
  for cell, condition in itertools.product(two, list(CONDITIONS)[1:]):
    yield cell._replace(condition=condition)
  for condition in CONDITIONS:
    for text in config.resolve("condition", condition).texts[1:]:
      yield GRID[1]._replace(condition=condition, text=text)


CELLS = list(dict.fromkeys([*GRID, *_others()]))
cells = pytest.mark.parametrize("cell", CELLS, ids=str)


def part(family: str, kind: str, **fields: Any) -> Any:
  return config.resolve(family, kind)(**SMALL.get(kind, {}) | fields)


def model_of(cell: Cell, **changes) -> config.Model:
  """Width 32, float32; `changes` by names such as trunk__remat='dots'."""
  model = config.Model(
    dtype="float32",
    head=part("head", cell.head),
    order=part("order", cell.order),
    trunk=part("trunk", cell.trunk, width=32),
    condition=part("condition", cell.condition),
  )
  return config.replaced(model, {k.replace("__", "."): v for k, v in changes.items()})


def tiny(cell, **changes):
  """The net of a cell (or of a pair of head and order)."""
  cell = Cell(*cell)
  model = model_of(cell, **changes)
  text = part("text", cell.text or model.condition.texts[0])
  if model.order.pattern != "scales":
    return build(model, SPECS[model.head.tokens], text, 20)
  return build(model, scaled().spec, text, 20, scales=latents_of(scaled()))


@functools.cache
def scaled():
  """The tokenizer of SCALED, with random weights."""
  blank = SCALED.make(SCALED.scales[-1])
  weights = jax.tree.map(np.asarray, jax.jit(blank.init)(jax.random.key(0)))
  return SCALED.make(SCALED.scales[-1], weights)


def latents_of(tokenizer):
  return Latents(tokenizer.config, tokenizer.variables["params"])


def options(net, **wanted) -> config.Sample:
  """Sampling options of a net: those of `wanted` that it knows."""
  known = net.model.sample().flat()
  return net.model.sample(**{k: v for k, v in wanted.items() if k in known})


@functools.cache
def params_of(net, seed=0):
  """Initial parameters, with the zero-initialised ones made to matter."""
  params = jax.jit(net.init)(jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return tree.unflatten(
    [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)]
  )


def batch_of(net, b=B, seed=0):
  r = np.random.default_rng(seed)
  batch = {k: np.array(v) for k, v in net.example(b).items()}
  if net.tokens.kind == "discrete":
    batch["tokens"] = r.integers(0, net.tokens.vocab, batch["tokens"].shape)
  else:
    batch["tokens"] = r.normal(size=batch["tokens"].shape).astype(np.float32)
  if net.text.feature_width:  # Of a frozen encoder.
    batch["text"] = r.normal(size=batch["text"].shape).astype(batch["text"].dtype)
  else:
    batch["text"] = r.integers(0, net.vocab, batch["text"].shape)
  lengths = r.integers(1, T + 1, b)
  batch["text_mask"] = np.arange(net.text.length) < lengths[:, None]
  batch["id"] = np.arange(b, dtype=np.int32)
  return jax.tree.map(jnp.asarray, batch)


def keys_of(b=B):
  return rng.example_keys(rng.stream(0, "test"), jnp.arange(b))
