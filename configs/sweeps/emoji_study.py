"""The four cells at one size on real captioned images (OpenMoji drawings)."""

from configs import toy


def sweep():
  yield from toy.cells(("m",), {"steps": 1000}, data="emoji")
