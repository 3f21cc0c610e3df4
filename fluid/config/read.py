"""The only bridge between files, flags and dataclasses."""

import dataclasses
import difflib
import json
import pathlib
import types
import typing
from typing import Any

import ml_collections

from fluid import files
from fluid.config import part, rules, upgrade
from fluid.config.sections import Run
from fluid.errors import ConfigError


def from_config_dict(config, cls: type = Run, prefix: str = "") -> Any:
  """ConfigDict or dict -> dataclass `cls`.

  Every field of `cls` may be left out (its default holds); an unknown key, a wrong
  type, or a value that a section refuses raises ConfigError naming the dotted key.
  """
  out = _read(_plain(config), cls, prefix)
  validate(out, prefix)
  return out


def from_file(path: str | pathlib.Path) -> Run:
  """The run of a config.json, of this layout or an older one.

  Raises:
    OSError: it cannot be read; ConfigError: what it says cannot be used.
  """
  try:
    tree = _section(json.loads(files.read_text(path)), "config")
    return from_config_dict(upgrade.run(tree))
  except ValueError as e:  # Of json, and ConfigError.
    raise ConfigError(f"{path} is damaged ({e}); restore or remove it") from e


def part_from_dict(config, family: str, prefix: str) -> Any:
  """{kind, **fields} -> the part of a family."""
  out = _part(_plain(config), family, prefix.removesuffix("."))
  validate(out, prefix)
  return out


def to_dict(config: Any) -> Any:
  """Dataclass -> nested plain dict (JSON-able; tuples become lists)."""
  if isinstance(config, dict):
    return {k: to_dict(v) for k, v in config.items()}
  if isinstance(config, tuple | list):
    return [to_dict(v) for v in config]
  if not dataclasses.is_dataclass(config):
    return config
  if hasattr(config, "flat"):
    return config.flat()
  kind = {"kind": config.kind} if isinstance(config, part.Part) else {}
  fields = dataclasses.fields(config)
  return kind | {f.name: to_dict(getattr(config, f.name)) for f in fields}


def validate(config: Any, prefix: str = "") -> None:
  """Asks every section whether its values can be used."""
  for name, value in vars(config).items():
    for key, node in _nodes(name, value):
      if hasattr(node, "check"):
        validate(node, f"{prefix}{key}.")
  if hasattr(config, "check"):
    rules.numbers(config, prefix)
    config.check(prefix)


def _nodes(name: str, value: Any):
  if isinstance(value, dict):
    return [(f"{name}.{k}", v) for k, v in value.items()]
  return [(name, value)]


def _plain(config: Any) -> Any:
  return config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config


def _read(tree: dict, cls: type, prefix: str) -> Any:
  fields = {f.name: f for f in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  for key in tree:
    if key not in fields:
      raise _unknown(key, fields, prefix)
  kwargs: dict[str, Any] = {}
  for key, value in tree.items():
    name, family = prefix + key, fields[key].metadata.get("family", "")
    if cls is Run and key == "sample":
      continue
    if fields[key].metadata.get("named"):
      kwargs[key] = _named(_section(value, name), family, name)
    elif family:
      default = {"kind": fields[key].metadata["kind"]}
      kwargs[key] = _part(default | _section(value, name), family, name)
    elif dataclasses.is_dataclass(hints[key]):
      kwargs[key] = _read(_section(value, name), hints[key], name + ".")
    else:
      kwargs[key] = _cast(value, hints[key], name)
  out = cls(**kwargs)
  if cls is Run and "sample" in tree:
    sample = _sample(_section(tree["sample"], prefix + "sample"), out.model, prefix)
    out = dataclasses.replace(out, sample=sample)
  return out


def _unknown(key, known, prefix: str) -> ConfigError:
  near = difflib.get_close_matches(key, known, 1)
  hint = f"known keys: {', '.join(sorted(known)) or 'none'}"
  if near:
    hint = f"did you mean '{prefix}{near[0]}'?"
  return ConfigError(f"unknown config key '{prefix}{key}'; {hint}")


def _section(value: Any, name: str) -> dict:
  value = _plain(value)
  if not isinstance(value, dict):
    raise ConfigError(f"config key '{name}' is a section, not {value!r}")
  return value


def _part(tree: dict, family: str, name: str) -> part.Part:
  tree = dict(tree)
  kind = tree.pop("kind", None)
  return _read(tree, part.resolve(family, kind, name), name + ".")


def _named(tree: dict, family: str, name: str) -> dict[str, part.Part]:
  out = {}
  for key, value in tree.items():
    if key not in part.registry(family) and "kind" not in _section(value, key):
      raise ConfigError(
        f"unknown config key '{name}.{key}'; choose from "
        f"{', '.join(part.registry(family))}"
      )
    out[key] = _part({"kind": key} | _section(value, key), family, f"{name}.{key}")
  return out


def _sample(tree: dict, model, prefix: str) -> Any:
  """The flat section 'sample' -> Sample, with the options of this model's parts."""
  default = model.sample()
  known = default.flat()
  hints = typing.get_type_hints(type(default))
  for draw in (default.order, default.head):
    hints |= typing.get_type_hints(type(draw))
  prefix += "sample."
  for key in tree:
    if key not in known:
      raise _unknown(key, known, prefix)
  cast = {k: _cast(v, hints[k], prefix + k) for k, v in tree.items()}
  return default.replace(**cast)


def _cast(value, kind, name):
  if kind is Any:
    return value
  origin = typing.get_origin(kind) or kind
  if origin is types.UnionType:
    for choice in typing.get_args(kind):
      try:
        return _cast(value, choice, name)
      except ConfigError:
        continue
    raise ConfigError(f"config key '{name}' must be {kind}, not {value!r}")
  if origin is tuple and isinstance(value, tuple | list):
    each, *more = typing.get_args(kind) or (Any, ...)
    return tuple(_cast(v, each, name) for v in value) if more == [...] else tuple(value)
  if origin is dict and isinstance(value, dict):
    return dict(value)
  if origin is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, origin) or (origin is int and isinstance(value, bool)):
    raise ConfigError(f"config key '{name}' must be {origin.__name__}, not {value!r}")
  return value
