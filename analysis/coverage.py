"""Do intervals hold what they say? `python -m analysis.coverage [--studies 200]`."""

from analysis.command import run
from analysis.curves.coverage import (
  CHINCHILLA,
  PLANTS,
  Plant,
  chinchilla,
  isoflop_grid,
  main,
  simulate,
)

__all__ = ["CHINCHILLA", "PLANTS", "Plant", "chinchilla", "isoflop_grid", "simulate"]

if __name__ == "__main__":
  run(main)
