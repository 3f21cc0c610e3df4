"""The only bridge between a ConfigDict and dataclasses."""

import dataclasses
import difflib
import types
import typing

import ml_collections

from fluid.config.rules import validate
from fluid.config.sections import Run
from fluid.errors import ConfigError


def from_config_dict(config, cls: type = Run, prefix: str = ""):
  """ConfigDict or dict -> dataclass `cls`.

  Every field of `cls` may be left out (its default holds); an unknown key, a wrong
  type, or a value that `validate` refuses raises ConfigError naming the dotted key.
  """
  if isinstance(config, ml_collections.ConfigDict):
    config = config.to_dict()
  fields = {f.name: f for f in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  kwargs = {}
  for key, value in config.items():
    name = prefix + key
    if key not in fields:
      near = difflib.get_close_matches(key, fields, 1)
      hint = (
        f"; did you mean '{prefix}{near[0]}'?"
        if near
        else (f"; known keys: {', '.join(sorted(fields))}")
      )
      raise ConfigError(f"unknown config key '{name}'{hint}")
    kind = hints[key]
    if dataclasses.is_dataclass(kind):
      if not isinstance(value, (dict, ml_collections.ConfigDict)):
        raise ConfigError(f"config key '{name}' is a section, not {value!r}")
      kwargs[key] = from_config_dict(value, kind, name + ".")
    else:
      kwargs[key] = _cast(value, kind, name)
  out = cls(**kwargs)
  if cls is Run:
    validate(out)
  return out


def _cast(value, kind, name):
  origin = typing.get_origin(kind) or kind
  if origin is tuple and isinstance(value, (tuple, list)):
    return tuple(value)
  if origin is dict and isinstance(value, dict):
    return dict(value)
  if origin is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if (
    isinstance(origin, types.UnionType)
    or not isinstance(value, origin)
    or (origin is int and isinstance(value, bool))
  ):
    raise ConfigError(f"config key '{name}' must be {origin.__name__}, not {value!r}")
  return value


def to_dict(config) -> dict:
  """Dataclass -> nested plain dict (JSON-able; tuples become lists)."""
  out = {}
  for f in dataclasses.fields(config):
    v = getattr(config, f.name)
    if dataclasses.is_dataclass(v):
      v = to_dict(v)
    elif isinstance(v, tuple):
      v = list(v)
    out[f.name] = v
  return out
