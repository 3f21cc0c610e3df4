"""The paper's 2x2 grid on procedural images: four cells x four sizes."""

from configs import toy


def sweep():
  yield from toy.cells(("xs", "s", "m", "l"))
