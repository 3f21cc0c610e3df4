"""Run directories, committed results, CSV or JSONL -> tidy tables.

A folder or file may be local or a URL (gs://bucket/sweep; see runs.remote). Sweeps may
be running. Columns of the table with one row per run (`rows='run'`):

  run, cell, tokens, order, size     names; cell is '<tokens>-<order>'
  status                             finished | unfinished | failed | blocked | ...
  note                               why, where it is not finished
  seed, source, image_size           of the config; so are layers, width, heads,
  ...                                aligner_layers, guidance, temperature
  config_hash, commit                what was run (commit where the run recorded it)
  step, steps                        reached and planned
  N                                  trainable parameters (the four N_ that are trained)
  N_core, N_aligner, N_head, N_embeddings, N_text_encoder, N_tokenizer
  batch, tokens_per_image            images per step, tokens L per image
  D                                  training tokens, step x batch x L
  flops_per_image                    forward FLOPs of the trained components
  compute                            FLOPs, 3 x flops_per_image x batch x step
  wall_seconds, train_images_per_s   of the training
  goodput, lost/CAUSE                shares of wall time over all starts: in steps that
                                     were kept, and lost (docs/analysis.md); they add up
                                     to 1
  val/loss, geneval/overall, kid...  the last value of every metric, its name unchanged;
                                     NAME_sem is its standard error, NAME_lo and NAME_hi
                                     its 95 % interval

With `rows='eval'` there is one row per run and evaluated step: the same columns, at
that step, and `time` (seconds since the first record of the run). With
`rows='sampling'` there is one per call of fluid.evaluate: the same columns, with the
guidance and temperature that it sampled with; with `rows='metric'` one per metric that
it measured: value, lo, hi, images, features, missing (where there were no weights) and
what else its record says. A table of your own needs only the
columns that are asked for; run, step, cell, source, image_size and config_hash are used
to find rows that do not belong together (curves.clean). CSV may be separated by commas,
semicolons or tabs, and numbers be written as people do: 10M, 1,000,000 (runs.numbers).
"""

import argparse
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from analysis.runs import rundir
from analysis.runs.numbers import numbers
from analysis.runs.remote import local
from analysis.runs.rows import CELLS
from analysis.runs.rundir import COMPONENTS as COMPONENTS

ROWS = ("run", "eval", "sampling", "metric")


def _read_csv(path: Path) -> pd.DataFrame:
  """Separated by what the header has most of: commas, semicolons or tabs."""
  text = path.read_text("utf-8-sig").lstrip("\r\n")
  header = re.sub('"[^"]*"', "", text.partition("\n")[0])
  sign = max(",;\t", key=header.count)
  # Where the comma does not separate, it may be decimal: pandas must not guess.
  dtype = None if sign == "," else str
  try:
    table = pd.read_csv(io.StringIO(text), sep=sign, dtype=dtype, skipinitialspace=True)
  except pd.errors.ParserError:
    table = pd.DataFrame(index=[""])
  if not isinstance(table.index, pd.RangeIndex):
    raise ValueError('rows have more values than the header; quote "1,000,000"')
  table.columns = table.columns.str.strip()
  return numbers(table, commas=sign != ",")


def _read_json(path: Path) -> pd.DataFrame:
  """A list of rows, or an object of columns."""
  found = json.loads(path.read_text())
  values = found.values() if isinstance(found, dict) else found
  if not isinstance(found, dict | list) or not all(
    isinstance(v, dict | list) for v in values
  ):
    raise ValueError("neither a list of rows nor an object of columns")
  return numbers(pd.DataFrame(found))


def _read_parquet(path: Path) -> pd.DataFrame:
  try:
    return numbers(pd.read_parquet(path))
  except ImportError as error:
    raise ValueError("pip install pyarrow") from error


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
  ".csv": _read_csv,
  ".tsv": _read_csv,
  ".jsonl": lambda path: numbers(pd.read_json(path, lines=True)),
  ".json": _read_json,
  ".parquet": _read_parquet,
}


class TableError(ValueError):
  """A table that cannot be read; the message names it and the remedy."""


