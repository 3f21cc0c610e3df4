"""Run directories, committed results, CSV or JSONL -> tidy tables.

  python -m analysis.load --workdir DIR --csv FILE [--rows eval] [--json DIR2]

Columns of the table with one row per run (`rows='run'`):

  run, cell, tokens, order, size     names; cell is '<tokens>-<order>'
  status                             finished | unfinished | failed | blocked | ...
  note                               why, where it is not finished
  seed, source, image_size           of the config
  config_hash, commit                what was run (commit where the run recorded it)
  step, steps                        reached and planned
  N                                  trainable parameters (the four N_ that are trained)
  N_core, N_aligner, N_head, N_embeddings, N_text_encoder, N_tokenizer
  batch, tokens_per_image            images per step, tokens L per image
  D                                  training tokens, step x batch x L
  flops_per_image                    forward FLOPs of the trained components
  compute                            FLOPs, 3 x flops_per_image x batch x step
  wall_seconds, train_images_per_s   of the training
  val/loss, geneval/overall, kid...  the last value of every metric, its name unchanged;
                                     NAME_lo and NAME_hi are its 95 % interval

With `rows='eval'` there is one row per run and evaluated step: the same columns, at
that step, and `time` (seconds since the first record of the run).
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import pandas as pd

TRAINED = ("core", "aligner", "head", "embeddings")
COMPONENTS = (*TRAINED, "text_encoder", "tokenizer")
CELLS = (
  "continuous-random",
  "continuous-raster",
  "discrete-random",
  "discrete-raster",
)
ROWS = ("run", "eval")
_TRAINING = ("train/", "images_per_s", "mfu", "input_wait", "step", "time")


class TableError(ValueError):
  """A table that cannot be read; the message names it and the remedy."""


def load(path: str | Path, rows: str = "run") -> pd.DataFrame:
  """Reads one run, a sweep, committed results (runs.json, evals.json), CSV or JSONL.

  Args:
    path: a folder or a file.
    rows: 'run' (one row per run, its last values) or 'eval' (one per evaluated step);
      a CSV or JSONL file is taken as it is.

  Returns:
    The table; its columns are listed in the docstring of this module.
  """
  path = Path(path)
  if rows not in ROWS:
    raise TableError(f"rows is {rows!r}; choose from {', '.join(ROWS)}")
  if path.is_file():
    return _read_file(path)
  if not path.is_dir():
    raise FileNotFoundError(f"no such file or folder: {path}")
  if (path / f"{rows}s.json").exists():
    return _read_file(path / f"{rows}s.json")
  statuses = _statuses(path)
  folders = _run_folders(path)
  if not folders and not statuses:
    raise TableError(f"{path} holds no runs; name the folder given to launch.sweep")
  records = []
  for name in dict.fromkeys([*statuses, *folders]):
    run = _read_run(name, folders.get(name), statuses.get(name, {}))
    records += [run.final()] if rows == "run" else run.evaluations()
  return _order(pd.DataFrame(records))


def save_json(workdir: str | Path, out: str | Path) -> None:
  """Writes runs.json and evals.json, which `load(out)` reads back."""
  out = Path(out)
  out.mkdir(parents=True, exist_ok=True)
  for rows in ROWS:
    table = load(workdir, rows)
    table = table.drop(columns=["command"], errors="ignore")
    records = [
      {k: v for k, v in row.items() if not (pd.api.types.is_scalar(v) and pd.isna(v))}
      for row in table.to_dict("records")
    ]
    lines = ",\n".join(json.dumps(r) for r in records)
    (out / f"{rows}s.json").write_text(f"[\n{lines}\n]\n")


class _Run:
  """What one run directory says, before it is a row."""

  def __init__(self, base: dict, records: list[dict]):
    self.base = base
    self.records = records  # one per step, metrics merged, ascending

  def final(self) -> dict:
    row = dict(self.base)
    step = 0
    for record in self.records:
      step = max(step, record["step"])
      row.update({k: v for k, v in record.items() if k not in ("step", "time")})
    row.pop("images_per_s", None)
    row["step"] = max(step, row.pop("done_step", 0))
    return row | _costs(row)

  def evaluations(self) -> list[dict]:
    out = []
    start = self.records[0].get("time", 0.0) if self.records else 0.0
    for record in self.records:
      if all(k.startswith(_TRAINING) for k in record):
        continue
      row = {k: v for k, v in self.base.items() if k not in ("note", "done_step")}
      row |= record | {"time": record.get("time", start) - start}
      out.append(row | _costs(row))
    return out


def _read_run(name: str, folder: Path | None, listed: dict) -> _Run:
  cell = listed.get("cell", "")
  base = {
    "run": name,
    "cell": cell,
    "size": listed.get("size", ""),
    "status": listed.get("status", "unfinished"),
    "note": listed.get("note", ""),
    "command": listed.get("command", ""),
    "steps": listed.get("steps") or None,
  }
  model = _json(folder, "model.json")
  config = _json(folder, "config.json")
  done = _json(folder, "done.json")
  if model:
    base |= {k: model[k] for k in ("cell", "size", "batch", "steps") if k in model}
    base["tokens_per_image"] = model.get("tokens_per_image")
    base["commit"] = model.get("commit")
    params, flops = model.get("params", {}), model.get("forward_flops_per_image", {})
    base["N"] = sum(params.get(c, 0) for c in TRAINED) or params.get("total")
    base |= {f"N_{c}": params.get(c, 0) for c in COMPONENTS}
    base["flops_per_image"] = sum(flops.get(c, 0) for c in TRAINED) or flops.get(
      "total"
    )
  if config:
    data = config.get("data", {})
    base |= {"source": data.get("source"), "image_size": data.get("image_size")}
    base |= {"seed": config.get("seed", 0), "config_hash": _config_hash(config)}
  if done:
    base |= {"status": "finished", "note": "", "done_step": done.get("step", 0)}
    base["wall_seconds"] = done.get("wall_seconds")
    base["train_images_per_s"] = done.get("images_per_s")
  base["tokens"], _, base["order"] = (base["cell"] or "").partition("-")
  return _Run(base, _read_metrics(folder))


def _read_metrics(folder: Path | None) -> list[dict]:
  """metrics.jsonl -> one record per step; where a step was repeated, the later wins."""
  steps: dict[int, dict] = {}
  path = folder / "metrics.jsonl" if folder else None
  if path is None or not path.exists():
    return []
  for line in path.read_text(errors="replace").splitlines():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:  # cut off when the run was killed
      continue
    if isinstance(record, dict) and "step" in record:
      steps.setdefault(record["step"], {}).update(record)
  return [steps[s] for s in sorted(steps)]


def _costs(row: dict) -> dict:
  """Tokens and compute at the row's step."""
  out = {}
  if row.get("batch") and row.get("tokens_per_image"):
    out["D"] = row["step"] * row["batch"] * row["tokens_per_image"]
  if row.get("batch") and row.get("flops_per_image"):
    out["compute"] = 3.0 * row["flops_per_image"] * row["batch"] * row["step"]
  return out


