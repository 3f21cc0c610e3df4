"""What a sweep file asks for: the runs that it yields, each with its config.

A sweep file defines `sweep()`, which yields `dict(name=..., config=..., overrides=...)`
for each run: `config` is what `--config` takes (`configs/toy.py:tokens=continuous`) and
`overrides` maps dotted keys to values. `hardware` says what a run takes where there is
a choice ('v5p:4x4x4', see launch.hardware; or 'recommended', by its size), or {kind of
stage: that}. `tune` is a grid of sampling options, and what it is judged by, for
`fluid.evaluate --sweep` once the run is trained: ('guidance=1:8:0.5', 'kid').
"""

import contextlib
import importlib.util
import os
import re
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fluid import shipped
from fluid.config import ConfigError, Run, from_config_dict

_POINT: dict[str, Any] = {
  "name": str, "config": str, "overrides": dict, "hardware": str | dict,
  "tune": tuple | list | None,
}  # fmt: skip
_NAME = r"\w[\w.+=,@ -]*"


def load_points(sweep_file: str | Path) -> list[dict]:
  """The points a sweep file yields."""
  sweep = _function(sweep_file, "sweep")
  with _running(sweep_file):
    points = list(sweep() or ())
  for point in points:
    if not isinstance(point, dict):
      raise ConfigError(
        f"{sweep_file} yields {point!r}: it takes dict(name=..., config=...)"
      )
    if unknown := set(point) - set(_POINT):
      raise ConfigError(
        f"{sweep_file} yields a point with unknown key {unknown.pop()!r}"
      )
    if missing := {"name", "config"} - set(point):
      raise ConfigError(f"{sweep_file} yields a point without {missing.pop()!r}")
    for key, value in point.items():
      if not isinstance(value, kind := _POINT[key]):
        raise ConfigError(
          f"{sweep_file}: {key!r} of {point['name']!r} is {value!r}; it takes "
          f"{kind if isinstance(kind, types.UnionType) else kind.__name__}"
        )
    if not re.fullmatch(_NAME, point["name"]):
      raise ConfigError(
        f"{sweep_file} yields a point named {point['name']!r}, which is no name of a "
        "folder: letters, digits and any of .+=,@_- and spaces, a letter or digit first"
      )
    match point.get("tune"):
      case None | () | [] | [str(), str()]:
        pass
      case other:
        raise ConfigError(
          f"{sweep_file}: 'tune' of '{point['name']}' is {other!r}; it takes two "
          "strings, a grid and what it is judged by: ('guidance=1:8:0.5', 'kid')"
        )
  if not points:
    raise ConfigError(f"{sweep_file} yields no runs")
  return points


def resolve(config: str, overrides: dict[str, Any]) -> Run:
  """'path.py:argument' and dotted overrides -> Run."""
  path, _, argument = config.partition(":")
  get_config = _function(path, "get_config")
  with _running(path):
    tree = get_config(argument) if argument else get_config()
  try:
    tree.update_from_flattened_dict(overrides)
  except (KeyError, TypeError, ValueError) as e:
    raise ConfigError(f"cannot override {config}: {e}") from e
  return from_config_dict(tree)


def _function(path: str | Path, name: str) -> Callable:
  """A function that a file defines."""
  found = Path(shipped.find(str(path)))
  if not found.is_file():
    raise ConfigError(f"no such file: {path}")
  spec = importlib.util.spec_from_file_location(f"_sweep_{found.stem}", found)
  if spec is None or spec.loader is None:
    raise ConfigError(f"{path} is no Python file")
  module = importlib.util.module_from_spec(spec)
  with _running(path):
    spec.loader.exec_module(module)
  if not callable(function := getattr(module, name, None)):
    raise ConfigError(f"{path} has no function {name}()")
  return function


@contextlib.contextmanager
def _running(path: str | Path) -> Iterator[None]:
  """An error in a file that somebody wrote becomes one line, with the place in it."""
  try:
    yield
  except ConfigError:
    raise
  except Exception as e:
    file: str | None = os.path.abspath(shipped.find(str(path)))
    if isinstance(e, SyntaxError):  # It has no frame, and may be in what is imported.
      file, line, said = e.filename, e.lineno, e.msg
    else:
      frames, said = traceback.extract_tb(e.__traceback__), str(e)
      line = next((f.lineno for f in reversed(frames) if f.filename == file), 0)
    raise ConfigError(f"{file}, line {line}: {type(e).__name__}: {said}") from e
