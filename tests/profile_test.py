"""Traces: begun and ended once, or not at all."""

import jax

from fluid.training import clocks
from fluid.training.profile import Profile


def test_a_restart_amid_the_traced_steps_leaves_them_out(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda _: said.append("start"))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: said.append("stop"))
  for first, expected in ((1, ["start", "stop"]), (3, []), (5, [])):
    said.clear()
    profile, clock = Profile("2:4", tmp_path), clocks.Clocks()
    for step in range(first, 7):
      profile.before(step, clock)
      profile.after(step, (), clock)
    assert said == expected, first
