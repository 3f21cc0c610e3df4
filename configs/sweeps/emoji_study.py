"""The four cells at one size on real captioned images (OpenMoji drawings)."""

from configs import toy


def sweep():
  # An average over the study's 1000 steps would be a third of what they began with.
  yield from toy.cells(("m",), {"steps": 1000, "optim.ema": 0.99}, data="emoji")
