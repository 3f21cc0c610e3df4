"""The one place where logical axis names meet mesh axes.

The mesh has explicit axes (slice, data, fsdp, model): shardings are part of array
types, and `jax.eval_shape` checks them without compiling. Activations are sharded on
batch over slice, data and fsdp; parameters on one dimension over fsdp and on heads, mlp
or vocab over model (tensor parallelism). Slice and data hold copies of the parameters.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import mesh_utils, multihost_utils
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
# Of the batch's, those along which weights are copied.
COPIES = tuple(axis for axis in RULES["batch"] if axis != RULES["embed"])
PRODUCT = "product"  # What rematerialisation may keep: see `product`.


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
    # An axis may span part of a dimension of the torus: 32 of 4 x 4 x 4.
    grid = mesh_utils.create_device_mesh(
      sizes, devices=devices, allow_split_physical_axes=True
    )
    return jax.sharding.Mesh(grid, tuple(shape), axis_types=types)
  if slices != shape["slice"]:
    raise config.ConfigError(
      f"the devices lie in {slices} slices, but config key 'mesh.slice' is "
      f"{shape['slice']}; set it to {slices}, so that slow links carry gradients only"
    )
  grid = mesh_utils.create_hybrid_device_mesh(
    (1, *sizes[1:]),
    (slices, 1, 1, 1),
    devices=devices,
    allow_split_physical_axes=True,
  )
  return jax.sharding.Mesh(grid, tuple(shape), axis_types=types)


def batch_parts(mesh) -> int:
  """Parts that the mesh (concrete or abstract) splits a batch into."""
  return math.prod(mesh.shape[a] for a in RULES["batch"])


def explicit() -> bool:
  """Whether shardings are part of types here: on a mesh, and not while sampling."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.are_all_axes_explicit


