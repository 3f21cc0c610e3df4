"""Command lines that take a table, `python -m analysis.fit` and `analysis.plan`."""

import argparse
import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.curves.clean import columns_of, need
from analysis.curves.fit import METHODS, fit
from analysis.curves.forms import FORMS
from analysis.curves.result import FitError
from analysis.planning.plan import PLANNED, Guess, Planner, grid, score, write_sweep
from analysis.planning.shapes import Ladder
from analysis.runs.load import TableError, load
from analysis.runs.rows import finished, having


def run(main: Callable[[], None]) -> None:
  """Runs a main(); a mistake of the user is one line and exit status 2."""
  try:
    main()
  except (ValueError, OSError) as error:
    told: object = error
    if isinstance(error, OSError) and error.filename and error.strerror:
      told = f"{error.filename}: {error.strerror}"
    print(f"error: {told}", file=sys.stderr)
    sys.exit(2)


def positive(text: str) -> float:
  """A type of arguments: a finite number above zero."""
  value = float(text)
  if not 0 < value < math.inf:
    raise argparse.ArgumentTypeError(f"{text} is not a positive number")
  return value


def count(text: str, least: int = 1) -> int:
  """A type of arguments: how many of something, at least one."""
  value = int(text)
  if value < least:
    raise argparse.ArgumentTypeError(f"{text} is too few; at least {least}")
  return value


def count_or_none(text: str) -> int:
  """As `count`, or 0."""
  return count(text, 0)


_FLAGS = {"N": "--n", "D": "--d", "compute": "--compute", "val/loss": "--loss"}


def add_table(parser: argparse.ArgumentParser) -> None:
  """Arguments that name a table and its columns."""
  add = parser.add_argument
  add("--csv", "--workdir", dest="csv", required=True, metavar="TABLE",
      help="CSV, JSON, Parquet, folder of a sweep or run; local or gs://")  # fmt: skip
  add("--n", default=None, help="column of parameters (default: N)")
  add("--d", default=None, help="column of training tokens (default D, or C/(6N))")
  add("--compute", default=None, help="column of training FLOPs (default: compute)")
  add("--loss", default=None, help="column of the loss (default: val/loss)")
  add("--cell", default=None, help="rows of this cell only")
  add("--drop-largest", type=count_or_none, default=0, metavar="K",
      help="leave out the K largest losses of each cell")  # fmt: skip
  add("--starts", type=count, help="of the search for the best parameters")
  add("--draws", type=count, default=500, help="of the bootstrap")
  add("--seed", type=count_or_none, default=0)


def read_table(args: argparse.Namespace, rows: str = "run") -> pd.DataFrame:
  """The table that the arguments of `add_table` name, with columns N, D, compute."""
  table = load(args.csv, rows)
  if table.empty:
    raise TableError(f"{args.csv} has no rows; its columns: {columns_of(table)}")
  rename = {args.n: "N", args.d: "D", args.compute: "compute", args.loss: "val/loss"}
  rename = {name: column for name, column in rename.items() if name}
  need(table, rename, args.csv)
  if args.cell is not None:
    if "cell" not in table or args.cell not in set(table["cell"]):
      cells = ", ".join(map(str, table.get("cell", pd.Series(dtype=str)).unique()))
      raise FitError(f"{args.csv} has no cell '{args.cell}'; it has {cells or 'none'}")
    table = table[table["cell"] == args.cell]
  taken = [v for v in rename.values() if v in table and v not in rename]
  table = table.drop(columns=taken).rename(columns=rename)
  if "D" not in table and {"N", "compute"} <= set(table):
    n, compute = (pd.to_numeric(table[c], errors="coerce") for c in ("N", "compute"))
    table["D"] = compute / (6 * n)
  if args.drop_largest:
    need(table, ["val/loss"], args.csv, _FLAGS)
    losses = pd.to_numeric(table["val/loss"], errors="coerce")
    for _, rows in _by_cell(table):
      worst = losses[rows.index].nlargest(args.drop_largest)
      table = table.drop(index=worst.index)
  return table


def per_token(table: pd.DataFrame) -> float:
  """Training FLOPs per parameter and token: the median of a table, or the usual 6.

  Random order reads a token under several masks, and heads and aligners have FLOPs that
  their parameters do not tell.
  """
  rows = having(table, "N", "D", "compute")
  ratio = (rows["compute"] / rows["N"] / rows["D"])[rows["D"] > 0]
  return float(ratio.median()) if len(ratio) else 6.0