def _run_folders(path: Path) -> dict[str, Path]:
  if (path / "metrics.jsonl").exists() or (path / "model.json").exists():
    return {path.resolve().name: path}
  parent = path / "runs" if (path / "runs").is_dir() else path
  return {
    p.name: p
    for p in sorted(parent.iterdir())
    if p.is_dir() and any((p / f).exists() for f in ("metrics.jsonl", "config.json"))
  }


def _statuses(path: Path) -> dict[str, dict]:
  """Name -> record of sweep.json, runs only."""
  if not (path / "sweep.json").exists():
    return {}
  records = json.loads((path / "sweep.json").read_text())
  return {r["name"]: r for r in records if r.get("kind", "run") == "run"}


def _read_file(path: Path) -> pd.DataFrame:
  if path.suffix == ".csv":
    return pd.read_csv(path)
  if path.suffix == ".jsonl":
    return pd.read_json(path, lines=True)
  if path.suffix == ".json":
    return pd.DataFrame(json.loads(path.read_text()))
  raise TableError(f"{path}: expected a folder or a .csv, .jsonl or .json file")


def _json(folder: Path | None, name: str) -> dict:
  try:
    return json.loads((folder / name).read_text()) if folder else {}
  except (FileNotFoundError, json.JSONDecodeError):
    return {}


def _config_hash(config: dict) -> str:
  """Hash of a config without the places its files are at."""
  data = {k: v for k, v in config.get("data", {}).items() if k != "cache"}
  tokenizer = {k: v for k, v in config.get("tokenizer", {}).items() if k != "path"}
  text = json.dumps(config | {"data": data, "tokenizer": tokenizer}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


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


if __name__ == "__main__":
  try:
    main()
  except (TableError, FileNotFoundError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
