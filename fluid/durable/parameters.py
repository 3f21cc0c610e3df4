"""Parameters of a run or of a folder given away: read, or put in place of others."""

import re

import jax
from flax import traverse_util

from fluid import config, remote, trees
from fluid.durable import checkpoint, exported


def restore(
  workdir, which: str = "ema", step: int | None = None, *, like=None, part=False
):
  """As checkpoint.restore_params, also of what fluid.export wrote."""
  if not exported.there(workdir):
    return checkpoint.restore_params(workdir, which, step, like=like, part=part)
  workdir = remote.local(workdir)  # Of a bucket, a copy.
  places = [x.sharding for x in jax.tree.leaves(like)]
  together = not all(place.is_fully_addressable for place in places)
  found, step = exported.read(workdir, which, step, together=together)
  if like is None:
    return jax.tree.map(lambda x: jax.device_put(x[()]), found), step
  checkpoint.check_shapes(found, like, workdir)
  flat = trees.paths(found)
  place = lambda name, leaf: jax.make_array_from_callback(
    leaf.shape, leaf.sharding, lambda i: flat[name][i].astype(leaf.dtype, copy=False)
  )
  return trees.map_names(place, like), step


def graft(params, init: config.Init):
  """Parameters of another run in place of those whose names `init.match` fits.

  Args:
    params: arrays of this run's model; their shardings are kept.

  Raises:
    CheckpointError: a parameter has no namesake of its shape there, or none fits.
  """
  flat = trees.paths(params)
  chosen = {k: v for k, v in flat.items() if re.fullmatch(init.match, k)}
  if not chosen:
    raise checkpoint.CheckpointError(
      f"config key 'init.match' ({init.match!r}) fits no parameter; there are "
      f"{', '.join(sorted({k.split('/')[0] for k in flat}))} and what is in them"
    )
  step = None if init.step < 0 else init.step
  like = traverse_util.unflatten_dict(chosen, sep="/")
  found, _ = restore(init.workdir, init.weights, step, like=like, part=True)
  return traverse_util.unflatten_dict(flat | trees.paths(found), sep="/")
