"""What a run is made of: frozen dataclasses, read from a ConfigDict at the entry point.

`from_config_dict` is the only bridge. A key that is unknown, missing or of the wrong
type is an error that names it; past the entry point nothing sees a ConfigDict.
"""

from fluid.config.part import (
  Draw,
  Part,
  added,
  free,
  place,
  resolve,
  resolve_row,
  said,
)
from fluid.config.read import from_config_dict, from_file, part_from_dict, to_dict
from fluid.config.sections import (
  Data,
  Filter,
  Init,
  Mesh,
  Model,
  Optim,
  Run,
  Sample,
  replaced,
)
from fluid.errors import ConfigError, one_line

__all__ = [
  "ConfigError",
  "Data",
  "Draw",
  "Filter",
  "Init",
  "Mesh",
  "Model",
  "Optim",
  "Part",
  "Run",
  "Sample",
  "added",
  "free",
  "from_config_dict",
  "from_file",
  "one_line",
  "part_from_dict",
  "place",
  "resolve",
  "resolve_row",
  "said",
  "replaced",
  "to_dict",
]
