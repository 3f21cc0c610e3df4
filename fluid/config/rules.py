"""Values a config may not have: refused at the start, not where they would fail."""

from collections.abc import Iterable

from fluid.errors import ConfigError


def choice(name: str, value, choices: Iterable[str]) -> None:
  """Raises ConfigError unless `value` is one of `choices`."""
  if value not in choices:
    raise ConfigError(
      f"config key '{name}' is {value!r}; choose from {', '.join(choices)}"
    )


def positive(section, prefix: str, *fields: str) -> None:
  """Raises ConfigError unless these fields are above zero."""
  for field in fields:
    if (value := getattr(section, field)) <= 0:
      raise ConfigError(f"config key '{prefix}{field}' must be positive, not {value}")


def not_negative(section, prefix: str, *fields: str) -> None:
  """Raises ConfigError where one of these fields is below zero."""
  for field in fields:
    if getattr(section, field) < 0:
      raise ConfigError(f"config key '{prefix}{field}' must not be negative")


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