def _by_cell(table: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
  """Rows of every cell; those that name none are of one that is called so."""
  if "cell" not in table or table["cell"].isna().all():
    return [("", table)]
  return table.groupby(table["cell"].fillna("no cell"), sort=False)


def fit_main() -> None:
  """Entry of `python -m analysis.fit`."""
  parser = argparse.ArgumentParser(prog="python -m analysis.fit")
  add_table(parser)
  add = parser.add_argument
  add("--form", default="power", choices=list(FORMS))
  add("--x", action="append", help="input column instead of those of the form")
  add("--y", default=None, help="output column instead of that of the form")
  add("--fix", action="append", default=[], metavar="NAME=VALUE",
      help="a parameter that is known, such as low=0.04")  # fmt: skip
  add("--intervals", default="auto", choices=METHODS)
  add("--hold-out", type=positive, default=None, metavar="X",
      help="predict what is above this x (compute, for chinchilla)")  # fmt: skip
  add("--json", default=None, metavar="FILE", help="write the fits; - is stdout")
  args = parser.parse_args()
  form = FORMS[args.form]
  table = read_table(args, form.rows)
  need(table, [*(args.x or form.columns), args.y or form.y], args.csv, _FLAGS)
  options = dict(
    fixed=_fixed(args.fix), intervals=args.intervals,
    draws=args.draws, starts=args.starts, seed=args.seed,
  )  # fmt: skip
  results = {}
  for cell, rows in _by_cell(table):
    above = args.hold_out
    if above and args.form == "chinchilla":
      above /= per_token(rows)  # the fit's own scale is N D
    results[cell] = fit(
      rows, form=args.form, x=args.x, y=args.y, hold_out=above, **options
    )
  if not results:
    raise FitError(f"{args.csv} has no rows with a cell")
  summary = [{"cell": c} | r.to_dict() for c, r in results.items()]
  text = json.dumps(summary if len(summary) > 1 else summary[0], indent=1)
  told = [f"{c + ': ' if c else ''}{r.summary}" for c, r in results.items()]
  print(text if args.json == "-" else "\n".join(told))
  if args.json and args.json != "-":
    Path(args.json).write_text(text + "\n")
  if all(r.refused for r in results.values()):
    raise FitError(f"no fit: {next(iter(results.values())).refused}")


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


def plan_main() -> None:
  """Entry of `python -m analysis.plan`."""
  parser = argparse.ArgumentParser(prog="python -m analysis.plan")
  add_table(parser)
  add = parser.add_argument
  add("--budget", type=positive, action="append", help="training FLOPs; repeatable")
  add("--form", default="chinchilla", choices=PLANNED)
  add("--around", type=positive, metavar="N", help="no fit: sizes around N")
  add("--sweep", metavar="FILE", help="write a sweep for launch.sweep")
  add("--config", default="configs/fluid.py", help="what the sweep's runs are made of")
  add("--sizes", type=count, default=5, help="per budget")
  add("--spacing", type=positive, default=1.5, help="between neighbouring sizes")
  add(
    "--override", metavar="KEY=VALUE", action="append", default=[],
    help="config key of all runs of the sweep, such as batch=32; repeatable",
  )  # fmt: skip
  add("--predict", metavar="FILE", help="write the prediction")
  add("--score", metavar="FILE", help="compare a prediction with the runs of TABLE")
  args = parser.parse_args()
  if args.score:
    return _score(args)
  if not args.budget:
    raise FitError("--budget is needed: training FLOPs, such as --budget 1e21")
  runs = read_table(args)
  planner = _planner(args, runs)
  best = [planner.optimum(budget) for budget in args.budget]
  for optimum in best:
    print(optimum.reading)
  command = shlex.join(["python", "-m", "analysis.plan", *sys.argv[1:]])
  record = {"command": command, "optima": [dataclasses.asdict(o) for o in best]}
  if args.sweep:
    overrides = dict(map(_override, args.override))
    shape = dict(sizes=args.sizes, spacing=args.spacing, batch=overrides.get("batch"))
    plan = grid(planner, Ladder(runs), args.budget, **shape)
    write_sweep(plan, args.config, Path(args.sweep), command, overrides)
    record["runs"] = json.loads(plan.to_json(orient="records"))
    told = plan.drop(columns=["cell", "warmup"]).dropna(axis=1, how="all")
    print(told.to_string(index=False))
    print(f"sweep: {args.sweep}")
  if args.predict:
    Path(args.predict).write_text(json.dumps(record, indent=1) + "\n")
    print(f"prediction: {args.predict}")


def _override(text: str) -> tuple[str, Any]:
  key, found, value = text.partition("=")
  if not found:
    raise FitError(f"--override {text}: KEY=VALUE is needed, such as batch=32")
  try:
    return key, json.loads(value)
  except ValueError:  # Words stand for themselves.
    return key, value


def _planner(args: argparse.Namespace, runs: pd.DataFrame) -> Planner | Guess:
  flops = per_token(runs)
  if args.around:
    return Guess(args.around, min(args.budget), flops)
  form = FORMS[args.form]
  table = finished(runs) if form.rows == "run" else read_table(args, form.rows)
  need(table, [*form.columns, form.y], args.csv, _FLAGS)
  options = dict(draws=args.draws, starts=args.starts, seed=args.seed)
  result = fit(table, form=args.form, **options)
  planner = Planner(result, flops)
  print(result.summary)
  return planner


def _score(args: argparse.Namespace) -> None:
  try:
    record = json.loads(Path(args.score).read_text())
  except ValueError as error:
    raise FitError(f"{args.score} is no prediction: {error}") from error
  runs = record.get("runs", []) if isinstance(record, dict) else []
  told = pd.DataFrame(runs)
  if "loss" not in told or told["loss"].isna().all():
    raise FitError(f"{args.score} predicts no losses; write it with --sweep --predict")
  table = score(told, load(args.csv))
  if table.empty:
    raise FitError(f"none of the {len(told)} predicted runs has finished in {args.csv}")
  print(table.to_string(index=False, float_format="{:.4g}".format))
  print(
    f"{len(table)} of {len(told)} runs: mean error "
    f"{table['error'].abs().mean():.2%}, {table['inside'].mean():.0%} inside"
  )
