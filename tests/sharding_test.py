"""Meshes: every size type-checks, and they change no number."""

import jax
import numpy as np
import pytest

from configs import sizes
from fluid import config, rng, sampling
from fluid.models import Net, build
from fluid.models.published import RUNS
from fluid.parallel import sharding
from fluid.tokenizers.base import TokenSpec
from fluid.tokenizers.multiscale import VARVQConfig
from launch import hlo
from tests.nets import (
  CELLS,
  GRID,
  batch_of,
  cells,
  keys_of,
  options,
  params_of,
  part,
  tiny,
)

generate = jax.jit(sampling.generate, static_argnums=(0, 5))


@pytest.mark.parametrize("shape", [(2, 2, 2, 1), (1, 2, 2, 2)], ids=str)
@cells
def test_loss_on_a_mesh_equals_one_device(cell, shape):
  net = tiny(cell)
  params, batch = params_of(net), batch_of(net)

  def f(params, batch):
    keys = rng.example_keys(rng.stream(0, "test"), batch["id"])
    out = net.loss(params, batch, keys, train=True)
    return (out["loss"] * out["mask"]).sum() / out["mask"].sum()

  want, want_grad = jax.jit(jax.value_and_grad(f))(params, batch)
  mesh = sharding.make_mesh(config.Mesh(*shape))
  with jax.set_mesh(mesh):
    like = sharding.concrete(jax.eval_shape(net.init, jax.random.key(0)), mesh)
    params = jax.tree.map(lambda a, b: jax.device_put(a, b.sharding), params, like)
    batch = sharding.shard_batch(jax.tree.map(np.asarray, batch), mesh)
    got, got_grad = jax.jit(jax.value_and_grad(f))(params, batch)
    # Bounded: what a random denoiser makes of rounding grows from token to token.
    cfg = options(net, guidance=2.0, steps=4, diffusion_steps=3, clip=3.0)
    program, dials = sampling.turned(cfg)
    args = params, batch["text"], batch["text_mask"], keys_of(), dials
    divided = sampling._generate.lower(*args, net=net, cfg=program).compile()
    drawn = divided(*args)
  np.testing.assert_allclose(want, got, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-5
    ),
    want_grad,
    got_grad,
  )
  params, batch = jax.tree.map(np.asarray, (params, batch))
  args = params, batch["text"], batch["text_mask"], keys_of()
  alone = generate.lower(net, *args, cfg).compile()
  np.testing.assert_allclose(drawn, alone(*args), rtol=1e-3, atol=1e-4)
  # Rows are divided: no device does what another one does, but for small things.
  parts = sharding.batch_parts(mesh)
  work = [c.cost_analysis()["flops"] for c in (divided, alone)]
  assert work[0] * parts <= 1.2 * work[1]


def test_denoising_sends_nothing():
  """Its weights are on every device, its rows on one: more steps are no traffic."""
  net = tiny(("diffusion", "random"))
  batch, keys = batch_of(net), keys_of()
  mesh = sharding.make_mesh(config.Mesh(2, 2, 2, 1))
  with jax.set_mesh(mesh):
    like = sharding.concrete(jax.eval_shape(net.init, jax.random.key(0)), mesh)

    def sent(steps):
      cfg = options(net, guidance=2.0, steps=4, diffusion_steps=steps)
      program, dials = sampling.turned(cfg)
      args = like, batch["text"], batch["text_mask"], keys, dials
      compiled = sampling._generate.lower(*args, net=net, cfg=program).compile()
      found = hlo.collectives(compiled.as_text())
      return sum(t.link_bytes for t in found.values())

    assert sent(20) < 1.01 * sent(5)  # A row of times a step.


MESHES = [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2)]


# The grid at every size, other entries at one.
SIZED = [(c, s) for c in CELLS for s in (sizes.SIZES if c in GRID else ("166M",))]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("cell,size", SIZED, ids=lambda v: str(v))
def test_shardings_type_check(cell, size, mesh):
  """Every size x cell x mesh by eval_shape: nothing is compiled or allocated."""
  layers, width, heads = sizes.SIZES[size]
  if heads % mesh[2]:
    pytest.skip(f"{heads} heads do not divide over {mesh[2]} devices")
  big = size in sizes.PAPER
  spec = {
    "discrete": TokenSpec("discrete", 256, (16, 16), vocab=8192),
    "continuous": TokenSpec("continuous", 256, (16, 16), channels=16),
  }
  shape = {"layers": layers, "heads": heads} if cell.trunk == "fluid" else {}
  text = {"layers": 6 if big else 1, "width": 64} if cell.condition == "text" else {}
  model = config.Model(
    head=config.resolve("head", cell.head)(),
    order=config.resolve("order", cell.order)(),
    trunk=config.resolve("trunk", cell.trunk)(width=width, **shape),
    condition=config.resolve("condition", cell.condition)(**text),
  )
  kind = model.condition.texts[0]
  encoder = part("text", kind, **({"length": 128} if kind == "learned" else {}))
  tokens, scales = spec[model.head.tokens], None
  if model.head.scaled:
    made = VARVQConfig().make(256)
    tokens, scales = made.spec, made.to_latents()
  net = build(model, tokens, encoder, 256, scales=scales)
  params = type_checked(net, mesh)
  if sum(n > 1 for n in mesh) > 1 or mesh[1] > 1:
    blocks = params["trunk"]["blocks"] if cell.trunk == "fluid" else {}
    for path, a in jax.tree_util.tree_leaves_with_path(blocks):
      if path[-1].key == "w":
        assert any(a.sharding.spec), f"{jax.tree_util.keystr(path)} is replicated"


@pytest.mark.parametrize("name", RUNS)
def test_published_sizes_type_check(name):
  type_checked(Net.of(RUNS[name]()), (1, 2, 2, 2))


def type_checked(net, mesh):
  """Shapes of the parameters, whose gradients have to have their shardings."""
  mesh = sharding.make_mesh(config.Mesh(*mesh))
  with jax.set_mesh(mesh):
    params = jax.eval_shape(net.init, jax.random.key(0))
    rows = jax.NamedSharding(jax.sharding.get_abstract_mesh(), sharding.batch_spec())
    batch = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=rows),
      jax.eval_shape(lambda: net.example(16)),
    )

    def f(params, batch):
      keys = rng.example_keys(rng.stream(0, "train", 1), batch["id"])
      out = net.loss(params, batch, keys, train=True)
      return (out["loss"] * out["mask"]).sum() / out["mask"].sum()

    grads = jax.eval_shape(jax.grad(f), params, batch)
  jax.tree.map(
    lambda a, b: (
      a.sharding.spec == b.sharding.spec
      or pytest.fail(f"gradient sharded {b.sharding.spec}, parameter {a.sharding.spec}")
    ),
    params,
    grads,
  )
  return params


def test_mesh_that_does_not_divide_is_refused():
  with pytest.raises(config.ConfigError, match="does not divide 8 devices"):
    sharding.make_mesh(config.Mesh(data=-1, fsdp=3))
  mesh = sharding.make_mesh(config.Mesh(data=4, fsdp=-1))
  assert mesh.shape["fsdp"] == 2
  with pytest.raises(config.ConfigError, match="nearest that does is 24"):
    sharding.check_batch(22, mesh)
