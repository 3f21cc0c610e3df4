"""Arguments of a config file: what stands behind the colon of --config=FILE:ARGS."""

import ml_collections

from fluid.config import ConfigError


def parse(arg: str | None, **defaults):
  """'size=369M,order=random' -> the defaults, with values cast to their types.

  For get_config(arg). A tuple is a list of choices, its first the default.

  Raises:
    ConfigError: an unknown name or a value that is no choice, naming both.
  """
  out = {k: v[0] if isinstance(v, tuple) else v for k, v in defaults.items()}
  for item in filter(None, (arg or "").split(",")):
    name, sep, value = item.partition("=")
    if name not in defaults or not sep:
      raise ConfigError(
        f"unknown config argument '{item}'; write name=value with one of "
        f"{', '.join(defaults)}"
      )
    default = defaults[name]
    if isinstance(default, tuple):
      if value not in default:
        raise ConfigError(
          f"config argument {name}='{value}'; choose from {', '.join(default)}"
        )
      out[name] = value
    else:
      try:
        out[name] = type(default)(value)
      except ValueError:
        raise ConfigError(
          f"config argument {name}='{value}' must be {type(default).__name__}"
        ) from None
  return ml_collections.ConfigDict(out)
