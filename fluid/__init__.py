"""Fluid: autoregressive image generation, {discrete, continuous} x {raster, random}."""


def __getattr__(name: str):
  # Lazy, so that `import fluid.config` and the like do not import a whole model.
  if name in ("load", "Loaded"):
    from fluid import api

    return getattr(api, name)
  raise AttributeError(f"module 'fluid' has no attribute '{name}'")
