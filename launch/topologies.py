"""Programs on recommended TPU topologies, compiled: the ladder and published models.

  python -m launch.topologies [--only='10.5B.*v5p'] [--out=launch/topologies]

Compiles the train step of every cell and size at the paper's global batch of 2048; of
each published family the train step and the sampler of its largest size; and what runs
beside them, tokenizers and T5-XXL. Each row is launch.aot_compile in a process of its
own. Keeps the reports in OUT.json and writes OUT.md after each row. Rows that are there
already are not compiled again; delete a row, or the file, to do so. The exit status is
1 if a row does not fit.
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
# What a step's time is estimated for (three more compilations a row): all that the
# ladder takes where nothing is asked for, and elsewhere one cell of these sizes.
ESTIMATED = ("1.1B", "3.1B", "10.5B")

# The largest sizes of each published family -> where its train step and its sampler
# run, and what the former needs beside its recipe.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
  "mar_h": ("v5e:4x4", {"accum": 4}),
  "llamagen_3b": ("v5e:4x4", {}),
  "llamagen_t2i": ("v5e:4x4", {}),
  "maskgit": ("v5e:4x4", {}),
  "rar_xxl": ("v5e:4x4", {"accum": 4}),
  "var_d30": ("v5e:4x4", {"accum": 2}),
  "var_d36_512": ("v5p:2x2x4", {"accum": 2}),
}
# Tokenizer -> a published model that reads it, or the paper's tokens of its kind.
TOKENIZERS = {
  "sd_vae": "continuous", "kl16": "mar_b", "llamagen_vq": "llamagen_b",
  "taming_vq": "discrete", "maskgit_vq": "maskgit", "var_vq": "var_d16",
}  # fmt: skip
# Images, or prompts, that a sampler or what runs beside it takes at once.
BESIDE = 128


@dataclasses.dataclass(frozen=True)
class Row:
  """One compilation: a program on so many slices of a topology.

  Attributes:
    what: its first two columns, size and cell or the like.
    config: file and arguments; `overrides` are keys of it.
    mode: of launch.aot_compile.
    estimate: of a step's time, too.
  """

  what: tuple[str, str]
  config: str
  topology: str
  slices: int = 1
  overrides: tuple[tuple[str, Any], ...] = ()
  mode: str = "train"
  estimate: bool = False

  @property
  def where(self) -> str:
    return self.topology + (f" x {self.slices}" if self.slices > 1 else "")

  @property
  def name(self) -> str:
    return recommended.name(*self.what, self.topology, self.slices)

  def command(self, file: str) -> list[str]:
    """What compiles it and writes the report to `file`."""
    return [
      sys.executable, "-m", "launch.aot_compile", "--quick",
      f"--config={self.config}", f"--mode={self.mode}",
      f"--topology={self.topology}", f"--num_slices={self.slices}",
      f"--json={file}", f"--estimate={str(self.estimate).lower()}",
      *(f"--config.{k}={v}" for k, v in self.overrides),
    ]  # fmt: skip


def ladder() -> Iterator[Row]:
  """Cells of every size and recommended topology, the estimated cell first."""
  for tokens, order in CELLS:
    for size in reversed(sizes.PAPER):
      for topology, slices, overrides in RECOMMENDED[size]:
        yield Row(
          (size, f"{tokens}-{order}"),
          f"configs/fluid.py:tokens={tokens},order={order},size={size}",
          topology,
          slices,
          tuple((overrides | {"batch": BATCH}).items()),
          estimate=topology.startswith(f"{recommended.GENERATION}:")
          or (size in ESTIMATED and (tokens, order) == CELLS[0]),
        )


def published() -> Iterator[Row]:
  """The largest published models, then tokenizers and the paper's text encoder."""
  recipe = "configs/reproduce/imagenet.py:model="
  beside = (("sample.batch", BESIDE),)
  for model, (topology, training) in PUBLISHED.items():
    for mode, given in (("train", tuple(training.items())), ("sample", beside)):
      yield Row((model, mode), recipe + model, topology, overrides=given, mode=mode)
  for kind, reader in TOKENIZERS.items():
    given, config = beside, recipe + reader
    if reader in ("continuous", "discrete"):
      given = (("tokenizer.kind", kind), *beside)
      config = f"configs/fluid.py:tokens={reader}"
    for mode in ("encode", "decode"):
      yield Row((kind, mode), config, "v5e:4x4", overrides=given, mode=mode)
  xxl = (("text.width", 4096), *beside)
  t5 = "configs/fluid.py:text=t5"
  yield Row(("t5 xxl", "text"), t5, "v5e:4x4", overrides=xxl, mode="text")


def rows() -> list[Row]:
  return [*ladder(), *published()]


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
    "data sheets' bound. Both are estimated for all of v5p, and for one cell of the",
    "largest sizes elsewhere.",
    f"{len(reports)} of {len(rows())} rows are compiled; a next run goes on.",
    "",
    "| size | cell | topology | mesh | accum | remat | GiB of | traffic GiB |"
    " images/s | MFU compiler | MFU roofline |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for row in ladder():
    r = reports.get(row.name)
    if not r:
      continue
    head = f"| {' | '.join(row.what)} | {row.where} |"
    if "memory" not in r or "error" in r:
      lines.append(f"{head} does not fit: {r['error']} |" + " |" * 7)
      continue
    mesh, memory, traffic = _cells(r)
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
      f"{head} {mesh} | {r['accum']} | {r['remat']} | {memory} | {traffic} | "
      f"{estimate} |"
    )
  lines += [
    "",
    "## Published models, and what runs beside a net",
    "",
    "The largest sizes of each family with its authors' recipe (`configs/reproduce`),",
    f"samplers, tokenizers and text encoder at {BESIDE} images or prompts at once.",
    "",
    "| what | program | topology | mesh | batch | accum | GiB of | traffic GiB |",
    "|---|---|---|---|---|---|---|---|",
  ]
  for row in published():
    if r := reports.get(row.name):
      head = f"| {' | '.join(row.what)} | {row.where} |"
      if "memory" not in r or "error" in r:
        lines.append(f"{head} does not fit: {r['error']} |" + " |" * 4)
        continue
      mesh, memory, traffic = _cells(r)
      batch = f"{r['batch']} | {r.get('accum', '')}"
      lines.append(f"{head} {mesh} | {batch} | {memory} | {traffic} |")
  return "\n".join(lines) + "\n"


def _cells(report: dict[str, Any]) -> tuple[str, str, str]:
  """Mesh, memory and traffic of a report."""
  m = report["memory"]
  mesh = ", ".join(f"{k} {v}" for k, v in report["mesh"].items())
  traffic = sum(t["bytes"] for t in report["collectives"].values()) / GB
  return mesh, f"{m['total'] / GB:.1f} of {m['limit'] / GB:.0f}", f"{traffic:.1f}"


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
