"""Numbers printed in papers; README.md beside the CSV files has their sources."""

from pathlib import Path

import pandas as pd

FOLDER = Path(__file__).parent
# Pearson's r of validation loss over Fluid's sizes, as printed.
PEARSON = {"fid": 0.917, "geneval/overall": -0.931}


def table(name: str) -> pd.DataFrame:
  """One of the CSV files, such as 'fluid_table1'."""
  return pd.read_csv(FOLDER / f"{name}.csv")


def fluid() -> pd.DataFrame:
  """Fluid's own rows of its system-level table, one per size."""
  rows = table("fluid_table1")
  return rows[rows["cell"] == "Fluid"].reset_index(drop=True)
