"""What a sweep takes before it is begun: chips, hours, dollars, bytes to store.

Hours are those of the training steps alone, by the compiler's model of a step where
launch/topologies.json has one (nothing is measured). A row without it borrows the
FLOP/s a chip of the nearest size that has one on the same generation, and says so.
"""

import re
from collections.abc import Iterable
from typing import Any

from launch import recommended
from launch.plan import Stage

# Dollars for an hour of a chip, on demand, in the cheapest region of the United States:
# Google's list (cloud.google.com/tpu/pricing) of 2025, typed in from memory on
# 2026-11-28: look it up before it decides anything. Spot and committed use cost less;
# --price goes before this.
PRICES = {"v4": 3.22, "v5e": 1.20, "v5p": 4.20, "v6e": 2.70}
SOURCE = "Google's list prices of 2025, on demand, from memory 2026-11-28"
GB = 1e9


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
  hours = seconds * run.steps / 3600 if seconds else None
  price = PRICES.get(h.kind) if price is None else price
  params = report["params"] if report and report["mesh"] else None
  return {
    "chips": h.chips,
    "hours": hours,
    "chip_hours": hours and hours * h.chips,
    "dollars": hours and price is not None and hours * h.chips * price or None,
    # Parameters, EMA and two moments in float32, of each checkpoint that is kept.
    "gigabytes": params and run.keep * params * 16 / GB,
    "basis": basis,
  }


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
  """Lines: a run each, their sum, and where prices and times are from."""
  runs = [s for s in stages if s.kind == "run"]
  rows = [row(s, price) for s in runs]
  width = max([len(s.name) for s in runs] + [3])
  head = (
    f"{'run':{width}} {'hardware':16} {'chips':>5} {'hours':>8} {'chip-hours':>11} "
    f"{'dollars':>11} {'GB kept':>8}  by"
  )
  out = [head]
  for stage, r in zip(runs, rows):
    out.append(_line(stage.name, str(stage.hardware), r, width))
  keys = ("chip_hours", "dollars", "gigabytes")
  total = {k: sum(r[k] or 0 for r in rows) or None for k in keys}
  missing = sum(r["hours"] is None for r in rows)
  total |= {"chips": "", "hours": None}
  total["basis"] = (
    f"{missing} of {len(runs)} runs without an estimate" if missing else ""
  )
  out.append(_line(f"{len(runs)} runs", "", total, width))
  out.append(
    "hours: of training steps alone, estimated, not measured; evaluations, restarts, "
    "tokenizers and caches come on top"
  )
  out.append(
    "rows are of configs/fluid.py as it is, batch by batch: another text encoder or "
    "aligner is a few per cent of it"
  )
  said = f"${price:g} a chip-hour, by --price" if price is not None else SOURCE
  out.append(f"dollars: {said}; caches of tokens are not in the bytes")
  return out


def _line(name: str, machine: str, r: dict, width: int) -> str:
  def number(key, form):
    return format(r[key], form) if r[key] is not None else "?"

  hours = number("hours", ",.1f") if r["chips"] else ""
  return (
    f"{name:{width}} {machine:16} {r['chips']:>5} {hours:>8} "
    f"{number('chip_hours', ',.0f'):>11} {number('dollars', ',.0f'):>11} "
    f"{number('gigabytes', ',.0f'):>8}  {r['basis']}"
  ).rstrip()
