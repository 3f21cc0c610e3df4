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


# What is run once is not worth optimising: LLVM takes many times as long as the run.
_ONCE = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}


def _init(net, run: config.Run, key) -> TrainState:
  params = net.init(key)
  opt, _ = optim.of(run, net)
  ema = jax.tree.map(jnp.copy, params)
  return TrainState(jnp.zeros((), jnp.int32), params, ema, opt.init(params))


def init_state(net, run: config.Run, mesh: jax.sharding.Mesh) -> TrainState:
  """Step 0, sharded over `mesh`; the same numbers on every mesh."""
  cpu = mesh.devices.flat[0].platform == "cpu"
  with jax.set_mesh(mesh):
    init = jax.jit(
      lambda key: _init(net, run, key), compiler_options=_ONCE if cpu else None
    )
    return init(rng.stream(run.seed, "init"))


def abstract_state(net, run: config.Run, mesh: jax.sharding.Mesh) -> TrainState:
  """Shapes, types and shardings of `init_state` on `mesh`'s devices, without arrays."""
  with jax.set_mesh(mesh):
    tree = jax.eval_shape(
      lambda key: _init(net, run, key), jax.eval_shape(lambda: jax.random.key(0))
    )
  return sharding.concrete(tree, mesh)
