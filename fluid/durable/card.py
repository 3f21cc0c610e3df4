"""Model cards: what weights that are given away say of themselves."""

import json
import pathlib

from fluid import config


def judged(path: pathlib.Path, step: int) -> dict[str, float]:
  """The last value up to a step of all that evaluations gave; none without a file."""
  out: dict[str, float] = {}
  lines = path.read_text("utf-8").splitlines() if path.is_file() else []
  for line in lines:
    try:
      values = json.loads(line)
    except json.JSONDecodeError:  # The last line of a run that was killed.
      continue
    if values.get("evals") and values["step"] <= step:
      out |= {k: v for k, v in values.items() if k not in ("evals", "step", "time")}
  return out


USE = "Draw from it with `python -m fluid.sample --workdir FOLDER --prompt PROMPT`."


def text(
  run: config.Run, described: dict, values: dict[str, float], use: str = USE
) -> str:
  """A model card: what it is, what it was trained on, by which code, how good it is.

  Args:
    run: its config.
    described: content of model.json.
    values: of evaluations.
    use: the last line.
  """
  model = run.model
  title = f"{model.cell}{f' {model.size}' if model.size else ''}"
  parameters = described.get("params", {}).get("total")
  commit = described.get("commit") or "unknown"
  if commit != "unknown" and not described.get("commit_clean", True):
    commit += ", with changes"
  facts = {
    "model": f"{model.head.kind} head, {model.order.kind} order, {model.trunk.kind}"
    f" trunk of width {model.trunk.width}, {model.condition.kind} condition",
    "parameters": f"{parameters:,}" if parameters else "see model.json",
    "images": f"{run.data.image_size} x {run.data.image_size}, tokenizer "
    f"{run.tokenizer.kind}",
    "data": f"{run.data.source.kind}, {run.data.num_train or 'all'} training images",
    "text": run.text.kind,
    "training": _training(run, described["step"]),
    "weights": described["weights"],
    "commit": commit,
  }
  if not described["step"]:  # The config's are of a training that was not.
    del facts["data"]
  lines = [f"# {title}", "", "| | |", "|---|---|"]
  lines += [f"| {k} | {v} |" for k, v in facts.items()]
  if values:
    lines += ["", "| evaluation | value |", "|---|---|"]
    lines += [
      f"| {k} | {f'{v:.5g}' if isinstance(v, float) else v} |"
      for k, v in sorted(values.items())
    ]
  return "\n".join([*lines, "", use, ""])


def _training(run: config.Run, step: int) -> str:
  """Of how many steps, by which recipe, and from what."""
  if not step:
    return "none by this code: converted weights"
  optim, other = run.optim, pathlib.PurePath(run.init.workdir).name
  muon = f", Muon {optim.muon:g}" if optim.muon else ""
  begun = f", begun with weights of {other}" if other else ""
  return f"{step:,} steps of {run.batch}, peak rate {optim.lr:g}{muon}{begun}"
