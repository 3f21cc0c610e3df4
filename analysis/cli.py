"""Command lines of the analysis: what they share, and `python -m analysis.fit`."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.fit import METHODS, fit
from analysis.forms import FORMS
from analysis.load import load
from analysis.page import number
from analysis.result import Fit, FitError


def run(main: Callable[[], int | None]) -> None:
  """Runs a main(); a mistake of the user is one line and exit status 2."""
  try:
    sys.exit(main())
  except (ValueError, FileNotFoundError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def add_table(parser: argparse.ArgumentParser) -> None:
  """Arguments that name a table and its columns."""
  add = parser.add_argument
  add("--csv", "--workdir", dest="csv", required=True, metavar="TABLE",
      help="CSV, JSONL, folder of a sweep or run; local or gs://")  # fmt: skip
  add("--n", default="N", help="column of parameters")
  add("--d", default=None, help="column of training tokens (default D, or C/(6N))")
  add("--compute", default=None, help="column of training FLOPs (default: compute)")
  add("--loss", default=None, help="column of the loss (default: val/loss)")
  add("--cell", default=None, help="rows of this cell only")
  add("--drop-largest", type=int, default=0, metavar="K",
      help="leave out the K largest losses")  # fmt: skip
  add("--starts", type=int, default=None, help="of the search for the best parameters")
  add("--draws", type=int, default=500, help="of the bootstrap")
  add("--seed", type=int, default=0)


def read_table(args, rows: str = "run") -> pd.DataFrame:
  """The table that the arguments of `add_table` name, with columns N, D, compute."""
  table = load(args.csv, rows)
  for column in (args.n, args.d, args.compute, args.loss):
    if column is not None and column not in table:
      if column != "N":
        raise FitError(f"{args.csv} has no column '{column}'; it has {_some(table)}")
  if args.cell is not None:
    if "cell" not in table or args.cell not in set(table["cell"]):
      cells = ", ".join(map(str, table.get("cell", pd.Series(dtype=str)).unique()))
      raise FitError(f"{args.csv} has no cell '{args.cell}'; it has {cells or 'none'}")
    table = table[table["cell"] == args.cell]
  rename = {args.n: "N", args.loss or "val/loss": "val/loss"}
  if args.compute:
    rename[args.compute] = "compute"
  if args.d:
    rename[args.d] = "D"
  taken = [v for k, v in rename.items() if k != v and v in table]
  table = table.drop(columns=taken).rename(columns=rename)
  if args.compute and not args.d and {"N", "compute"} <= set(table):
    table["D"] = table["compute"] / (6 * table["N"])
  if args.drop_largest:
    table = table.drop(index=table["val/loss"].nlargest(args.drop_largest).index)
  return table


def _some(table) -> str:
  names = [str(c) for c in table]
  return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")


def describe(result: Fit) -> str:
  """A fit in some lines of text."""
  lines = [result.reading]
  for name, value in result.params.items():
    low, high = result.intervals.get(name, (np.nan, np.nan))
    ends = "" if np.isnan([low, high]).any() else f"  [{low:.5g}, {high:.5g}]"
    lines.append(f"  {name:<9} {value:<11.5g}{ends}")
  if not result.refused:
    lines.append(
      f"  {len(result.y)} points, R2 ({result.space}) {result.r2:.4f}, AICc "
      f"{number(result.aicc) or '-'}, {result.reached:.0%} of the starts ended here"
    )
  if result.held_out:
    lines.append(f"  {result.held_out.reading}")
  return "\n".join(lines + [f"  warning: {w}" for w in result.warnings])


def fit_main(argv: list[str] | None = None) -> None:
  """Entry of `python -m analysis.fit`."""

  def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.fit")
    add_table(parser)
    add = parser.add_argument
    add("--form", default="power", choices=list(FORMS))
    add("--x", action="append", help="input column instead of those of the form")
    add("--y", default=None, help="output column instead of that of the form")
    add("--fix", action="append", default=[], metavar="NAME=VALUE",
        help="a parameter that is known, such as low=0.04")  # fmt: skip
    add("--intervals", default="auto", choices=METHODS)
    add("--hold-out", type=float, default=None, metavar="X",
        help="predict what is above this x (compute, for chinchilla)")  # fmt: skip
    add("--json", default=None, metavar="FILE", help="write the fits; - is stdout")
    args = parser.parse_args(argv)
    table = read_table(args, FORMS[args.form].rows)
    hold_out = args.hold_out
    if hold_out and args.form == "chinchilla":
      hold_out /= 6  # the fit's own scale is N D
    options = dict(
      fixed=_fixed(args.fix), intervals=args.intervals, hold_out=hold_out,
      draws=args.draws, starts=args.starts, seed=args.seed,
    )  # fmt: skip
    cells = table.groupby("cell", sort=False) if "cell" in table else [("", table)]
    results = {
      cell: fit(rows, form=args.form, x=args.x, y=args.y, **options)
      for cell, rows in cells
    }
    if not results:
      raise FitError(f"{args.csv} has no rows")
    summary = [{"cell": c} | r.to_dict() for c, r in results.items()]
    text = json.dumps(summary if len(summary) > 1 else summary[0], indent=1)
    if args.json and args.json != "-":
      Path(args.json).write_text(text + "\n")
    print(text if args.json == "-" else "\n".join(
      f"{c + ': ' if c else ''}{describe(r)}" for c, r in results.items()
    ))  # fmt: skip
    if all(r.refused for r in results.values()):
      raise FitError(f"no fit: {next(iter(results.values())).refused}")
    return 0

  run(main)


def _fixed(items: list[str]) -> dict[str, float]:
  fixed = {}
  for item in items:
    name, sign, value = item.partition("=")
    try:
      fixed[name] = float(value)
    except ValueError:
      sign = ""
    if not sign:
      raise FitError(f"--fix {item} is not understood; write --fix NAME=VALUE")
  return fixed
