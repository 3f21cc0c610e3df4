"""How a sweep stands: python -m launch.status --workdir DIR [--json]

A line for each stage, on any engine: state, step, loss, images/s, MFU, goodput, time
left, how often it was started again; below them what there is to say of one, such as
the last line of what failed. Exit status 1 if anything failed.
"""

import json
import sys

from rich.console import Console
from rich.table import Table

from fluid.console.progress import clock
from launch import errors, view
from launch.entries import Entry
from launch.progress import COLOURS, progress
from launch.remote import code_of


def row(entry: Entry) -> dict:
  """What is known of a stage."""
  p = progress(entry.stage)
  return {
    "stage": entry.stage.id,
    "state": entry.status,
    "key": entry.key,
    "step": p.get("step"),
    "steps": entry.stage.run.steps if entry.stage.kind == "run" else None,
    "loss": p.get("loss"),
    "images_per_s": p.get("images_per_s"),
    "mfu": p.get("mfu"),
    "goodput": p.get("goodput"),
    "eta_seconds": p.get("eta") if entry.status == "running" else None,
    "restarts": view.starts(entry),
    "note": entry.note,
  }


def table(rows: list[dict]) -> Table:
  out = Table(box=None, pad_edge=False)
  out.add_column("stage", overflow="fold")
  out.add_column("state", no_wrap=True)
  for name in ("step", "loss", "images/s", "MFU", "goodput", "ETA", "restarts"):
    out.add_column(name, justify="right", no_wrap=True)

  def text(value, form="{}"):
    return "" if value is None else form.format(value)

  for r in rows:
    out.add_row(
      r["stage"].removeprefix("run/"),
      f"[{COLOURS[r['state']]}]{r['state']}[/]",
      f"{r['step']}/{r['steps']}" if r["step"] is not None else "",
      text(r["loss"], "{:.4f}"),
      text(r["images_per_s"], "{:,.0f}"),
      text(r["mfu"], "{:.0%}"),
      text(r["goodput"], "{:.1%}"),
      clock(r["eta_seconds"]) if r["eta_seconds"] is not None else "",
      str(r["restarts"] or ""),
    )
  return out


def notes(rows: list[dict]) -> list[str]:
  """What there is to say, a line each: no column is as wide as an error."""
  return [f"{r['state']}: {r['stage']}: {r['note']}" for r in rows if r["note"]]


def main(argv: list[str] | None = None) -> int:
  parser = view.parser("status")
  parser.add_argument("--json", action="store_true", help="an array of objects")
  args = parser.parse_args(argv)
  _, found, _ = view.open_sweep(view.folder(args))
  rows = [row(e) for e in found.values()]
  if args.json:
    print(json.dumps(rows, indent=1))
  else:
    wide = None if sys.stdout.isatty() else 1000  # In a file nothing has to be cut.
    Console(soft_wrap=True, width=wide).print(table(rows))
    for line in notes(rows):
      print(line)
  return code_of(found.values())


if __name__ == "__main__":
  errors.end(main)
