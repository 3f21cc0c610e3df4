"""fluid.prepare against what its parts take alone: decoding and encoding.

  python -m benchmarks.prepare --config=configs/toy.py:tokens=discrete \\
    [--images=2048] [--workers=0] [--json=FILE]

Makes a folder of JPEG photographs (noise over slopes, 500 x 375 pixels, captioned) and
reads it as source `folder`. Decoding: all that happens to an example before the
tokenizer, alone. Encoding: tokenizer, text and packing of examples that are there,
alone. Both run in turn with the whole command (without compilation), whose floor is
their time one after the other: 1 / (1 / decode + 1 / encode).
"""

import dataclasses
import itertools
import json
import pathlib
import shutil
import tempfile

import numpy as np
from absl import flags
from PIL import Image

from benchmarks import timing
from fluid import config, prepare, text, tokenizers
from fluid.console import cli
from fluid.data import examples, make_source, packing

CONFIG = cli.config_flag()
SIDES = (500, 375)


def write_photographs(folder: pathlib.Path, n: int) -> None:
  """n JPEG files and their captions, in the layout of source `folder`."""
  width, height = SIDES
  x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True)
  lines = []
  for i in range(n):
    slopes, grain = rng.uniform(-1, 1, (3, 2)), rng.normal(0, 12, (height, width, 1))
    image = np.stack([128 + 90 * (a * x + b * y) for a, b in slopes], -1) + grain
    name = f"{i:06d}.jpg"
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name, quality=90)
    lines.append(json.dumps({"file_name": name, "text": f"a photo of {i % 9} slopes"}))
  (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def measure(run: config.Run, batch: int, scratch: pathlib.Path, rounds: int) -> dict:
  """Seconds of each part, of all images of the split."""
  tokenizer = tokenizers.load(run.tokenizer.path)
  source = make_source(run.data, "train")
  total = len(source)
  run = config.replaced(run, {"data.cache": str(scratch / "made")})
  prepare.prepare(run, tokenizer=tokenizer, splits=("train",), batch=batch)
  vocabulary = text.load(run.text, run.data.cache)
  reading = lambda: examples.read(source, run.text, 0, total, batch, run.data.workers)
  some = list(itertools.islice(reading(), 4))

  def encode():
    for i in range(-(-total // batch)):
      found = examples.encode(
        some[i % len(some)], tokenizer, vocabulary, run.text.length, batch
      )
      for example in found:
        packing.pack(example)

  def everything():
    for shard in pathlib.Path(run.data.cache).glob("train-*"):
      shard.unlink()
    prepare.prepare(
      run,
      tokenizer=tokenizer,
      splits=("train",),
      batch=batch,
      log=lambda line: None,
    )

  return timing.interleave(
    {
      "decode": lambda: sum(map(len, reading())),
      "encode": encode,
      "prepare": everything,
    },
    rounds=rounds,
    warmup=1,
  )


def main(argv) -> None:
  """Prints images a second of each, and the share of the floor."""
  del argv
  f = flags.FLAGS
  run = cli.read(CONFIG)
  scratch = pathlib.Path(tempfile.mkdtemp())
  try:
    write_photographs(scratch / "photographs", f.images)
    source = config.resolve("source", "folder")(path=str(scratch / "photographs"))
    data = dataclasses.replace(
      run.data, source=source, num_train=0, num_val=0, workers=f.workers
    )
    run = dataclasses.replace(run, data=data)
    times = measure(run, f.batch, scratch, f.rounds)
    total = len(make_source(run.data, "train"))
  finally:
    shutil.rmtree(scratch)
  found = {name: timing.summary(seconds) for name, seconds in times.items()}
  rates = {name: total / s["median_s"] for name, s in found.items()}
  floor = 1 / (1 / rates["decode"] + 1 / rates["encode"])
  timing.write(
    f.json,
    {
      "images": total,
      "workers": f.workers,
      "batch": f.batch,
      "images_per_second": rates,
      "floor": floor,
      "share_of_floor": rates["prepare"] / floor,
      "memory_bytes": timing.peak_memory(),
      "times": found,
    },
  )


if __name__ == "__main__":
  flags.DEFINE_integer("images", 2048, "To make and prepare.")
  flags.DEFINE_integer("workers", 0, "As of data.workers.")
  flags.DEFINE_integer("batch", prepare.BATCH, "Images of a call of the tokenizer.")
  flags.DEFINE_integer("rounds", 3, "Of all three in turn.")
  flags.DEFINE_string("json", None, "Write the report to this file.")
  cli.run(main)