def left_to_compiler() -> bool:
  """Whether the compiler lays out what it is not told of: on a mesh, while sampling."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.are_all_axes_auto


def names(*logical: str | None) -> P:
  """Logical names -> PartitionSpec."""
  return P(*(RULES.get(n) if n else None for n in logical))


def spec(*logical: str | None) -> P | None:
  """Logical names -> PartitionSpec; None off-mesh and where the compiler decides."""
  return names(*logical) if explicit() else None


def product(
  equation, x, w, b=None, *, x_axes, w_axes, dtype=None, whole=False
) -> jax.Array:
  """einsum of activations and weights, plus a bias: sharded, with float32 sums.

  Each device multiplies its rows by weights that are gathered over fsdp for this
  product alone (and once more for its gradient); gradients of weights are summed by a
  reduce-scatter over fsdp, then over the copies. XLA's partitioner would sum them whole
  on every device, which sends twice the bytes.

  All three products (this one, and both gradients) add in float32 and round once. TPUs
  and GPUs do so anyway; on CPUs it is twice as fast as bfloat16 sums. The bias's
  gradient is a product with ones, as XLA's CPU reductions are slow.

  The result has the name PRODUCT for jax.checkpoint, whose own policies for matmuls do
  not see into it.

  Args:
    equation: 'x,w->y' as of einsum, in single letters, without repetition.
    x, w: of one type.
    b: of the axes of w that are in y, or None.
    x_axes, w_axes: logical names of their axes; 'embed' for weights only.
    dtype: of the result (default: that of x).
    whole: while sampling w lies whole on every device (`everywhere`), so that rows stay
      where they are however few they are.
  """
  x_axes, w_axes = tuple(x_axes), tuple(w_axes)
  if explicit():  # Nothing to do, except for weights that lie whole on every device.
    w = jax.reshard(w, names(*w_axes))
  few = left_to_compiler() and not whole and _few(equation, x, w)
  rows = COPIES if x_axes[0] == "batch" else None
  if few:
    x = _told(x, rows)
  elif left_to_compiler() and x_axes[0] == "batch":
    x = by_rows(x)
  y = _product(equation, x_axes, w_axes, dtype or x.dtype, x, w, b)
  return checkpoint_name(_told(y, rows) if few else y, PRODUCT)


def _few(equation, x, w) -> bool:
  """Whether sending rows to the weights is less than sending weights to the rows.

  So it is where tokens are decoded one by one. Left alone, the compiler would gather
  gigabytes of weights for each of them, or do all rows of a long pass everywhere.
  """
  inputs, out = equation.split("->")
  sizes = dict(zip(inputs.replace(",", ""), x.shape + w.shape))
  return x.size + math.prod(sizes[k] for k in out) < w.size


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _product(equation, x_axes, w_axes, dtype, x, w, b):
  axes, y_axes = _letters(equation, x_axes, w_axes)
  run = lambda x, w: _multiply(equation, axes, x, _gather(w, w_axes), dtype)
  y = _shards(run, (x_axes, w_axes), y_axes)(x, w)
  return y if b is None else y + b.astype(dtype)


def _product_forward(equation, x_axes, w_axes, dtype, x, w, b):
  return _product(equation, x_axes, w_axes, dtype, x, w, b), (x, w, b)


def _product_backward(equation, x_axes, w_axes, dtype, saved, dy):
  del dtype
  x, w, b = saved
  dy = dy.astype(x.dtype)
  left, right, out = re.split(",|->", equation)
  axes, y_axes = _letters(equation, x_axes, w_axes)
  to_x, to_w = f"{out},{right}->{left}", f"{left},{out}->{right}"
  scatter = w_axes.index("embed") if "embed" in w_axes else None
  run_x = lambda dy, w: _multiply(to_x, axes, dy, _gather(w, w_axes), x.dtype)
  run_w = lambda x, dy: _multiply(to_w, axes, x, dy, w.dtype, scatter)
  dx = _shards(run_x, (y_axes, w_axes), x_axes)(dy, w)
  dw = _shards(run_w, (x_axes, y_axes), w_axes)(x, dy)
  if b is None:
    return dx, dw, None
  lead, new = (  # Letters of y: rows, and what the weights bring.
    "".join(k for k in out if (k in left) == rows) for rows in (True, False)
  )

  def run_b(dy):
    ones = jnp.ones(dy.shape[: len(lead)], dy.dtype)
    return _multiply(f"{lead},{lead}{new}->{new}", axes, ones, dy, b.dtype)

  db = _shards(run_b, (y_axes,), [axes[k] for k in new])(dy)
  return dx, dw, db


_product.defvjp(_product_forward, _product_backward)


def _letters(equation, x_axes, w_axes):
  """-> the logical name of each letter once weights are gathered; those of y."""
  left, right, out = re.split(",|->", equation)
  axes = dict(zip(left + right, x_axes + w_axes))
  axes = {k: None if a == "embed" else a for k, a in axes.items()}
  return axes, tuple(axes[k] for k in out)


def per_device(run, in_axes, out_axes):
  """`run` on the part of each device; logical axes of the arguments and the result."""
  return jax.shard_map(
    run,
    in_specs=tuple(names(*a) for a in in_axes),
    out_specs=names(*out_axes),
    check_vma=False,
  )


def _shards(run, in_axes, out_axes):
  return per_device(run, in_axes, out_axes) if explicit() else run


def _gather(w, w_axes):
  if "embed" not in w_axes or "fsdp" not in _split_over("embed"):
    return w
  return jax.lax.all_gather(w, "fsdp", axis=w_axes.index("embed"), tiled=True)


def _multiply(equation, axes, a, b, dtype, scatter=None):
  """A product of shards, summed over the devices that hold parts of the sum."""
  left, right, out = re.split(",|->", equation)
  y = jnp.einsum(equation, a, b, preferred_element_type=jnp.float32).astype(dtype)
  over = [m for k in set(left + right) - set(out) for m in _split_over(axes[k])]
  if scatter is not None and "fsdp" in over:
    y = jax.lax.psum_scatter(y, "fsdp", scatter_dimension=scatter, tiled=True)
    over.remove("fsdp")
  return jax.lax.psum(y, tuple(over)) if over else y


def _split_over(name: str | None) -> list[str]:
  """Mesh axes of more than one device that a logical axis is split over, here."""
  mesh = jax.sharding.get_abstract_mesh()
  if name is None or mesh.empty or mesh.are_all_axes_auto:
    return []
  axes = RULES[name]
  return [a for a in ([axes] if isinstance(axes, str) else axes) if mesh.shape[a] > 1]


def batch_spec() -> P:
  """Arrays whose first axis is the batch."""
  return P(RULES["batch"])


def by_rows(tree, axis: int = 0):
  """Arrays [B, ...] (B on `axis`) sharded on batch, where there is a mesh.

  For new arrays, and for those of one row: an axis of size one loses its sharding.
  While sampling the compiler is told of the batch, and decides on the other axes.
  """
  if explicit():
    return jax.reshard(tree, P(*[None] * axis, RULES["batch"]))
  if not left_to_compiler():
    return tree
  return jax.tree.map(lambda a: _told(a, RULES["batch"], axis), tree)


def everywhere(a: jax.Array) -> jax.Array:
  """An array that lies whole on every device from here on; only while sampling."""
  return jax.lax.with_sharding_constraint(a, P()) if left_to_compiler() else a


def _told(a, where, axis: int = 0):
  """The compiler is told of one axis: to be sharded over these, or (None) whole."""
  free = [P.UNCONSTRAINED] * a.ndim
  free[axis] = where
  return jax.lax.with_sharding_constraint(a, P(*free))


def check_batch(batch: int, mesh: jax.sharding.Mesh, accum: int = 1) -> None:
  """Raises ConfigError, naming the nearest batch that fits, if it does not divide."""
  parts = batch_parts(mesh) * accum
  if batch % parts:
    near = max(1, round(batch / parts)) * parts
    raise config.ConfigError(
      f"batch {batch} does not divide over {' x '.join(RULES['batch'])} x accum = "
      f"{parts}; the nearest that does is {near}"
    )


@functools.lru_cache
def local_rows(batch: int, mesh: jax.sharding.Mesh) -> np.ndarray:
  """Rows of a global batch that the devices of this process hold, ascending.

  Not always an equal share: processes along the model axis hold the same rows, and a
  mesh laid over a torus may deal them out in turn.
  """
  sharding = jax.NamedSharding(mesh, batch_spec())
  held = sharding.addressable_devices_indices_map((batch,)).values()
  return np.unique(np.concatenate([np.arange(batch)[index] for index in held]))


def shard_batch(
  batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh, total: int | None = None
) -> dict:
  """This process's rows of a batch -> global arrays sharded on batch.

  Args:
    batch: arrays whose rows are `local_rows(total, mesh)`.
    total: rows of the global batch (None: the arrays hold all of them).
  """
  total = total or len(next(iter(batch.values())))
  rows, sharding = local_rows(total, mesh), jax.NamedSharding(mesh, batch_spec())

  def whole(local):
    def part(index):  # A device's rows are neighbours, here as in the whole.
      start, stop, _ = index[0].indices(total)
      first = np.searchsorted(rows, start)
      return local[first : first + stop - start]

    return jax.make_array_from_callback((total, *local.shape[1:]), sharding, part)

  return {k: whole(v) for k, v in batch.items()}


def to_host(x: jax.Array) -> np.ndarray:
  """A global array as a whole, on every process; all of them call it."""
  if x.is_fully_addressable or x.is_fully_replicated:
    return np.asarray(x)
  return multihost_utils.process_allgather(x, tiled=True)


def concrete(tree, mesh: jax.sharding.Mesh):
  """ShapeDtypeStructs of eval_shape (abstract mesh) -> the same on `mesh`'s devices.

  Orbax and ahead-of-time compilation want real devices.
  """

  def leaf(a):
    named = getattr(a, "sharding", None)
    s = jax.NamedSharding(mesh, named.spec if named is not None else P())
    return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)

  return jax.tree.map(leaf, tree)
