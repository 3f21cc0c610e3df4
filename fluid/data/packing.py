"""A record of a cache: an example as bytes.

A record is a msgpack map: id, caption, text_ids (unpadded, with EOS), meta (as JSON,
decoded only when asked for), and arrays as [dtype, shape, bytes]: `tokens` for discrete
tokens, `mean` and `std` for continuous ones; with a frozen text encoder its `features`
[T, E] too, as bfloat16 and without padding. Of several captions the others are in
`more`: maps of caption, text_ids and features. `mirror` has the arrays of the mirror
image; `hash` is of the image, where duplicates are looked for. An example that could
not be prepared, or was left out, has a record as well, so that every other keeps its
place: id, `bad` (a kind) and `why`.

L tokens, C channels, T text tokens, E width of features.
"""

import json
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

ARRAYS = ("tokens", "mean", "std")
FEATURES = np.dtype(ml_dtypes.bfloat16)
# Kinds of damage. The first three fluid.prepare finds, the others show in a record.
BAD = tuple("image caption tokenizer corrupt shape nonfinite range text".split())
# Why fluid.prepare leaves out what it could use (config section 'data.filter'), and a
# last reason, which shows only once all records are there: it stands in none.
FILTERED = tuple("side aspect words score".split())
DUPLICATE = "duplicate"
KINDS = BAD + FILTERED


def pack(example: dict[str, Any]) -> bytes:
  """Example -> record."""
  return msgpack.packb(
    _each(_packed, dict(example, meta=json.dumps(example["meta"], sort_keys=True)))
  )


def unpack(record: bytes) -> dict[str, Any]:
  """Record -> example; arrays are read-only views, meta stays JSON."""
  return _each(_unpacked, msgpack.unpackb(record))


def texts(example: dict[str, Any]) -> list[dict[str, Any]]:
  """What an example has of each caption: caption, text_ids, features."""
  return [example, *example.get("more", ())]


def views(example: dict[str, Any]) -> list[dict[str, Any]]:
  """The arrays of an example's image and, if it has one, of its mirror image."""
  return [example, example["mirror"]] if "mirror" in example else [example]


def _each(change, record: dict[str, Any]) -> dict[str, Any]:
  """A record with all its arrays changed, in the same order."""
  out = dict(record)
  for name, value in record.items():
    if name in (*ARRAYS, "features"):
      out[name] = change(value)
    elif name == "more":
      out[name] = [_each(change, text) for text in value]
    elif name == "mirror":
      out[name] = _each(change, value)
  return out


def _packed(array: Any) -> tuple[str, tuple[int, ...], bytes]:
  array = np.ascontiguousarray(array)
  # Of numpy's own types; bfloat16 has none but its name.
  dtype = array.dtype.name if array.dtype == FEATURES else array.dtype.str
  return dtype, array.shape, array.tobytes()


def _unpacked(array: Any) -> np.ndarray:
  dtype, shape, data = array
  return np.frombuffer(data, dtype).reshape(shape)


def decode(record: bytes) -> dict[str, Any]:
  """As `unpack`; what is no record becomes {'bad': 'corrupt', 'why': ...}."""
  try:
    example = unpack(record)
    needed = ("id", "bad") if "bad" in example else ("id", "caption", "meta")
    for name in needed:
      example[name]
    for text in () if "bad" in example else texts(example):
      if not isinstance(text["text_ids"], list):
        raise TypeError("text_ids is not a list")
    return example
  # msgpack raises ValueErrors of its own; the rest is what strange content does.
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    return corrupt(e)


def corrupt(error: Exception) -> dict[str, Any]:
  """What stands for a record that cannot be read."""
  return {"bad": "corrupt", "why": str(error).split(";")[0][:100]}
