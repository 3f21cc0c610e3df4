"""Values a config may not have: refused at the start, not where they would fail."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from fluid.errors import ConfigError


def choice(name: str, value, choices: Iterable[str]) -> None:
  """Raises ConfigError unless `value` is one of `choices`."""
  if value not in choices:
    raise ConfigError(
      f"config key '{name}' is {value!r}; choose from {', '.join(choices)}"
    )


def numbers(section: Any, prefix: str) -> None:
  """Raises ConfigError unless every number of a section is finite, and none is below 0.

  Fields whose metadata say `signed` (fluid.config.part) may be below.
  """
  for field in dataclasses.fields(section):
    value = getattr(section, field.name)
    if isinstance(value, bool) or not isinstance(value, int | float):
      continue
    if not math.isfinite(value):
      raise ConfigError(
        f"config key '{prefix}{field.name}' must be finite, not {value}"
      )
    if value < 0 and not field.metadata.get("signed"):
      raise ConfigError(
        f"config key '{prefix}{field.name}' must not be negative, and is {value}"
      )


def positive(section, prefix: str, *fields: str) -> None:
  """Raises ConfigError unless these fields are above zero."""
  for field in fields:
    if (value := getattr(section, field)) <= 0:
      raise ConfigError(f"config key '{prefix}{field}' must be positive, not {value}")


def share(name: str, value: float, *, open_end: bool = False) -> None:
  """Raises ConfigError unless value is in [0, 1], or [0, 1) with an open end."""
  if not 0 <= value <= 1 or open_end and value == 1:
    raise ConfigError(
      f"config key '{name}' must be in [0, 1{')' if open_end else ']'}, not {value}"
    )


def multiple(name: str, value: int, other: str, of: int) -> None:
  """Raises ConfigError unless `value` is a multiple of the value of key `other`."""
  if value % of:
    raise ConfigError(
      f"config key '{name}' ({value}) must be a multiple of {other} ({of})"
    )
