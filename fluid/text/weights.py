"""A frozen network's parameters: from published tensors onto devices, checked by name.

A table of `Row`s says of every parameter where it comes from, its shape, and how a mesh
shards it. Every tensor of a file is the source of one row or on the list of those to
skip; what is missing, left over or of another size is refused in one line.

N layers (leading axis of what `Row.layers` stacks).
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluid.config import ConfigError
from fluid.parallel import sharding


@dataclasses.dataclass(frozen=True)
class Row:
  """One parameter.

  Attributes:
    sources: names of its tensor, of which files have one; '{}' is the layer's number.
    shape: of the parameter, of one layer.
    axes: logical names of its axes (fluid.parallel.sharding.RULES).
    inputs: axes that a Linear contracts, which torch's has last (0: its bias), all in
      one; None: the tensor is stored as it is.
    layers: N of them are stacked; 0: there is one.
    full: stays float32 whatever the activations are (norms, biases).
  """

  sources: tuple[str, ...]
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  inputs: int | None = None
  layers: int = 0
  full: bool = False

  def stored(self) -> tuple[int, ...]:
    """Shape of the tensor in the file."""
    if self.inputs is None:
      return self.shape
    outputs = (math.prod(self.shape[self.inputs :]),)
    return (*outputs, math.prod(self.shape[: self.inputs])) if self.inputs else outputs

  def names(self, weights: Mapping[str, Any]) -> list[str]:
    """Its tensors in a file; of those that are missing the first of `sources`."""
    numbers = range(self.layers) if self.layers else [0]
    options = [[s.format(i) for s in self.sources] for i in numbers]
    return [next((n for n in some if n in weights), some[0]) for some in options]


Rows = dict[str, Row]


def check(rows: Rows, weights: Mapping[str, Any], skip: str, where: Any) -> None:
  """Raises ConfigError unless every tensor is used once or fits `skip`, a pattern."""
  wanted = {name for row in rows.values() for name in row.names(weights)}
  aliases = {
    source.format(i)
    for row in rows.values()
    for source in row.sources
    for i in range(row.layers or 1)
  }
  for name in sorted(wanted - set(weights)):
    raise ConfigError(
      f"{where} lacks the tensor {name}: name a whole checkpoint of the right family "
      "and size in config key 'text.path'"
    )
  left = sorted(n for n in weights if n not in aliases and not re.fullmatch(skip, n))
  if left:
    raise ConfigError(
      f"{where} has the tensor {left[0]}, which this network has no place for: name a "
      "checkpoint of the right family and size in config key 'text.path'"
    )


def digest(rows: Rows, weights: Mapping[str, np.ndarray]) -> str:
  """SHA-256 of all tensors that are used: the same for any container they come in."""
  out = hashlib.sha256()
  for row in rows.values():
    for name in row.names(weights):
      array = np.ascontiguousarray(weights[name])
      out.update(f"{row.sources[0]} {array.dtype} {array.shape}".encode())
      out.update(array.reshape(-1).view(np.uint8).data)
  return out.hexdigest()


def abstract(rows: Rows, dtype: str, mesh: jax.sharding.Mesh | None = None) -> dict:
  """Name -> ShapeDtypeStruct of the parameters, sharded where there is a mesh."""
  return {
    name: jax.ShapeDtypeStruct(
      ((row.layers,) if row.layers else ()) + row.shape,
      _dtype(row, dtype),
      sharding=_sharding(row, mesh),
    )
    for name, row in rows.items()
  }


def place(
  rows: Rows,
  weights: Mapping[str, np.ndarray],
  dtype: str,
  mesh: jax.sharding.Mesh | None,
  where: Any,
) -> dict[str, jax.Array]:
  """Parameters on the mesh (None: on the default device), one in memory at a time.

  Raises:
    ConfigError: a tensor of another size, naming it.
  """
  out = {}
  for name, like in abstract(rows, dtype, mesh).items():
    parts = _parts(rows[name], weights, like.dtype, where)
    host = np.stack(list(parts)) if rows[name].layers else next(parts)
    if mesh is None:
      out[name] = jnp.asarray(host)
    else:
      part = lambda index, host=host: host[index]
      out[name] = jax.make_array_from_callback(like.shape, like.sharding, part)
  return out


def _parts(row: Row, weights, dtype, where) -> Iterator[np.ndarray]:
  for name in row.names(weights):
    array = weights[name]
    if array.shape != row.stored():
      raise ConfigError(
        f"{where}: {name} has shape {array.shape}, its config asks for {row.stored()}: "
        "put the config.json beside it that belongs to it"
      )
    array = array.astype(dtype)
    yield (array.T if row.inputs else array).reshape(row.shape)


def _dtype(row: Row, dtype: str) -> Any:
  return jnp.dtype("float32" if row.full else dtype)


def _sharding(row: Row, mesh: jax.sharding.Mesh | None) -> Any:
  if mesh is None:
    return None
  axes = ((None,) if row.layers else ()) + row.axes
  return jax.NamedSharding(mesh, sharding.names(*axes))
