"""Fluid: autoregressive image generation, {discrete, continuous} x {raster, random}."""

import importlib.util
import sys

__version__ = "0.1.0"


def __getattr__(name: str):
  # Lazy, so that `import fluid.config` and the like do not import a whole model.
  if name in ("load", "Loaded"):
    from fluid import api

    return getattr(api, name)
  raise AttributeError(f"module 'fluid' has no attribute '{name}'")


def _say_extra(kind, error, trace, *, otherwise=sys.excepthook) -> None:
  """In place of a traceback, where a command finds a plain install."""
  if kind is not ModuleNotFoundError:
    return otherwise(kind, error, trace)
  print(
    f"error: {error}; a plain install has what analysis needs, the rest comes with "
    "pip install 'fluid-scaling[train]'",
    file=sys.stderr,
  )


if importlib.util.find_spec("jax") is None:
  sys.excepthook = _say_extra
