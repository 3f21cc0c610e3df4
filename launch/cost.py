"""What a sweep takes before it is begun: chips, hours, dollars, bytes to store.

Hours of a run are those of its training steps alone, by the compiler's model of a step
where launch/topologies.json has one (nothing is measured). A row without it borrows the
FLOP/s a chip of the nearest size that has one on the same generation, and says so.
Tokenizers, caches and tuning have no such model: theirs is the time at the chips' peak,
which is less than they take.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from launch import recommended
from launch.hardware import Hardware
from launch.plan import Stage

# Dollars for an hour of a chip, on demand, in the cheapest region of the United States:
# Google's list (cloud.google.com/tpu/pricing) of 2025, typed in from memory on
# 2026-11-28: look it up before it decides anything. Spot and committed use cost less;
# --price goes before this.
PRICES = {"v4": 3.22, "v5e": 1.20, "v5p": 4.20, "v6e": 2.70}
SOURCE = (
  "on demand, by Google's list of 2025 (cloud.google.com/tpu/pricing), typed in from "
  "memory on 2026-11-28: look it up; spot costs less, and --price goes before it"
)
GB = 1e9
# Generation -> its row of fluid.flops.PEAKS.
DEVICES = {"v4": "TPU v4", "v5e": "TPU v5e", "v5p": "TPU v5", "v6e": "TPU v6"}


def row(stage: Stage, price: float | None = None) -> dict[str, Any]:
  """What one run takes; None where it cannot be said.

  Returns:
    chips, hours, chip_hours, dollars, gigabytes, basis (the row behind it, in words).
  """
  h, run = stage.hardware, stage.run
  assert h
  name = recommended.name(
    run.model.size, run.model.cell, f"{h.kind}:{h.topology}", h.slices
  )
  report = recommended.reports().get(name)
  seconds, basis = _seconds(report, name, run)
  params = report["params"] if report and report["mesh"] else None
  return {
    **_paid(seconds * run.steps if seconds else None, h, price),
    # Parameters, EMA and two moments in float32, of each checkpoint that is kept.
    "gigabytes": params and run.keep * params * 16 / GB,
    "basis": basis,
  }


def made(stage: Stage, price: float | None = None) -> dict[str, Any]:
  """What a tokenizer, a cache or tuning takes at least; as `row`."""
  from fluid import flops  # It imports jax, which launching does without.

  h, run = stage.hardware, stage.run
  assert h
  config, side = run.tokenizer, run.data.image_size
  if stage.kind == "tokenizer":
    each, images = flops.training(config, side), config.steps * config.batch
    stored = flops.tokenizing(config, side)["params"] * 4
    basis = f"{each / 1e9:,.0f} GFLOP an image"
  elif stage.kind == "tune":
    each, images, stored = *_tuning(stage), 0
    basis = f"{each / 1e9:,.0f} GFLOP an image, {images:,} images by halving"
  else:
    encoding = flops.tokenizing(config, side)["forward_flops_per_image"]
    reading = flops.reading(run.text)["forward_flops_per_image"]
    # All captions of an image (0), or so many: at least one.
    each = encoding * (1 + run.data.flips) + reading * max(1, run.data.captions)
    images = _images(run)
    size = _record(run)
    stored = images and images * size
    basis = f"{each / 1e9:,.0f} GFLOP and {size / 1e3:,.1f} kB an image"
    if run.text.feature_width and not reading:
      basis += "; without the text encoder, which is not known here"
    if not images:
      basis += "; how many there are is not said (data.num_train, data.num_val)"
  peak = flops.PEAKS.get(DEVICES.get(h.kind, ""))
  if not peak:
    basis += f"; the peak of {h.kind}s is not known"
  seconds = each * images / peak / h.chips if peak and images else None
  return {
    **_paid(seconds, h, price),
    "gigabytes": stored and stored / GB,
    "basis": basis,
  }


def _paid(seconds: float | None, h: Hardware, price: float | None) -> dict[str, Any]:
  hours = None if seconds is None else seconds / 3600
  price = PRICES.get(h.kind) if price is None else price
  known = hours is not None and price is not None
  return {
    "chips": h.chips,
    "hours": hours,
    "chip_hours": None if hours is None else hours * h.chips,
    "dollars": hours * h.chips * price if known else None,  # type: ignore[operator]
  }


def _images(run) -> int | None:
  """Of both splits at most; None where only the files would tell."""
  data = run.data
  return data.num_train + data.num_val if data.num_train and data.num_val else None


def _tuning(stage: Stage) -> tuple[int, int]:
  """FLOPs of drawing an image, and how many a search draws."""
  from fluid import evaluate, flops, models
  from fluid.evals import tuning

  grid, by = stage.tune
  name = tuning.evaluator(by)
  part = evaluate.override(stage.run, (), [name]).evals[name]
  images, _ = tuning.judged(part)
  data = dataclasses.replace(stage.run.data, cache="")  # It need not be there.
  net = models.Net.of(dataclasses.replace(stage.run, data=data))
  each = flops.drawing(net, stage.run.sample)
  return each, tuning.drawn(tuning.grid(grid), images)


def _record(run) -> float:
  """Bytes of an image's record, without what its captions say; see data.packing."""
  spec, text = run.tokenizer.make(run.data.image_size).spec, run.text
  if spec.kind == "continuous":
    tokens = 2 * spec.length * spec.channels * 2  # Mean and std in float16.
  else:
    tokens = spec.length * (2 if spec.vocab <= 2**16 else 4)
  # Ids of three bytes, and features in bfloat16: where a caption fills text.length.
  words = text.length * (3 + 2 * text.feature_width)
  return tokens * (1 + run.data.flips) + words * max(1, run.data.captions)


