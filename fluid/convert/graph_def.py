"""TensorFlow's frozen graphs: a GraphDef, whose constants hold the weights.

Only what leads to a constant is read: GraphDef.node, and of a node its name, op and
attribute 'value', a tensor. The numbers of the fields are those of TensorFlow's
graph.proto, node_def.proto, attr_value.proto and tensor.proto; how they are written is
protobuf's wire format. Neither library is needed.
"""

import functools
import math
import pathlib
from collections.abc import Iterator

import numpy as np

from fluid.convert.weights import AGAIN, FileError, Weights

_FLOAT = 1  # DataType.DT_FLOAT


def read(path: pathlib.Path) -> Weights:
  """The float32 constants that have an axis, by the names of their nodes.

  Strings, integers and scalars (shapes, axes, factors) are settings of a graph's
  operations and no weights: they are left out.

  Raises:
    FileError: it is cut short or no GraphDef.
  """
  try:
    found = dict(_constants(memoryview(path.read_bytes())))
  except _Damaged as e:
    raise FileError(path, f"is cut short or no TensorFlow graph ({e})", AGAIN) from e
  return Weights({k: functools.partial(_array, *v) for k, v in found.items()})


class _Damaged(ValueError):
  """Bytes that are not of the format."""


def _constants(graph: memoryview) -> Iterator[tuple[str, tuple]]:
  """(name, arguments of `_array`) of each constant that is a weight."""
  for node in _each(graph, 1):
    if _text(node, 2) != "Const":
      continue
    name = _text(node, 1)
    for attribute in _each(node, 5):
      if _text(attribute, 1) != "value":
        continue
      for tensor in (t for value in _each(attribute, 2) for t in _each(value, 8)):
        dims = (dim for shape in _each(tensor, 2) for dim in _each(shape, 2))
        shape = tuple(_number(dim, 1) for dim in dims)
        if _number(tensor, 1) == _FLOAT and shape:
          yield name, (_values(tensor, shape, name), shape)


def _values(tensor: memoryview, shape: tuple[int, ...], name: str) -> bytes:
  """The numbers as they lie in the file: one field of bytes, or a list of floats.

  Those at the end that equal the one before them may be left out.
  """
  content = b"".join(_each(tensor, 4)) or b"".join(_each(tensor, 5))
  if len(content) % 4 or len(content) > 4 * math.prod(shape):
    raise _Damaged(f"{name} has {len(content)} bytes for the shape {shape}")
  return content


def _array(content: bytes, shape: tuple[int, ...]) -> np.ndarray:
  values = np.frombuffer(content, "<f4")
  out = np.full(math.prod(shape), values[-1] if len(values) else 0, np.float32)
  out[: len(values)] = values
  return out.reshape(shape)


def _each(message: memoryview, number: int) -> Iterator[memoryview]:
  """The fields of that number that are bytes, strings or messages."""
  for found, value in _fields(message):
    if found == number and isinstance(value, memoryview):
      yield value


def _number(message: memoryview, number: int) -> int:
  """An int; protobuf leaves out a 0."""
  return ([v for k, v in _fields(message) if k == number and type(v) is int] or [0])[-1]


def _text(message: memoryview, number: int) -> str:
  return b"".join(_each(message, number)).decode("utf-8", "replace")


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
  """(number, value) of all fields: an int, or the bytes of whatever else it is."""
  at = 0
  while at < len(message):
    key, at = _varint(message, at)
    number, kind = key >> 3, key & 7
    if kind == 0:
      value, at = _varint(message, at)
      yield number, value
      continue
    if kind == 2:
      size, at = _varint(message, at)
    elif kind in (1, 5):
      size = 8 if kind == 1 else 4
    else:
      raise _Damaged(f"a field of kind {kind}")
    if at + size > len(message):
      raise _Damaged(f"a field of {size} bytes where {len(message) - at} are left")
    yield number, message[at : at + size]
    at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
  """-> (the number at a place, the place after it)."""
  value = 0
  for i in range(10):
    if at + i >= len(message):
      raise _Damaged("a number without an end")
    byte = message[at + i]
    value |= (byte & 0x7F) << 7 * i
    if byte < 0x80:
      return value, at + i + 1
  raise _Damaged("a number of more than ten bytes")
