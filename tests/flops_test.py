"""Analytic counts against real trees, against the jaxpr and against XLA."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fluid as paper
from configs import sizes
from fluid import config, flops, models
from tests import tiny


def _paper(kind, order, size):
  arg = f"tokens={kind},order={order},size={size}"
  run = config.from_config_dict(paper.get_config(arg))
  spec = flops.tokenizers.build(run.tokenizer, run.data.image_size).spec
  return models.build(run.model, spec, run.text, run.text.vocab_size), run


def _actual(net):
  tree = jax.eval_shape(net.init, jax.random.key(0))
  return sum(a.size for a in jax.tree.leaves(tree))


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("order", ["random", "raster"])
@pytest.mark.parametrize("size", sizes.PAPER)
def test_parameters_of_the_ladder_are_those_of_the_tree(kind, order, size):
  net, _ = _paper(kind, order, size)
  assert flops.parameters(net)["total"] == _actual(net)
  m = net.model
  core = flops.parameters(net)["core"]
  assert core == pytest.approx(16 * m.layers * m.width**2, rel=0.01)


VARIANTS = [{}, {"head_width": 24, "tie_embeddings": False, "aligner_layers": 2}]


@pytest.mark.parametrize("head", tiny.SPECS)
@pytest.mark.parametrize("order", ["random", "raster"])
@pytest.mark.parametrize("more", VARIANTS)
def test_small_nets_match_tree_and_traced_matmuls_by_component(head, order, more):
  cfg = tiny.run(head, model={"order": order, "layers": 3} | more)
  net = tiny.net(cfg)
  params = jax.eval_shape(net.init, jax.random.key(0))
  assert flops.parameters(net)["total"] == _actual(net)
  whole = jax.tree.map(lambda a: a.size, params)
  trunk = sum(jax.tree.leaves(whole["trunk"]))
  assert flops.parameters(net)["core"] == trunk
  batch = tiny.batch(cfg, 2)
  keys = jax.random.split(jax.random.key(0), 2)
  loss = lambda p: net.loss(p, batch, keys, train=True)["loss"]
  assert flops.traced(loss, params) == 2 * flops.forward(net)["total"]


@pytest.mark.parametrize("head", tiny.SPECS)
def test_flops_match_xla_on_an_unscanned_model(head):
  shape = dict(layers=2, width=256, heads=4, aligner_layers=1, scan=False)
  cfg = tiny.run(head, model={"order": "raster"} | shape)
  net, batch = tiny.net(cfg), tiny.batch(cfg, 2)
  params = jax.eval_shape(net.init, jax.random.key(0))
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  fn = jax.jit(lambda p, k: net.loss(p, batch, k, train=True)["loss"])
  xla = fn.lower(params, keys).cost_analysis()["flops"]
  # XLA adds norms, softmax, activations and random bits.
  assert 1.0 <= xla / (2 * flops.forward(net)["total"]) < 1.06


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
