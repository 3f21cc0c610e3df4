"""What a run directory says: config, sizes, metrics over steps."""

import dataclasses
import hashlib
import json
from pathlib import Path

TRAINED = ("core", "aligner", "head", "embeddings")
COMPONENTS = (*TRAINED, "text_encoder", "tokenizer")
# What the config says that a study may vary: column -> where it stands, in the layout
# of today and in the first one.
_VARIED = {
  "source": ("data.source.kind", "data.source"),
  "image_size": ("data.image_size",),
  "layers": ("model.trunk.layers", "model.layers"),
  "width": ("model.trunk.width", "model.width"),
  "heads": ("model.trunk.heads", "model.heads"),
  "aligner_layers": ("model.condition.layers", "model.aligner_layers"),
  "warmup": ("optim.warmup",),
  "masks": ("model.order.masks",),
  "guidance": ("sample.guidance",),
  "temperature": ("sample.temperature",),
}
_GOODPUT = ("goodput", "lost/")
_TRAINING = ("train/", "images_per_s", "mfu", "input_wait", "step", "time", *_GOODPUT)


@dataclasses.dataclass(frozen=True)
class Run:
  """One run directory (or what the sweep says of a run that has none).

  Attributes:
    base: columns that do not change along the training.
    records: one per step with its metrics merged, ascending.
    samplings: one per file that fluid.evaluate left in eval/.
    measured: one per metric of these files: its record.
    goodput: of the whole run, and its losses by cause.
  """

  base: dict
  records: list[dict]
  samplings: list[dict]
  measured: list[dict] = dataclasses.field(default_factory=list)
  goodput: dict = dataclasses.field(default_factory=dict)

  def run(self) -> list[dict]:
    """One row: the last value of everything."""
    row = dict(self.base)
    step = 0
    for record in self.records:
      step = max(step, record["step"])
      row.update({k: v for k, v in record.items() if k not in ("step", "time")})
    row.pop("images_per_s", None)
    row |= self.goodput  # Of after the last line, too.
    row["step"] = max(step, row.pop("done_step", 0))
    return [row | _costs(row)]

  def eval(self) -> list[dict]:
    """A row per evaluated step."""
    out = []
    start = self.records[0].get("time", 0.0) if self.records else 0.0
    for record in self.records:
      if all(k.startswith(_TRAINING) for k in record):
        continue
      row = {k: v for k, v in self.base.items() if k not in ("note", "done_step")}
      row |= record | {"time": record.get("time", start) - start}
      out.append(row | _costs(row))
    return out

  def sampling(self) -> list[dict]:
    """A row per file of fluid.evaluate: how it sampled, and what came of it."""
    base = {k: v for k, v in self.base.items() if k not in ("note", "done_step")}
    return [(row := base | s) | _costs(row) for s in self.samplings]

  def metric(self) -> list[dict]:
    """A row per metric that fluid.evaluate measured, with all that its record says."""
    base = {k: self.base.get(k) for k in ("run", "cell", "size", "N")}
    return [base | record for record in self.measured]


