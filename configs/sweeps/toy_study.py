"""The paper's 2x2 grid on procedural images: four cells x four sizes."""

import itertools

SIZES = ("xs", "s", "m", "l")


def sweep():
  """Smallest first, all four cells of a size together: early rows are comparable."""
  for size in SIZES:
    for tokens, order in itertools.product(
      ("continuous", "discrete"), ("random", "raster")
    ):
      yield dict(
        name=f"{tokens}-{order}-{size}",
        config=f"configs/toy.py:tokens={tokens},order={order},size={size}",
        overrides={},
      )
