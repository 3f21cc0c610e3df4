"""The one place where logical axis names meet mesh axes.

The mesh has explicit axes (data, fsdp, model): shardings are part of array types and
`jax.eval_shape` checks them without compiling. Activations are sharded on batch over
data and fsdp, parameters on one dimension over fsdp and on heads, mlp or vocab over
model (tensor parallelism).
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fluid import config

RULES = {
  "batch": ("data", "fsdp"),
  "embed": "fsdp",
  "mlp": "model",
  "heads": "model",
  "vocab": "model",
}


def make_mesh(cfg: config.Mesh, devices=None) -> jax.sharding.Mesh:
  """Config -> mesh over `devices` (default: all), one axis of -1 filled in.

  Raises:
    ConfigError: the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  shape = {"data": cfg.data, "fsdp": cfg.fsdp, "model": cfg.model}
  free = [k for k, v in shape.items() if v == -1]
  known = math.prod(v for v in shape.values() if v != -1)
  if len(free) > 1:
    raise config.ConfigError(f"mesh: only one axis may be -1, not {', '.join(free)}")
  if known < 1 or (len(devices) % known if free else known != len(devices)):
    raise config.ConfigError(
      f"mesh {shape} does not divide {len(devices)} devices; set one axis to -1 and "
      "the product of the others to a divisor of the device count"
    )
  if free:
    shape[free[0]] = len(devices) // known
  return jax.make_mesh(
    tuple(shape.values()),
    tuple(shape),
    devices=devices,
    axis_types=(AxisType.Explicit,) * len(shape),
  )


def _explicit() -> bool:
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.are_all_axes_explicit


def spec(*names: str | None) -> P | None:
  """Logical names -> PartitionSpec; None off-mesh and where the compiler decides."""
  return P(*(RULES.get(n) if n else None for n in names)) if _explicit() else None


def batch_spec() -> P:
  """Arrays whose first axis is the batch."""
  return P(RULES["batch"])


def check_batch(batch: int, mesh: jax.sharding.Mesh, accum: int = 1) -> None:
  """Raises ConfigError, naming the nearest batch that fits, if it does not divide."""
  parts = mesh.shape["data"] * mesh.shape["fsdp"] * accum
  if batch % parts:
    near = max(1, round(batch / parts)) * parts
    raise config.ConfigError(
      f"batch {batch} does not divide over data x fsdp x accum = {parts}; the nearest "
      f"that does is {near}"
    )


def shard_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict:
  """This process's rows of a batch -> global arrays sharded on batch."""
  sharding = jax.NamedSharding(mesh, batch_spec())
  return {
    k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()
  }


def concrete(tree, mesh: jax.sharding.Mesh):
  """ShapeDtypeStructs of eval_shape (abstract mesh) -> the same on `mesh`'s devices.

  Orbax and ahead-of-time compilation want real devices.
  """

  def leaf(a):
    named = getattr(a, "sharding", None)
    s = jax.NamedSharding(mesh, named.spec if named is not None else P())
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)

  return jax.tree.map(leaf, tree)
