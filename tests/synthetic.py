"""A study's folder without training: what the trainer and the sweep would have left."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CELLS = [(t, o) for t in ("continuous", "discrete") for o in ("random", "raster")]
SIZES = {"xs": 1e5, "s": 2e5, "m": 5e5, "l": 1e6, "xl": 2e6}
EXPONENT = {"continuous": 0.05, "discrete": 0.08}
N0 = 1e3
PROMPTS = ["a red circle", "two blue squares"]
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def loss(tokens: str, n: float) -> float:
  """The law that is planted: (N0 / N) ^ exponent."""
  return (N0 / n) ** EXPONENT[tokens]


def write_study(
  root: Path, *, sizes=tuple(SIZES), geneval=True, failed=(), unfinished=(), steps=100
) -> Path:
  """A sweep's folder in which continuous beats discrete and random beats raster."""
  records = []
  for size in sizes:
    for tokens, order in CELLS:
      name = f"{tokens}-{order}-{size}"
      status = "failed" if name in failed else "finished"
      status = "interrupted" if name in unfinished else status
      records.append(
        {
          "name": name,
          "kind": "run",
          "cell": f"{tokens}-{order}",
          "size": size,
          "status": status,
          "note": "exit status 3: error: no luck" * (name in failed),
          "steps": steps,
          "command": f"python -m fluid.train --workdir={name}",
        }  # fmt: skip
      )
      if status != "failed":
        write_run(
          root / "runs" / name, tokens, order, size,
          geneval=geneval, done=status == "finished", steps=steps,
        )  # fmt: skip
  root.mkdir(parents=True, exist_ok=True)
  records.append({"name": "vae-1", "kind": "tokenizer", "status": "finished"})
  (root / "sweep.json").write_text(json.dumps(records))
  return root


def write_run(folder, tokens, order, size, *, geneval=True, done=True, steps=100):
  folder.mkdir(parents=True)
  n = SIZES[size]
  share = {"core": 0.6, "aligner": 0.2, "head": 0.15, "embeddings": 0.05}
  params = {k: int(n * v) for k, v in share.items()} | {"tokenizer": 777}
  flops = {k: 2.0 * v * 64 for k, v in params.items()}
  model = {
    "cell": f"{tokens}-{order}", "tokens": tokens, "order": order, "size": size,
    "params": params | {"total": sum(params.values())},
    "forward_flops_per_image": flops | {"total": sum(flops.values())},
    "batch": 8, "steps": steps, "tokens_per_image": 64,
  }  # fmt: skip
  config = {"seed": 3, "data": {"source": "shapes", "image_size": 32, "cache": "/x"}}
  (folder / "model.json").write_text(json.dumps(model))
  (folder / "config.json").write_text(json.dumps(config))
  rank = list(SIZES).index(size)
  lines = []
  for step in (steps // 2, steps) if done else (steps // 2,):
    late = 1 + 0.2 * (steps - step) / steps
    lines.append(
      {"step": step, "time": 10.0 + step, "train/loss": 9.0, "images_per_s": 5.0}
      | {"goodput": 0.8, "lost/compile": 0.2}
    )
    values = {"val/loss": loss(tokens, n) * late, "val/loss_sem": 1e-3}
    kid = 0.05 - 0.005 * rank + 0.02 * (tokens == "discrete")
    values |= {"kid": kid * late, "kid_lo": kid * late - 2e-3, "kid_hi": kid * late}
    values |= {"fd": 300 * kid, "features": "EffNet", "kid_images": 100}
    # Random order has the higher loss, and it falls as less is unknown.
    even = values["val/loss"] * (1.1 if order == "random" else 1.0)
    known = {f"val/loss_known{i}": even * (1.45 - i / 10) for i in range(10)}
    values |= known
    if tokens == "discrete":
      values |= {"val/nats": 64 * even, "val/nats_sem": 0.05, "val/nats_count": 512}
    if geneval:
      gain = 0.1 if order == "random" else 0.0
      tags = {t: 0.3 + 0.05 * rank + gain * (t != "single_object") for t in TAGS}
      values |= {f"geneval/{t}": v / late for t, v in tags.items()}
      values["geneval/overall"] = float(np.mean(list(tags.values()))) / late
      values["geneval/overall_lo"] = values["geneval/overall"] - 0.01
      values["geneval/overall_hi"] = values["geneval/overall"] + 0.01
      values |= {"geneval/chance": 0.04, "geneval/tokenizer": 0.9}
    loss_values = {k: values.pop(k) for k in list(values) if k.startswith("val/")}
    named = {"loss": loss_values, "distribution": values}  # A line an evaluator.
    for name, found in named.items():
      lines.append({"step": step, "time": 11.0 + step, "evals": name} | found)
  if done:
    lines.append({"step": steps, "time": 99.0, "sample/seconds_per_image": 0.25})
    done_record = {"step": steps, "wall_seconds": 60.0, "images_per_s": 123.0}
    (folder / "done.json").write_text(json.dumps(done_record))
    account = {"goodput": 0.75, "lost/compile": 0.15, "lost/saves": 0.1, "until": None}
    (folder / "goodput.json").write_text(json.dumps(account))
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text + '{"step": 1')  # cut off by a kill
  write_samples(folder / "samples", steps, level=60 * CELLS.index((tokens, order)))


def write_samples(folder: Path, step: int, *, level: int):
  """A grid of 2 prompts x 2 images, 2 pixels apart; tile k has grey `level` + k."""
  folder.mkdir(parents=True)
  grid = np.full((34, 34, 3), 255, np.uint8)
  for k in range(4):
    y, x = (18 * i for i in divmod(k, 2))
    grid[y : y + 16, x : x + 16] = level + k
  Image.fromarray(grid).save(folder / f"step_{step:08d}.png")
  Image.fromarray(grid).save(folder / f"step_{step + 1:08d}_raw.png")
  (folder / "prompts.json").write_text(json.dumps(np.repeat(PROMPTS, 2).tolist()))
