"""Values a config may not have: refused at the start, not where they would fail."""

from __future__ import annotations

import re
import typing

from fluid.errors import ConfigError

if typing.TYPE_CHECKING:
  from fluid.config.sections import Model, Run, Sample


def choice(name, value, choices) -> None:
  """Raises ConfigError unless `value` is one of `choices`."""
  if value not in choices:
    raise ConfigError(
      f"config key '{name}' is {value!r}; choose from {', '.join(choices)}"
    )


def positive(name, value) -> None:
  """Raises ConfigError unless `value` is above zero."""
  if value <= 0:
    raise ConfigError(f"config key '{name}' must be positive, not {value}")


def validate_sample(sample: Sample, model: Model) -> None:
  """Refuses sampling settings that this model cannot follow."""
  choice("sample.guidance_schedule", sample.guidance_schedule, ("linear", "constant"))
  for name in ("steps", "diffusion_steps", "batch"):
    positive(f"sample.{name}", getattr(sample, name))
  choice("sample.solver", sample.solver, ("ancestral", "ddim", "dpmpp"))
  if not 0 <= sample.guidance_from <= sample.guidance_to <= 1:
    raise ConfigError(
      "config keys 'sample.guidance_from' and 'sample.guidance_to' must be ordered and "
      f"in [0, 1], not {sample.guidance_from} and {sample.guidance_to}"
    )
  for name in ("temperature", "clip", "diffusion_steps_last"):
    if getattr(sample, name) < 0:
      raise ConfigError(f"config key 'sample.{name}' must not be negative")
  for name in ("diffusion_steps", "diffusion_steps_last"):
    steps = getattr(sample, name)
    if model.head == "diffusion" and steps > model.diffusion_steps:
      raise ConfigError(
        f"config key 'sample.{name}' ({steps}) must not exceed model.diffusion_steps "
        f"({model.diffusion_steps})"
      )


def validate(run: Run) -> None:
  """Refuses values that would only fail later, naming key and choices."""
  m = run.model
  choice("model.head", m.head, ("categorical", "diffusion"))
  choice("model.order", m.order, ("raster", "random"))
  choice("model.mask", m.mask, ("cosine", "arccos", "uniform", "truncated_normal"))
  choice("model.remat", m.remat, ("none", "block", "dots"))
  choice("model.attention", m.attention, ("auto", "xla", "splash", "cudnn"))
  choice("model.dtype", m.dtype, ("bfloat16", "float32"))
  choice("optim.schedule", run.optim.schedule, ("constant", "cosine", "wsd"))
  for name in ("layers", "width", "heads", "head_batch_mul", "diffusion_steps"):
    positive(f"model.{name}", getattr(m, name))
  for name in ("steps", "batch", "accum", "keep"):
    positive(name, getattr(run, name))
  validate_sample(run.sample, run.model)
  if m.width % m.heads:
    raise ConfigError(
      f"config key 'model.width' ({m.width}) must be a multiple of model.heads "
      f"({m.heads})"
    )
  if run.batch % run.accum:
    raise ConfigError(
      f"config key 'batch' ({run.batch}) must be a multiple of accum ({run.accum})"
    )
  if not 0 <= run.data.max_bad <= 1:
    raise ConfigError("config key 'data.max_bad' is a share in [0, 1]")
  if run.optim.max_skipped < 0:
    raise ConfigError("config key 'optim.max_skipped' must not be negative")
  choice("init.weights", run.init.weights, ("ema", "raw"))
  try:
    re.compile(run.init.match)
  except re.error as e:
    raise ConfigError(f"config key 'init.match' is no regular expression: {e}") from e
  if not 0 <= m.text_drop < 1:
    raise ConfigError("config key 'model.text_drop' must be in [0, 1)")
