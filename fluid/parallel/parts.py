"""Reading what several devices hold alike: each a part of its own, then all the rest.

What is read once in a slice comes to its other devices over their links, which are
faster than any store, and bit by bit.
"""

import itertools
import math

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

SMALL = 2**20  # Bytes on a device up to which all of them read the same.


def parted(x: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
  """The sharding of x, with its copies in a slice as parts where some axis divides.

  The first dimension that as many copies as can be divide is split, as Orbax splits it
  among those that save.
  """
  if not isinstance(x.sharding, NamedSharding) or _bytes(x) <= SMALL:
    return x.sharding
  mesh = x.sharding.mesh
  spec = [*x.sharding.spec, *[None] * (len(x.shape) - len(x.sharding.spec))]
  named = [(p,) if isinstance(p, str) else tuple(p or ()) for p in spec]
  used = {"slice", *itertools.chain(*named)}
  free = [a for a in mesh.axis_names if a not in used and mesh.shape[a] > 1]
  count = lambda axes: math.prod(mesh.shape[a] for a in axes)
  sets = [s for n in range(1, len(free) + 1) for s in itertools.combinations(free, n)]
  for axes in sorted(sets, key=count, reverse=True):
    for i, size in enumerate(x.shape):
      if size % count(named[i] + axes) == 0:
        named[i] += axes
        return NamedSharding(
          mesh, P(*(p[0] if len(p) == 1 else p or None for p in named))
        )
  return x.sharding


def joined(tree, like):
  """Arrays of `parted` shardings -> with those of `like`; all processes call it."""
  leaves, structure = jax.tree.flatten(tree)
  wanted = jax.tree.leaves(like)
  moves = [i for i, x in enumerate(wanted) if parted(x) is not x.sharding]
  if moves:
    specs = [wanted[i].sharding.spec for i in moves]
    with jax.set_mesh(wanted[moves[0]].sharding.mesh):
      new = jax.jit(lambda xs: [jax.reshard(x, s) for x, s in zip(xs, specs)])(
        [leaves[i] for i in moves]
      )
    for i, x in zip(moves, new):
      leaves[i] = x
  return jax.tree.unflatten(structure, leaves)


def _bytes(x: jax.ShapeDtypeStruct) -> int:
  """Of a device's shard."""
  return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
