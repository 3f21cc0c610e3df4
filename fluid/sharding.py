"""The one place where logical axis names meet mesh axes.

The mesh has explicit axes (slice, data, fsdp, model): shardings are part of array
types, and `jax.eval_shape` checks them without compiling. Activations are sharded on
batch over slice, data and fsdp; parameters on one dimension over fsdp and on heads, mlp
or vocab over model (tensor parallelism). Slice and data hold copies of the parameters.
"""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from fluid import config

RULES = {
  "batch": ("slice", "data", "fsdp"),
  "embed": "fsdp",
  "mlp": "model",
  "heads": "model",
  "vocab": "model",
}


def make_mesh(cfg: config.Mesh, devices=None) -> jax.sharding.Mesh:
  """Config -> mesh over `devices` (default: all), one axis of -1 filled in.

  Raises:
    ConfigError: the axes do not multiply to the number of devices, or `slice` is not
      their number of slices.
  """
  devices = jax.devices() if devices is None else devices
  shape = {k: getattr(cfg, k) for k in ("slice", "data", "fsdp", "model")}
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
  sizes, types = tuple(shape.values()), (AxisType.Explicit,) * len(shape)
  # Simulated devices and GPUs have no slices; there `slice` splits what there is.
  slices = len({getattr(d, "slice_index", 0) for d in devices})
  if slices == 1:
    return jax.make_mesh(sizes, tuple(shape), axis_types=types, devices=devices)
  if slices != shape["slice"]:
    raise config.ConfigError(
      f"the devices lie in {slices} slices, but config key 'mesh.slice' is "
      f"{shape['slice']}; set it to {slices}, so that slow links carry gradients only"
    )
  grid = mesh_utils.create_hybrid_device_mesh(
    (1, *sizes[1:]), (slices, 1, 1, 1), devices=devices
  )
  return jax.sharding.Mesh(grid, tuple(shape), axis_types=types)


def batch_parts(mesh) -> int:
  """Parts that the mesh (concrete or abstract) splits a batch into."""
  return math.prod(mesh.shape[a] for a in RULES["batch"])


def _explicit() -> bool:
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.are_all_axes_explicit


def names(*logical: str | None) -> P:
  """Logical names -> PartitionSpec."""
  return P(*(RULES.get(n) if n else None for n in logical))


def spec(*logical: str | None) -> P | None:
  """Logical names -> PartitionSpec; None off-mesh and where the compiler decides."""
  return names(*logical) if _explicit() else None


def batch_spec() -> P:
  """Arrays whose first axis is the batch."""
  return P(RULES["batch"])


def check_batch(batch: int, mesh: jax.sharding.Mesh, accum: int = 1) -> None:
  """Raises ConfigError, naming the nearest batch that fits, if it does not divide."""
  parts = batch_parts(mesh) * accum
  if batch % parts:
    near = max(1, round(batch / parts)) * parts
    raise config.ConfigError(
      f"batch {batch} does not divide over {' x '.join(RULES['batch'])} x accum = "
      f"{parts}; the nearest that does is {near}"
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
