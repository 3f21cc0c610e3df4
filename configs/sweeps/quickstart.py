"""The toy study cut down to some minutes on two cores: four cells x two sizes."""

import itertools

SIZES = ("xs", "m")


def sweep():
  for size in SIZES:
    for tokens, order in itertools.product(
      ("continuous", "discrete"), ("random", "raster")
    ):
      yield dict(
        name=f"{tokens}-{order}-{size}",
        config=f"configs/toy.py:tokens={tokens},order={order},size={size}",
        overrides={
          "steps": 300,
          "eval_every": 150,
        },
      )