def load(path: str | Path, rows: str = "run") -> pd.DataFrame:
  """Reads one run, a sweep, committed results (runs.json, evals.json) or a file.

  Args:
    path: a folder or a file, local or a URL.
    rows: 'run' (one row per run, its last values), 'eval' (one per evaluated step),
      'sampling' (one per evaluation with its own settings) or 'metric' (one per record
      of a metric); a CSV, JSONL, JSON or Parquet file is taken as it is.

  Returns:
    The table; its columns are listed in the docstring of this module.

  Raises:
    TableError: nothing that is a table; FileNotFoundError: nothing at all.
  """
  if rows not in ROWS:
    raise TableError(f"rows is {rows!r}; choose from {', '.join(ROWS)}")
  return tables(path, [rows])[rows]


def tables(path: str | Path, kinds: Sequence[str] = ROWS) -> dict[str, pd.DataFrame]:
  """`load` for several kinds of rows: every file is read once for all of them."""
  path = local(path)
  if path.is_file():
    return dict.fromkeys(kinds, _read_file(path))
  if not path.is_dir():
    raise FileNotFoundError(f"no such file or folder: {path}")
  if (path / "runs.json").exists():
    files = {kind: path / f"{kind}s.json" for kind in kinds}
    return {
      k: _read_file(f) if f.exists() else pd.DataFrame() for k, f in files.items()
    }
  listed, folders = rundir.listed(path), rundir.folders(path)
  if not folders and not listed:
    raise TableError(f"{path} holds no runs; name the folder given to launch.sweep")
  runs = [
    rundir.read(name, folders.get(name), listed.get(name, {}))
    for name in dict.fromkeys([*listed, *folders])
  ]
  records = {
    kind: [row for run in runs for row in getattr(run, kind)()] for kind in kinds
  }
  return {kind: _order(pd.DataFrame(found)) for kind, found in records.items()}


def save_json(workdir: str | Path, out: str | Path) -> None:
  """Writes runs.json, evals.json and, if there are any, samplings.json, metrics.json.

  `load(out)` reads them back.
  """
  out = Path(out)
  out.mkdir(parents=True, exist_ok=True)
  for rows, table in tables(workdir).items():
    if rows in ("sampling", "metric") and table.empty:
      continue
    table = table.drop(columns=["command"], errors="ignore")
    records = [
      {k: v for k, v in row.items() if not (pd.api.types.is_scalar(v) and pd.isna(v))}
      for row in table.to_dict("records")
    ]
    lines = ",\n".join(json.dumps(r) for r in records)
    (out / f"{rows}s.json").write_text(f"[\n{lines}\n]\n")


def _read_file(path: Path) -> pd.DataFrame:
  if path.suffix not in _READERS:
    raise TableError(f"{path}: expected a folder, {', '.join(_READERS)}")
  if not path.stat().st_size:
    raise TableError(f"{path} is empty: it has neither columns nor rows")
  try:
    return _READERS[path.suffix](path)
  except ValueError as error:  # of pandas and json alike
    kind, why = path.suffix[1:], str(error).strip()
    if isinstance(error, UnicodeDecodeError):
      why = "it is not UTF-8; save it so"
    raise TableError(f"{path} cannot be read as {kind}: {why}") from error


def _order(table: pd.DataFrame) -> pd.DataFrame:
  """Cells in the order of CELLS, sizes ascending, steps ascending."""
  if table.empty:
    return table
  rank = table["cell"].map({c: i for i, c in enumerate(CELLS)}).fillna(len(CELLS))
  size = table["N"] if "N" in table else pd.Series(0, table.index)
  step = table["step"] if "step" in table else pd.Series(0, table.index)
  keys = pd.DataFrame({"cell": rank, "size": size, "run": table["run"], "step": step})
  order = keys.sort_values(["cell", "size", "run", "step"]).index
  return table.loc[order].reset_index(drop=True)


def main() -> None:
  """Entry of `python -m analysis.load`."""
  parser = argparse.ArgumentParser(prog="python -m analysis.load")
  parser.add_argument("--workdir", required=True, help="sweep, run or table")
  parser.add_argument("--rows", default="run", choices=ROWS)
  parser.add_argument("--csv", help="file to write")
  parser.add_argument("--json", help="folder for runs.json and evals.json")
  args = parser.parse_args()
  table = load(args.workdir, args.rows)
  if args.csv:
    table.to_csv(args.csv, index=False)
  if args.json:
    save_json(args.workdir, args.json)
  if not (args.csv or args.json):
    print(table.to_string())