def read(name: str, folder: Path | None, listed: dict) -> Run:
  """Reads a run.

  Args:
    name: of the run.
    folder: its directory, if there is one yet.
    listed: its record in the sweep's sweep.json.
  """
  base = {
    "run": name,
    "cell": listed.get("cell", ""),
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
    for column, places in _VARIED.items():
      found = [v for p in places if (v := _at(config, p)) is not None]
      if found:
        base[column] = found[0]
    base["seed"] = config.get("seed", 0)
    base["config_hash"] = model.get("identity") or config_hash(config)
  if done:
    base |= {"status": "finished", "note": "", "done_step": done.get("step", 0)}
    base["wall_seconds"] = done.get("wall_seconds")
    base["train_images_per_s"] = done.get("images_per_s")
  base["tokens"], _, base["order"] = (base["cell"] or "").partition("-")
  account = _json(folder, "goodput.json").items()
  goodput = {k: v for k, v in account if k.startswith(_GOODPUT)}
  return Run(base, _metrics(folder), _samplings(folder), _measured(folder), goodput)


def folders(path: Path) -> dict[str, Path]:
  """Name -> directory of the runs at or below `path`."""
  if (path / "metrics.jsonl").exists() or (path / "model.json").exists():
    return {path.resolve().name: path}
  parent = path / "runs" if (path / "runs").is_dir() else path
  return {
    p.name: p
    for p in sorted(parent.iterdir())
    if p.is_dir() and any((p / f).exists() for f in ("metrics.jsonl", "config.json"))
  }


def listed(path: Path) -> dict[str, dict]:
  """Name -> record of sweep.json, runs only."""
  if not (path / "sweep.json").exists():
    return {}
  records = json.loads((path / "sweep.json").read_text())
  return {r["name"]: r for r in records if r.get("kind", "run") == "run"}


def _at(tree, dotted: str):
  """The value under a dotted key; None where there is none."""
  for key in dotted.split("."):
    tree = tree.get(key) if isinstance(tree, dict) else None
  return None if isinstance(tree, dict) else tree


def config_hash(config: dict) -> str:
  """Of a run that does not say its identity: its config but the places of files."""
  data = {k: v for k, v in config.get("data", {}).items() if k != "cache"}
  tokenizer = {k: v for k, v in config.get("tokenizer", {}).items() if k != "path"}
  text = json.dumps(config | {"data": data, "tokenizer": tokenizer}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _metrics(folder: Path | None) -> list[dict]:
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
      record.pop("evals", None)  # Which evaluator wrote the line: no metric.
      steps.setdefault(record["step"], {}).update(record)
  return [steps[s] for s in sorted(steps)]


def _samplings(folder: Path | None) -> list[dict]:
  """eval/*.json of averaged weights, the overrides of sampling as columns.

  Of a sweep (eval/sweep-*.json), each point by the most images that judged it.
  """
  out = []
  for path in sorted((folder / "eval").glob("*.json")) if folder else ():
    record = _json(path.parent, path.name)
    if "points" in record:
      out += _swept(record)
    if record.get("weights") != "ema" or "values" not in record:
      continue
    row = {"step": record.get("step", 0)}
    for item in record.get("overrides", ()):
      key, _, value = item.partition("=")
      if key.startswith("sample."):
        row[key.removeprefix("sample.")] = _number(value)
    out.append(row | record["values"])
  return out


def _measured(folder: Path | None) -> list[dict]:
  """Records of eval/*.json, of each metric the one of the latest step."""
  out: dict[tuple, dict] = {}
  for path in sorted((folder / "eval").glob("*.json")) if folder else ():
    for record in _json(path.parent, path.name).get("records", ()):
      # Of before all evaluators had records, those of one do not name it.
      named = {"of": "distribution"} | record
      key = tuple(named.get(k, "") for k in ("metric", "of", "features", "weights"))
      if record.get("step", 0) >= out.get(key, record).get("step", 0):
        out[key] = {k: v for k, v in record.items() if not isinstance(v, dict | list)}
  return list(out.values())


def _swept(record: dict) -> list[dict]:
  points: dict[str, dict] = {}
  for found in record["points"]:
    options = {k: v for k, v in found.items() if k not in ("images", "value")}
    if options.pop("weights", "ema") != "ema":
      continue
    row = {"step": record["step"], "images": found["images"]}
    # The later judgement of a point is by more images.
    points[json.dumps(options)] = row | options | {record["by"]: found["value"]}
  return list(points.values())


def _number(text: str):
  try:
    return float(text)
  except ValueError:
    return text


def _costs(row: dict) -> dict:
  """Tokens and compute at the row's step."""
  out = {}
  if row.get("batch") and row.get("tokens_per_image"):
    out["D"] = row["step"] * row["batch"] * row["tokens_per_image"]
  if row.get("batch") and row.get("flops_per_image"):
    out["compute"] = 3.0 * row["flops_per_image"] * row["batch"] * row["step"]
  return out


def _json(folder: Path | None, name: str) -> dict:
  try:
    return json.loads((folder / name).read_text()) if folder else {}
  except (FileNotFoundError, json.JSONDecodeError):
    return {}
