"""A record of a cache: an example as bytes.

A record is a msgpack map: id, caption, text_ids (unpadded, with EOS), meta (as JSON,
decoded only when asked for), and arrays as [dtype, shape, bytes]: `tokens` for discrete
tokens, `mean` and `std` for continuous ones; with a frozen text encoder its `features`
[T, E] too, as bfloat16 and without padding. An example that could not be prepared has a
record as well, so that every other keeps its place: id, `bad` (a kind) and `why`.

L tokens, C channels, T text tokens, E width of features.
"""

import json
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

ARRAYS = ("tokens", "mean", "std")
FEATURES = np.dtype(ml_dtypes.bfloat16)


def pack(example: dict[str, Any]) -> bytes:
  """Example -> record."""
  record = dict(example, meta=json.dumps(example["meta"], sort_keys=True))
  for name in (*ARRAYS, "features"):
    if name in record:
      array = np.ascontiguousarray(record[name])
      # Of numpy's own types; bfloat16 has none but its name.
      dtype = array.dtype.name if array.dtype == FEATURES else array.dtype.str
      record[name] = (dtype, array.shape, array.tobytes())
  return msgpack.packb(record)


def unpack(record: bytes) -> dict[str, Any]:
  """Record -> example; arrays are read-only views, meta stays JSON."""
  example = msgpack.unpackb(record)
  for name in (*ARRAYS, "features"):
    if name in example:
      dtype, shape, data = example[name]
      example[name] = np.frombuffer(data, dtype).reshape(shape)
  return example


def decode(record: bytes) -> dict[str, Any]:
  """As `unpack`; what is no record becomes {'bad': 'corrupt', 'why': ...}."""
  try:
    example = unpack(record)
    needed = ("id", "bad") if "bad" in example else ("id", "caption", "meta")
    for name in needed:
      example[name]
    if "bad" not in example and not isinstance(example["text_ids"], list):
      raise TypeError("text_ids is not a list")
    return example
  # msgpack raises ValueErrors of its own; the rest is what strange content does.
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    return corrupt(e)


def corrupt(error: Exception) -> dict[str, Any]:
  """What stands for a record that cannot be read."""
  return {"bad": "corrupt", "why": str(error).split(";")[0][:100]}
