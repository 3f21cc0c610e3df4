"""abstract_state says what init_state makes, on any mesh; a step keeps shardings."""

import jax
import numpy as np
import pytest

from fluid import config, trees
from fluid.parallel import sharding
from fluid.training import state
from fluid.training.step import make_step
from tests import tiny

MESHES = [config.Mesh(2, 2, 2), config.Mesh(1, 8, 1), config.Mesh(8, 1, 1)]


@pytest.mark.parametrize("head", tiny.SPECS)
@pytest.mark.parametrize("order", ["raster", "random"])
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_a_step_maps_state_shardings_onto_themselves(head, order, shape):
  cfg = tiny.run(head, order, changes={"condition__layers": 1, "trunk__heads": 2})
  net, mesh = tiny.net(cfg), sharding.make_mesh(shape)
  before = state.abstract_state(net, cfg, mesh)
  place = jax.NamedSharding(mesh, sharding.batch_spec())
  batch = {
    k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=place)
    for k, v in tiny.batch(cfg, 16).items()
  }
  with jax.set_mesh(mesh):
    after, _ = jax.eval_shape(make_step(net, cfg), before, batch)
  after = sharding.concrete(after, mesh)
  assert jax.tree.all(jax.tree.map(lambda a, b: a == b, before, after))
  params, moments = trees.paths(before.params), trees.paths(before.opt_state[1][0].mu)
  assert {k: v.sharding for k, v in params.items()} == {
    k: v.sharding for k, v in moments.items()
  }


def test_init_is_what_abstract_state_says_and_the_same_on_every_mesh():
  cfg = tiny.run()
  net = tiny.net(cfg)
  made = []
  for shape, devices in ((config.Mesh(2, 2, 2), 8), (config.Mesh(), 1)):
    mesh = sharding.make_mesh(shape, jax.devices()[:devices])
    abstract, real = (
      state.abstract_state(net, cfg, mesh),
      state.init_state(net, cfg, mesh),
    )
    for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(real), strict=True):
      assert (a.shape, a.dtype) == (b.shape, b.dtype)
      assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
    made.append(real)
  for a, b in zip(jax.tree.leaves(made[0]), jax.tree.leaves(made[1])):
    np.testing.assert_array_equal(a, b)
  for a, b in zip(jax.tree.leaves(made[0].params), jax.tree.leaves(made[0].ema)):
    np.testing.assert_array_equal(a, b)
