"""Traces of some training steps, by config key 'profile_steps'."""

import pathlib

import jax

from fluid import config
from fluid.training.clocks import Clocks


class Profile:
  """Traces the steps 'first:last' into WORKDIR/profile."""

  def __init__(self, text: str, workdir: pathlib.Path):
    self._folder = str(workdir / "profile")
    self._steps = None
    self._on = False
    if not text:
      return
    try:
      first, last = map(int, text.split(":"))
    except ValueError:
      first, last = 0, -1
    if not 1 <= first <= last:
      raise config.ConfigError(
        "config key 'profile_steps' must be 'first:last' with 1 <= first <= last, "
        f"not '{text}'"
      )
    self._steps = first, last

  def before(self, step: int, clocks: Clocks) -> None:
    """Starts the trace, if this is its first step."""
    if self._steps and step == self._steps[0]:
      with clocks.of("rest"):
        jax.profiler.start_trace(self._folder)
      self._on = True

  def after(self, step: int, values, clocks: Clocks) -> None:
    """Ends the trace, if this was its last step. A restart amid it has begun none."""
    if self._on and self._steps and step == self._steps[1]:
      jax.block_until_ready(values)
      with clocks.of("rest"):
        jax.profiler.stop_trace()
      self._on = False
