"""A run to give away: `python -m fluid.export --workdir RUN --out DIR`.

DIR gets config.json, model.json, the text encoder's file, the weights as one
safetensors file without the optimizer, and README.md, a card that says what it is.
fluid.load, fluid.sample and fluid.evaluate take it as they take a run, and
`init.workdir` starts another from it. Its tokenizer and a frozen text encoder stay
where they are, named by their paths relative to DIR and by their hashes.
"""

import os
import pathlib

from absl import flags

from fluid import api, config, files, remote, shipped, text
from fluid.console import cli
from fluid.durable import card, exported


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
  workdir, out = shipped.find(str(workdir)), pathlib.Path(out)
  folder = remote.local(workdir)
  if (out / "checkpoints").exists():
    raise config.ConfigError(f"{out} holds a run: name another folder in --out")
  loaded, described = api.load(workdir, weights, step), api.read_model(folder)
  run = loaded.config
  origin = folder / run.text.FILE
  if not origin.is_file():
    origin = pathlib.Path(run.text.path or pathlib.Path(run.data.cache) / run.text.FILE)
  out.mkdir(parents=True, exist_ok=True)
  text.copy(run.text, origin, out)
  described |= {"step": loaded.step, "weights": weights, "workdir": ""}
  sha256 = exported.write(out, loaded.params, weights=weights, step=loaded.step)
  files.write_json(out / "model.json", described | {"weights_sha256": sha256})
  tokenizer = api.read_config(workdir, folder, near=False).tokenizer.path
  if not remote.is_url(tokenizer):  # Which every machine can copy.
    tokenizer = os.path.relpath(tokenizer, out)
  changes = {
    "tokenizer.path": tokenizer,
    "data.cache": "",
    "data.mixture": (),
    "data.weights": (),
    "text.path": run.text.shipped(out),
  }
  content = config.to_dict(config.replaced(run, changes))
  content["init"] = config.to_dict(config.Init())
  files.write_json(out / "config.json", content)
  values = card.judged(folder / "metrics.jsonl", loaded.step)
  files.write_text(out / "README.md", card.text(run, described, values))


def main(argv) -> None:
  """Entry point."""
  del argv
  args = flags.FLAGS
  out = args.out
  files.on_disk(out, "--out")
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
