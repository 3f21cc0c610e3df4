"""The ladder on recommended TPU topologies: every cell compiled, in one table.

  python -m launch.topologies [--only='10.5B.*v5p'] [--out=launch/topologies]

Compiles the train step of each row at the paper's global batch of 2048
(launch.aot_compile in a process of its own), keeps its report in OUT.json and writes
OUT.md after each row. Rows that are there already are not compiled again; delete a row,
or the file, to do so. The exit status is 1 if a row does not fit.
"""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from configs import sizes
from fluid.console import cli
from launch import recommended
from launch.recommended import RECOMMENDED

BATCH = 2048
GB = 2**30
CELLS = [(t, o) for t in ("continuous", "discrete") for o in ("random", "raster")]
# What a step's time is estimated for (three more compilations a row).
ESTIMATED = ("1.1B", "3.1B", "10.5B")


@dataclasses.dataclass(frozen=True)
class Row:
  """One compilation: a cell and size on so many slices of a topology."""

  size: str
  tokens: str
  order: str
  topology: str
  slices: int
  overrides: tuple[tuple[str, Any], ...]

  @property
  def name(self) -> str:
    cell = f"{self.tokens}-{self.order}"
    return recommended.name(self.size, cell, self.topology, self.slices)

  def command(self, file: str) -> list[str]:
    """What compiles it and writes the report to `file`."""
    wanted = self.size in ESTIMATED and (self.tokens, self.order) == CELLS[0]
    return [
      sys.executable, "-m", "launch.aot_compile", "--quick",
      f"--config=configs/fluid.py:tokens={self.tokens},order={self.order},"
      f"size={self.size}",
      f"--topology={self.topology}", f"--num_slices={self.slices}",
      f"--json={file}", f"--estimate={str(wanted).lower()}", f"--config.batch={BATCH}",
      *(f"--config.{k}={v}" for k, v in self.overrides),
    ]  # fmt: skip


def rows() -> Iterator[Row]:
  """Cells of every size and recommended topology, the estimated cell first."""
  for tokens, order in CELLS:
    for size in reversed(sizes.PAPER):
      for topology, slices, overrides in RECOMMENDED[size]:
        yield Row(size, tokens, order, topology, slices, tuple(overrides.items()))


def compile_row(row: Row) -> dict[str, Any]:
  """-> the report, or {'error': the last line that was printed}."""
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "row.json"
    done = subprocess.run(row.command(str(file)), capture_output=True, text=True)
    if file.exists():
      return json.loads(file.read_text())
    said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
    return {"error": said[-1], "fits": False}


def markdown(reports: dict[str, dict]) -> str:
  """The table, in the order of `rows`; only what has been compiled."""
  lines = [
    "# Training on TPU topologies, compiled ahead of time",
    "",
    "By `python -m launch.topologies`, with libtpu's compiler and no TPU. Global batch",
    f"{BATCH}, bfloat16 activations, float32 parameters, moments and EMA. Memory and",
    "traffic of a step are the compiler's, for one device.",
    "MFU is an estimate (see launch/aot_compile.py): `compiler` is libtpu's cost model",
    "put together from unrolled layers (empty where it was negative), `roofline` the",
    "data sheets' bound. Both are estimated for one cell of the largest sizes.",
    f"{len(reports)} of {len(list(rows()))} rows are compiled; a next run goes on.",
    "",
    "| size | cell | topology | mesh | accum | remat | GiB of | traffic GiB |"
    " images/s | MFU compiler | MFU roofline |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for row in rows():
    r = reports.get(row.name)
    if not r:
      continue
    where = row.topology + (f" x {row.slices}" if row.slices > 1 else "")
    head = f"| {row.size} | {row.tokens}-{row.order} | {where} |"
    if "memory" not in r or "error" in r:
      lines.append(f"{head} does not fit: {r['error']} |" + " |" * 7)
      continue
    m = r["memory"]
    mesh = ", ".join(f"{k} {v}" for k, v in r["mesh"].items())
    traffic = sum(t["bytes"] for t in r["collectives"].values()) / GB
    e = r.get("estimate", {})
    estimate = " | ".join(
      form.format(e[k]) if k in e else ""
      for k, form in (
        ("images_per_second", "{:,.0f}"),
        ("compiler_mfu", "{:.0%}"),
        ("roofline_mfu", "{:.0%}"),
      )
    )
    lines.append(
      f"{head} {mesh} | {r['accum']} | {r['remat']} | "
      f"{m['total'] / GB:.1f} of {m['limit'] / GB:.0f} | {traffic:.1f} | {estimate} |"
    )
  return "\n".join(lines) + "\n"


def main(argv) -> None:
  """Compiles what is missing; writes both files after each row."""
  del argv
  f = flags.FLAGS
  out = pathlib.Path(f.out)
  file = out.with_suffix(".json")
  reports = json.loads(file.read_text()) if file.exists() else {}
  wanted = [r for r in rows() if re.search(f.only, r.name)]
  todo = [r for r in wanted if r.name not in reports]
  began = time.time()
  for i, row in enumerate(todo):
    reports[row.name] = compile_row(row)
    file.write_text(json.dumps(reports, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown(reports))
    left = (time.time() - began) / (i + 1) * (len(todo) - i - 1)
    verdict = "fits" if reports[row.name]["fits"] else "DOES NOT FIT"
    print(f"{i + 1}/{len(todo)} {row.name}: {verdict}, {left / 60:.0f} min left")
  out.with_suffix(".md").write_text(markdown(reports))
  bad = [r.name for r in wanted if not reports[r.name]["fits"]]
  if bad:
    raise cli.UserError(f"{len(bad)} of {len(wanted)} rows do not fit: {bad[0]}")


if __name__ == "__main__":
  flags.DEFINE_string("only", "", "Rows whose name this regular expression finds.")
  flags.DEFINE_string("out", "launch/topologies", "Files to write, without suffix.")
  cli.run(main)
