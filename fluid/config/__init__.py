"""What a run is made of: frozen dataclasses, read from a ConfigDict at the entry point.

`from_config_dict` is the only bridge. A key that is unknown, missing or of the wrong
type is an error that names it; past the entry point nothing sees a ConfigDict.
"""

from fluid.config.read import from_config_dict, to_dict
from fluid.config.sections import (
  Data,
  Init,
  Mesh,
  Model,
  Optim,
  Run,
  Sample,
  Text,
  Tokenizer,
)
from fluid.errors import ConfigError, one_line

__all__ = [
  "ConfigError",
  "Data",
  "Init",
  "Mesh",
  "Model",
  "Optim",
  "Run",
  "Sample",
  "Text",
  "Tokenizer",
  "from_config_dict",
  "one_line",
  "to_dict",
]
