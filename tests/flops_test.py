"""Counts against formulas, against real trees and against XLA."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fluid as paper
from configs import sizes, toy
from fluid import config, flops, models
from fluid.models.published import RUNS
from fluid.tokenizers import VQConfig, store
from tests import tiny
from tests.nets import cells
from tests.nets import tiny as tiny_net


@pytest.mark.parametrize("name, passes", [("maskgit", 8), ("llamagen_b", 2)])
def test_drawing_costs_its_passes(name, passes):
  """Eight steps over all tokens; each token once by its cache, guided."""
  run = RUNS[name]()
  net = models.Net.of(run)
  assert flops.drawing(net, run.sample) == passes * flops.forward(net)["total"]


def _linear(i, o):
  return i * o + o


def _block(d, f, cross):
  attention = 4 * _linear(d, d)
  norms = 2 * d * (3 if cross else 2)
  return attention * (2 if cross else 1) + _linear(d, f) + _linear(f, d) + norms


def parameters_by_formula(net):
  """Trained parameters of Fluid's models by component.

  L image tokens, T text tokens, D width, E text width, F MLP width, C token channels,
  W head width, V vocabulary, R noise draws a token.
  """
  m, t, e, h = net.model.trunk, net.tokens, net.model.condition, net.model.head
  d, f = m.width, m.mlp_ratio * m.width
  embeddings = d + 2 * t.length * d + 2 * d  # fill, two positions, input norm
  embeddings += net.vocab * e.width + e.width + net.text.length * d
  if t.kind == "continuous":
    w, c = h.width or d, t.channels
    embeddings += _linear(c, d)
    block = _linear(w, 3 * w) + 2 * _linear(w, w) + 2 * w
    head = h.layers * block + _linear(w, 2 * w) + _linear(w, 2 * c)
    head += _linear(c, w) + _linear(256, w) + _linear(w, w) + _linear(d, w)
  else:
    embeddings += t.vocab * d
    head = t.vocab + (0 if h.tie_embeddings else t.vocab * d)
  out = {
    "core": m.layers * _block(d, f, True) + 2 * d,
    "aligner": _linear(e.width, d) + e.layers * _block(d, f, False) + 2 * d,
    "head": head,
    "embeddings": embeddings,
  }
  return out | {"total": sum(out.values())}


def forward_by_formula(net):
  """FLOPs of one training forward pass of one image, by component and in total.

  Attention counts every pair, also of causal attention, as that is what is computed.
  """
  m, t, e, h = net.model.trunk, net.tokens, net.model.condition, net.model.head
  d, f, n, k = m.width, m.mlp_ratio * m.width, t.length, net.text.length
  mlp = 4 * d * f
  self_attention = lambda s: s * 8 * d * d + 4 * s * s * d
  cross = n * 4 * d * d + k * 4 * d * d + 4 * n * k * d
  if t.kind == "continuous":
    w, c = h.width or d, t.channels
    draw = 2 * c * w + h.layers * 10 * w * w + 4 * w * w + 4 * w * c
    draw += 2 * 256 * w + 2 * w * w
    head = n * (2 * d * w + h.batch_mul * draw)
  else:
    head = n * 2 * d * t.vocab
  out = {
    "core": m.layers * (self_attention(n) + cross + n * mlp),
    "aligner": k * 2 * e.width * d + e.layers * (self_attention(k) + k * mlp),
    "head": head,
    "embeddings": n * 2 * t.channels * d,
  }
  return out | {"total": sum(out.values())}


def _paper(kind, order, size):
  arg = f"tokens={kind},order={order},size={size}"
  run = config.from_config_dict(paper.get_config(arg))
  return models.Net.of(run), run


def _actual(net):
  tree = jax.eval_shape(net.init, jax.random.key(0))
  return sum(a.size for a in jax.tree.leaves(tree))


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("order", ["random", "raster"])
@pytest.mark.parametrize("size", sizes.PAPER)
def test_parameters_of_the_ladder_are_those_of_the_tree(kind, order, size):
  net, _ = _paper(kind, order, size)
  assert flops.parameters(net) == parameters_by_formula(net)
  assert flops.parameters(net)["total"] == _actual(net)
  assert flops.forward(net) == forward_by_formula(net)
  m = net.model.trunk
  core = flops.parameters(net)["core"]
  assert core == pytest.approx(16 * m.layers * m.width**2, rel=0.01)


VARIANTS = {
  "categorical": {"head__tie_embeddings": False, "condition__layers": 2},
  "diffusion": {"head__width": 24, "condition__layers": 2},
}


@pytest.mark.parametrize("head", tiny.SPECS)
@pytest.mark.parametrize("order", ["random", "raster"])
@pytest.mark.parametrize("more", [False, True])
def test_small_nets_match_tree_and_traced_matmuls_by_component(head, order, more):
  changes = {"trunk__layers": 3} | (VARIANTS[head] if more else {})
  cfg = tiny.run(head, order, changes=changes)
  net = tiny.net(cfg)
  params = jax.eval_shape(net.init, jax.random.key(0))
  assert flops.parameters(net) == parameters_by_formula(net)
  assert flops.forward(net) == forward_by_formula(net)
  whole = jax.tree.map(lambda a: a.size, params)
  trunk = sum(jax.tree.leaves(whole["trunk"]))
  assert flops.parameters(net)["core"] == trunk
  batch = tiny.batch(cfg, 2)
  keys = jax.random.split(jax.random.key(0), 2)
  loss = lambda p: net.loss(p, batch, keys, train=True)["loss"]
  assert flops.traced(loss, params) == 2 * flops.forward(net)["total"]


@pytest.mark.parametrize("head", tiny.SPECS)
def test_flops_match_xla_on_an_unscanned_model(head):
  shape = dict(layers=2, width=256, heads=4, scan=False)
  changes = {f"trunk__{k}": v for k, v in shape.items()} | {"condition__layers": 1}
  cfg = tiny.run(head, changes=changes)
  net, batch = tiny.net(cfg), tiny.batch(cfg, 2)
  params = jax.eval_shape(net.init, jax.random.key(0))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  fn = jax.jit(lambda p, k: net.loss(p, batch, k, train=True)["loss"])
  xla = fn.lower(params, keys).cost_analysis()["flops"]
  # XLA adds norms, softmax, activations and random bits.
  assert 1.0 <= xla / (2 * flops.forward(net)["total"]) < 1.06


@cells
def test_every_cell_is_counted_by_component(cell):
  net = tiny_net(cell)
  counted = flops.parameters(net)
  assert counted["total"] == sum(counted[k] for k in flops.TRAINED) == _actual(net)
  work = flops.forward(net)
  assert work["total"] == sum(work[k] for k in flops.TRAINED)
  assert min(work.values()) >= 0 < work["total"]


def test_traced_counts_convolutions_and_loops():
  x, k = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
  conv = lambda x: jax.lax.conv_general_dilated(
    x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  assert flops.traced(conv, x) == 2 * (4 * 4 * 5) * (3 * 3 * 3)
  a = jnp.ones((4, 4))
  loop = lambda a: jax.lax.fori_loop(0, 7, lambda _, y: y @ a, a)
  assert flops.traced(loop, a) == 7 * 2 * 4**3


def test_describe_names_every_component():
  net, run = _paper("discrete", "random", "369M")
  described = flops.describe(net, run)
  for counts in described.values():
    assert counts["total"] == sum(counts[k] for k in flops.TRAINED)
    assert counts["text_encoder"] == 0 and counts["tokenizer"] > 0
  assert "369M" in flops.table({"369M": described["params"]}, 1e6, "")


def test_a_tokenizer_counts_as_its_folder_says(tmp_path):
  """Not as the section of a config, whose sizes are those of the published one."""
  section = VQConfig(path=str(tmp_path))
  small = dataclasses.replace(section, width=8, multipliers=(1,), channels=3, vocab=6)
  variables = jax.jit(small.make(4).init)(jax.random.key(0))
  store.save(section.path, small.make(4, jax.tree.map(np.asarray, variables)), {})
  run = config.from_config_dict(toy.get_config("tokens=discrete,size=xs"))
  net = models.Net.of(run)
  run = config.replaced(run, {"tokenizer": section, "data.image_size": 4})
  found = flops.describe(net, run)["params"]["tokenizer"]
  assert found == sum(a.size for a in jax.tree.leaves(variables))
  run = config.replaced(run, {"tokenizer.path": "/nowhere", "data.image_size": 32})
  assert flops.describe(net, run)["params"]["tokenizer"] > 10 * found


@pytest.mark.parametrize(
  "kind, peak",
  [
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU7x", 1153.5e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
  ],
)
def test_device_peaks(kind, peak):
  device = types.SimpleNamespace(platform="x", device_kind=kind)
  assert flops.peak([device] * 4) == 4 * peak


def test_peak_of_cpu_is_measured_and_of_the_unknown_is_nan():
  assert 1e9 < flops.peak(jax.devices()) < 1e14
  unknown = types.SimpleNamespace(platform="gpu", device_kind="Abacus")
  assert np.isnan(flops.peak([unknown]))
