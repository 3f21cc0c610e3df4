"""The four cells at one size on real captioned images (OpenMoji drawings)."""

import itertools


def sweep():
  for tokens, order in itertools.product(
    ("continuous", "discrete"), ("random", "raster")
  ):
    yield dict(
      name=f"{tokens}-{order}",
      config=f"configs/toy.py:data=emoji,tokens={tokens},order={order},size=m",
      overrides={"steps": 400},
    )
