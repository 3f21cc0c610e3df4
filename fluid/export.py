"""A run to give away: `python -m fluid.export --workdir RUN --out DIR`.

DIR gets config.json, model.json, the text encoder's file, the weights as one
safetensors file without the optimizer, and README.md, a card that says what it is.
fluid.load, fluid.sample and fluid.evaluate take it as they take a run, and
`init.workdir` starts another from it. Its tokenizer and a frozen text encoder stay
where they are, named by the way from DIR to them and by their hashes.
"""

import json
import os
import pathlib

from absl import flags

from fluid import api, config, files, text
from fluid.console import cli
from fluid.durable import exported


def export(workdir, out, *, weights: str = "ema", step: int | None = None) -> None:
  """Writes the folder `out`.

  Args:
    workdir: folder of a run.
    out: made if it is missing; a run is not overwritten.
    weights: 'ema' or 'raw'.
    step: a saved step (None: the newest).

  Raises:
    ConfigError: what fluid.load refuses, or a folder that holds a run.
  """
  out = pathlib.Path(out)
  if (out / "checkpoints").exists():
    raise config.ConfigError(f"{out} holds a run: name another folder in --out")
  loaded, described = api.load(workdir, weights, step), api.read_model(workdir)
  run = loaded.config
  origin = pathlib.Path(workdir) / run.text.FILE
  if not origin.is_file():
    origin = pathlib.Path(run.text.path or pathlib.Path(run.data.cache) / run.text.FILE)
  out.mkdir(parents=True, exist_ok=True)
  text.copy(run.text, origin, out)
  described |= {"step": loaded.step, "weights": weights, "workdir": ""}
  sha256 = exported.write(out, loaded.params, weights=weights, step=loaded.step)
  files.write_json(out / "model.json", described | {"weights_sha256": sha256})
  relative = os.path.relpath(run.tokenizer.path, out)
  changes = {
    "tokenizer.path": relative,
    "data.cache": "",
    "text.path": run.text.shipped(out),
  }
  content = config.to_dict(config.replaced(run, changes))
  content["init"] = config.to_dict(config.Init())
  files.write_json(out / "config.json", content)
  values = judged(pathlib.Path(workdir) / "metrics.jsonl", loaded.step)
  files.write_text(out / "README.md", card(run, described, values))


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


def card(run: config.Run, described: dict, values: dict[str, float]) -> str:
  """A model card: what it is, what it was trained on, by which code, how good it is.

  Args:
    run: its config.
    described: content of model.json.
    values: of evaluations.
  """
  model, optim = run.model, run.optim
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
    "training": f"{described['step']:,} steps of {run.batch}, peak rate {optim.lr:g}"
    f"{f', Muon {optim.muon:g}' if optim.muon else ''}",
    "weights": described["weights"],
    "commit": commit,
  }
  lines = [f"# {title}", "", "| | |", "|---|---|"]
  lines += [f"| {k} | {v} |" for k, v in facts.items()]
  if values:
    lines += ["", "| evaluation | value |", "|---|---|"]
    lines += [
      f"| {k} | {f'{v:.5g}' if isinstance(v, float) else v} |"
      for k, v in sorted(values.items())
    ]
  use = "python -m fluid.sample --workdir FOLDER --prompt PROMPT"
  return "\n".join([*lines, "", f"Draw from it with `{use}`.", ""])


def main(argv) -> None:
  """Entry point."""
  del argv
  args = flags.FLAGS
  out = args.out
  if not out:
    raise cli.UserError("missing flag --out; see --help")
  export(cli.require(WORKDIR), out, weights=args.weights, step=args.step)
  print(f"{out}: {os.path.getsize(os.path.join(out, exported.FILE)) / 1e6:.1f} MB")


if __name__ == "__main__":
  WORKDIR = cli.workdir_flag()
  flags.DEFINE_string("out", None, "Folder to write.")
  flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Averaged or raw weights.")
  flags.DEFINE_integer("step", None, "Checkpoint (default: the newest).")
  cli.run(main)
