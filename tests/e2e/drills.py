"""Every fault that docs/reliability.md speaks of, done to a small run on purpose.

  python -m tests.e2e.drills --workdir DIR --out drills.json [--short] [--only NAME]

Prints a table: fault, how often it was tried and survived, the most steps that were
done again, and whether the finished run is bitwise that of one left in peace. Exit
status 1 if anything was not survived.
"""

import argparse
import collections
import itertools
import json
import pathlib
import platform
import random
import sys
import time

from rich.console import Console
from rich.table import Table

from tests.e2e import drills_damage, drills_interrupt, drills_many
from tests.e2e.lab import Failure, Lab, NotHere

DRILLS = drills_interrupt.DRILLS | drills_many.DRILLS | drills_damage.DRILLS


def run(
  folder: pathlib.Path, *, seed: int, short: bool = False, only: str = ""
) -> dict:
  """Runs the drills whose names contain `only`; the report, JSON-able."""
  lab = Lab(folder.resolve(), seed)
  print(f"seed {seed}; preparing {folder}", flush=True)
  lab.prepare()
  tries, skipped = [], {}
  for name, (drill, count, count_short) in DRILLS.items():
    n = count_short if short else count
    if only not in name or not n:
      continue
    lab.random.seed(f"{seed} {name}")  # The same points with and without --only.
    start = time.monotonic()
    found = _tries(drill, lab, n)
    try:
      first = next(found)
    except NotHere as e:
      skipped[name] = str(e)
      print(f"{name}: not tried: {e}", flush=True)
      continue
    for number, one in enumerate(itertools.chain([first], found), 1):
      one = {
        "fault": name,
        "survived": True,
        "lost": 0,
        "bitwise": None,
        "note": "",
      } | one
      tries.append(one)
      mark = "ok" if one["survived"] else f"NOT SURVIVED: {one['note']}"
      took = time.monotonic() - start
      print(f"{name}: {number} of {n}, {took:.0f} s, {mark}", flush=True)
  import jax

  return {
    "seed": seed,
    "short": short,
    "python": platform.python_version(),
    "jax": jax.__version__,
    "rows": summarize(tries),
    "tries": tries,
    "skipped": skipped,
  }


def _tries(drill, lab, count):
  try:
    yield from drill(lab, count)
  except Failure as e:
    yield {"survived": False, "note": str(e)}


def summarize(tries: list[dict]) -> list[dict]:
  """A row for each fault."""
  groups = collections.defaultdict(list)
  for one in tries:
    groups[one["fault"]].append(one)
  out = []
  for fault, all_ in groups.items():
    bitwise = {one["bitwise"] for one in all_} - {None}
    out.append(
      {
        "fault": fault,
        "tried": len(all_),
        "survived": sum(one["survived"] for one in all_),
        "lost": max(one["lost"] for one in all_),
        "result": "bitwise equal"
        if bitwise == {True}
        else "DIFFERENT"
        if False in bitwise
        else next((one["note"] for one in all_ if one["note"]), ""),
      }
    )
  return out


def table(rows: list[dict]) -> Table:
  """The rows for a terminal."""
  out = Table()
  out.add_column("fault")
  for name in ("tried", "survived", "lost steps"):
    out.add_column(name, justify="right")
  out.add_column("afterwards")
  for row in rows:
    ok = row["survived"] == row["tried"]
    out.add_row(
      row["fault"],
      str(row["tried"]),
      str(row["survived"]),
      str(row["lost"]),
      row["result"],
      style=None if ok else "bold red",
    )
  return out


def markdown(rows: list[dict]) -> str:
  """The rows for docs/reliability.md."""
  lines = [
    "| fault | tried | survived | lost steps | afterwards |",
    "|---|---|---|---|---|",
  ]
  for r in rows:
    cells = (r["fault"], r["tried"], r["survived"], r["lost"], r["result"])
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m tests.e2e.drills")
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--out", type=pathlib.Path, help="JSON of all tries")
  parser.add_argument("--seed", type=int, default=None, help="of the kill points")
  parser.add_argument("--short", action="store_true", help="some of each, for CI")
  parser.add_argument("--only", default="", help="faults whose names contain this")
  parser.add_argument("--markdown", action="store_true", help="print the table as such")
  args = parser.parse_args(argv)
  seed = random.SystemRandom().randrange(10**6) if args.seed is None else args.seed
  report = run(args.workdir, seed=seed, short=args.short, only=args.only)
  if args.out:
    args.out.write_text(json.dumps(report, indent=1) + "\n")
  if args.markdown:
    print(markdown(report["rows"]))
  else:
    Console(width=100).print(table(report["rows"]))
  for fault, why in report["skipped"].items():
    print(f"{fault}: not tried: {why}")
  return int(any(r["survived"] < r["tried"] for r in report["rows"]))


if __name__ == "__main__":
  sys.exit(main())
