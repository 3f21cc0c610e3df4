"""What a training step carries from one step to the next: arrays only."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from fluid import config, rng
from fluid.parallel import sharding
from fluid.training import optim


@struct.dataclass
class TrainState:
  """Attributes: step (updates done, int32), params, their moving average, optimizer."""

  step: jax.Array
  params: Any
  ema: Any
  opt_state: optax.OptState


def _init(net, run: config.Run, key) -> TrainState:
  params = net.init(key)
  opt, _ = optim.of(run, net)
  ema = jax.tree.map(jnp.copy, params)
  return TrainState(jnp.zeros((), jnp.int32), params, ema, opt.init(params))


def init_state(net, run: config.Run, mesh: jax.sharding.Mesh) -> TrainState:
  """Step 0, sharded over `mesh`; the same numbers on every mesh."""
  with jax.set_mesh(mesh):
    return jax.jit(lambda key: _init(net, run, key))(rng.stream(run.seed, "init"))


def abstract_state(net, run: config.Run, mesh: jax.sharding.Mesh) -> TrainState:
  """Shapes, types and shardings of `init_state` on `mesh`'s devices, without arrays."""
  with jax.set_mesh(mesh):
    tree = jax.eval_shape(
      lambda key: _init(net, run, key), jax.eval_shape(lambda: jax.random.key(0))
    )
  return sharding.concrete(tree, mesh)