def _seconds(report, name: str, run) -> tuple[float | None, str]:
  """Of a training step, and what says so."""
  if not report or not report.get("flops"):
    return None, "none: no row of launch/topologies.md is of this size and slice"
  flops = report["flops"] * run.batch / report["batch"]
  per_chip = flops / report["devices"]
  own = _rate(report)
  if own:
    return per_chip / own, f"{name}, by {_model(report)}"
  near = [
    (abs(_size(r["size"]) - _size(report["size"])), n)
    for n, r in recommended.reports().items()
    if _rate(r) and r["device"] == report["device"] and r["slices"] == 1
  ]
  if not near:
    return None, f"{name} fits, but has no estimate of time"
  _, like = min(near)
  other = recommended.reports()[like]
  return per_chip / _rate(
    other
  ), f"{name} fits; FLOP/s a chip of {like}, {_model(other)}"


def _rate(report) -> float | None:
  """FLOP/s of a chip in a training step, as MFU counts them."""
  e = report.get("estimate") or {}
  seconds = e.get("compiler_seconds") or e.get("roofline_seconds")
  return seconds and report["flops"] / report["devices"] / seconds


def _model(report) -> str:
  e = report["estimate"]
  return "compiler's model" if "compiler_seconds" in e else "roofline"


def _size(text: str) -> float:
  number, unit = re.fullmatch(r"([\d.]+)([MB])", text).groups()  # type: ignore[union-attr]
  return float(number) * {"M": 1e6, "B": 1e9}[unit]


def table(stages: Iterable[Stage], price: float | None = None) -> list[str]:
  """Lines: a run each, their sum, what is beside them, and where it all is from."""
  stages = list(stages)
  runs = [s for s in stages if s.kind == "run"]
  others = [s for s in stages if s.kind != "run"]
  rows = [row(s, price) for s in runs]
  width = max([len(s.name) for s in runs] + [len(s.id) for s in others] + [3])
  wide = max(len(str(s.hardware)) for s in [*runs, *others])
  head = (
    f"{'run':{width}} {'hardware':{wide}} {'chips':>5} {'hours':>8} {'chip-hours':>11} "
    f"{'dollars':>11} {'GB kept':>8}  by"
  )
  out = [head]
  for stage, r in zip(runs, rows):
    out.append(_line(stage.name, str(stage.hardware), r, width, wide))
  keys = ("chip_hours", "dollars", "gigabytes")
  total = {k: sum(r[k] or 0 for r in rows) or None for k in keys}
  missing = sum(r["hours"] is None for r in rows)
  total |= {"chips": "", "hours": None}
  total["basis"] = (
    f"{missing} of {len(runs)} runs without an estimate" if missing else ""
  )
  out.append(_line(f"{len(runs)} runs", "", total, width, wide))
  out += [_line(s.id, str(s.hardware), made(s, price), width, wide) for s in others]
  out.append(
    "hours of runs: of training steps alone, estimated, not measured; evaluations and "
    "restarts come on top"
  )
  if others:
    out.append(
      "hours of what is no run: at the chips' peak, so they take more; bytes of "
      "caches: without the captions' text, if each fills text.length; ? is unknown"
    )
  out.append(
    "rows are of configs/fluid.py as it is, batch by batch: another text encoder or "
    "aligner is a few per cent of it"
  )
  kinds = sorted({s.hardware.kind for s in stages if s.hardware})
  if price is not None:
    return [*out, f"dollars: ${price:g} a chip-hour, by --price"]
  if known := [f"{k} ${PRICES[k]:.2f}" for k in kinds if k in PRICES]:
    out.append(f"dollars: {', '.join(known)} a chip-hour, {SOURCE}")
  if unknown := [k for k in kinds if k not in PRICES]:
    out.append(f"dollars: no price of {', '.join(unknown)} is known here: --price")
  return out


def _line(name: str, machine: str, r: dict, width: int, wide: int) -> str:
  def number(key, form):
    return format(r[key], form) if r[key] is not None else "?"

  hours = number("hours", ",.1f") if r["chips"] else ""
  return (
    f"{name:{width}} {machine:{wide}} {r['chips']:>5} {hours:>8} "
    f"{number('chip_hours', ',.0f'):>11} {number('dollars', ',.0f'):>11} "
    f"{number('gigabytes', ',.0f'):>8}  {r['basis']}"
  ).rstrip()
