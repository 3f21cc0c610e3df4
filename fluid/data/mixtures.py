"""Caches that training draws from together: alike in all that a net sees of them."""

import hashlib
import json
import pathlib
from typing import Any

from fluid.config import ConfigError, Data
from fluid.data.records import fingerprint, read_metadata


def check(data: Data, vocabulary: str) -> None:
  """Refuses caches of a mixture that are not made as data.cache is.

  Args:
    vocabulary: name of the text encoder's file in a cache.

  Raises:
    ConfigError: naming the first difference.
  """
  wanted = _made(data.cache, vocabulary)
  for folder in data.mixture:
    found = _made(folder, vocabulary)
    for key in sorted(wanted.keys() | found.keys()):
      if found.get(key) != wanted.get(key):
        raise ConfigError(
          f"config key 'data.mixture' names {folder}, whose {key} is "
          f"{found.get(key)!r}, but that of {data.cache} is {wanted.get(key)!r}: "
          "prepare it with the same tokenizer, and with config key 'text.path' set to "
          "the text encoder of that"
        )


def mark(data: Data) -> str:
  """Of all tokens that a run trains on or is judged by, wherever they lie."""
  own = fingerprint(read_metadata(data.cache))
  if not data.mixture:
    return own
  found = [own, *(fingerprint(read_metadata(folder)) for folder in data.mixture)]
  return hashlib.sha256(json.dumps([found, data.weights]).encode()).hexdigest()[:16]


def _made(folder: str, vocabulary: str) -> dict[str, Any]:
  """What two caches have to share, by the name of a message."""
  metadata = read_metadata(folder)
  config = metadata.get("config", {})
  out = {f"tokens.{k}": v for k, v in metadata.get("tokens", {}).items()}
  out["tokenizer.weights"] = config.get("tokenizer.weights", "")
  text = {k: v for k, v in metadata.get("text", {}).items() if k != "length"}
  out |= {f"text.{k}": v for k, v in text.items()}
  out["text.dtype"] = config.get("text.dtype", "")  # Of a frozen encoder's products.
  # A vocabulary that was made there is its file; a frozen encoder has but a pointer.
  file = pathlib.Path(folder) / vocabulary
  return out | {"text.file": config.get("text.file") or _digest(file)}


def _digest(path: pathlib.Path) -> str:
  try:
    return hashlib.sha256(path.read_bytes()).hexdigest()
  except OSError as e:
    raise ConfigError(
      f"{path} cannot be read ({e.strerror}): run python -m fluid.prepare again"
    ) from e
