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
  simulate_cells,
)

__all__ = [
  "CHINCHILLA",
  "PLANTS",
  "Plant",
  "chinchilla",
  "isoflop_grid",
  "simulate",
  "simulate_cells",
]

if __name__ == "__main__":
  run(main)
