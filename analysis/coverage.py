"""Do intervals hold what they say? `python -m analysis.coverage [--studies 200]`."""

import argparse

import pandas as pd

from analysis.command import count, run
from analysis.curves.coverage import (
  CHINCHILLA,
  PLANTS,
  Plant,
  chinchilla,
  isoflop_grid,
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


def main() -> None:
  parser = argparse.ArgumentParser(prog="python -m analysis.coverage")
  parser.add_argument("--studies", type=count, default=200)
  parser.add_argument("--form", action="append", choices=list(PLANTS))
  parser.add_argument("--csv", help="file to write")
  args = parser.parse_args()
  tables = []
  for form in args.form or PLANTS:
    tables.append(simulate(form, args.studies))
    print(tables[-1].to_string(index=False, header=len(tables) == 1), flush=True)
  if not args.form:
    tables.append(simulate_cells(args.studies))
    print(tables[-1].to_string(index=False))
  if args.csv:
    pd.concat(tables).to_csv(args.csv, index=False)


if __name__ == "__main__":
  run(main)
