"""Published weights -> a folder that this code loads.

  python -m fluid.convert KIND SOURCE FOLDER [key=value ...]

SOURCE is the authors' file or folder (safetensors, a torch checkpoint, flax msgpack).
With `--to=safetensors like=FILE` it is the way back: SOURCE is a run or a tokenizer of
the kind, FOLDER gets its weights under the names and in the shapes of the authors'
FILE, for their code, and a model card. (fluid.export writes a run under our names.)
Sizes are the published ones unless key=value says otherwise: of a tokenizer, fields of
its config, and image_size; of a model, keys of its config (model.trunk.width=64), and
tokenizer.path=FOLDER of its converted tokenizer. Without arguments kinds are listed.
"""

import json
import pathlib
from typing import Any

from absl import flags

from fluid import api, files
from fluid.console import cli
from fluid.convert import family, models, tokenizers
from fluid.durable import card

FAMILIES: dict[str, family.Family] = {**tokenizers.FAMILIES, **models.FAMILIES}


def _value(text: str) -> Any:
  """'3', '0.5', 'true', 'deep', '1,2,3' -> what it says."""
  if "," in text:
    return [_value(part) for part in text.split(",") if part]
  try:
    return json.loads(text)
  except ValueError:
    return text


def _card(workdir: str, folder: str, step: int) -> None:
  """README.md of a run's averaged weights at a step."""
  described = api.read_model(workdir) | {"step": step, "weights": "ema"}
  values = card.judged(pathlib.Path(workdir) / "metrics.jsonl", step)
  use = "The names and shapes are those of the authors' code."
  text = card.text(api.read_config(workdir), described, values, use)
  files.write_text(pathlib.Path(folder) / "README.md", text)


def main(argv: list[str], to: str | None = None) -> None:
  """Entry point; `to` is 'safetensors' for the way back."""
  if len(argv) < 4 or not all("=" in change for change in argv[4:]):
    raise cli.UserError(
      "usage: python -m fluid.convert KIND SOURCE FOLDER [key=value ...]; kinds: "
      + ", ".join(FAMILIES)
    )
  kind, source, folder = argv[1:4]
  if kind not in FAMILIES:
    raise cli.UserError(f"unknown kind '{kind}'; choose from {', '.join(FAMILIES)}")
  files.on_disk(folder, "FOLDER")
  for place in (folder, *map(str, pathlib.Path(folder).parents)):
    files.no_file(place, "FOLDER")
  if pathlib.Path(folder).exists() and any(pathlib.Path(folder).iterdir()):
    raise cli.UserError(f"{folder} is not empty: name another folder")
  changes: dict[str, str] = {}
  for key, _, value in (change.partition("=") for change in argv[4:]):
    if key in changes:
      raise cli.UserError(f"key '{key}' is given twice: give it once")
    changes[key] = value
  if to:
    if changes.keys() != {"like"}:
      raise cli.UserError(
        "--to=safetensors needs like=FILE, the authors' file whose names are taken, "
        "and nothing else"
      )
    file, step = family.back(FAMILIES[kind], source, changes["like"], folder)
    if kind in models.FAMILIES:
      _card(source, folder, step)
    print(f"{file}: {kind}, {file.stat().st_size / 1e6:.1f} MB")
    return
  values = {key: _value(text) for key, text in changes.items()}
  family.convert(FAMILIES[kind], source, folder, values)
  size = sum(file.stat().st_size for file in pathlib.Path(folder).iterdir())
  print(f"{folder}: {kind}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
  flags.DEFINE_enum("to", None, ["safetensors"], "The way back: what to write.")
  cli.run(lambda argv: main(argv, flags.FLAGS.to), words=True)
