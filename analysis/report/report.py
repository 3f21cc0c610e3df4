"""The report of a study: one HTML file, its figures (PNG, SVG) and its tables (CSV).

The folder is what launch.sweep filled, one run, or one with runs.json. What is missing
(unfinished runs, metrics that were not evaluated) is said, not required.
"""

import argparse
import shlex
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from analysis import published
from analysis.curves.clean import need
from analysis.report import page, tables
from analysis.report.findings import APPEARS, OPEN, PARTLY, Finding, findings
from analysis.report.plots import draw
from analysis.report.study import METRICS, Study
from analysis.runs.load import TableError
from analysis.runs.rows import having


def write(workdir: str | Path, out: str | Path | None = None) -> Path:
  """Writes the report of `workdir`; returns the path of its index.html."""
  study, out = _open(workdir, out)
  return save(study, findings(study), str(workdir), out)


def _open(workdir: str | Path, out: str | Path | None) -> tuple[Study, Path]:
  """The study, and where its report is written: `out`, or beside local runs."""
  if out is None and "://" in str(workdir):
    raise TableError(f"--out is needed: a report is not written to {workdir}")
  study = Study.read(workdir)
  need(study.runs, ("run", "cell", "tokens", "order", "size", "status"), str(workdir))
  return study, Path(out) if out else Path(workdir) / "report"


def save(study: Study, found: dict[str, Finding], workdir: str, out: Path) -> Path:
  """Writes the report of a study and its findings.

  Args:
    study: what to report.
    found: of `findings`.
    workdir: what the study is called in commands.
    out: folder to write.

  Returns:
    The path of its index.html.
  """
  plots = draw(study)
  images = {plot.name: (plot, plot.save(out / "figures")) for plot in plots}
  shown = {name: make(study) for name, make in tables.TABLES.items()}
  raw = {"runs": study.runs, "evals": study.evals, "samplings": study.samplings}
  (out / "tables").mkdir(parents=True, exist_ok=True)
  for name, table in (shown | raw).items():
    if len(table):
      table.to_csv(out / "tables" / f"{name}.csv", index=False)
  body = _body(study.runs, shown, images, found, workdir)
  index = out / "index.html"
  index.write_text(page.page(_title(study.runs), body), encoding="utf-8")
  return index


def status_lines(runs: pd.DataFrame) -> list[str]:
  """How many runs finished, which did not and why, and which metrics are absent."""
  done = runs["status"] == "finished"
  lines = [f"{int(done.sum())} of {len(runs)} runs finished."]
  for _, row in runs[~done].iterrows():
    reached = f" at step {int(row['step'])}" if row.get("step", 0) > 0 else ""
    note = f": {row['note']}" if isinstance(row.get("note"), str) and row["note"] else ""  # fmt: skip  # noqa: E501
    lines.append(f"{row['run']} is {row['status']}{reached}{note}")
  absent = [m for m in ("val/loss", *METRICS) if having(runs, m).empty]
  if len(having(runs, "kid")):  # what small studies report instead of FID
    absent = [m for m in absent if m != "fid"]
  if absent:
    lines.append(f"No run has {', '.join(absent)}: left out below.")
  return lines


_MISSING = (
  "Of the largest run of each cell, by fluid.evaluate. 'Weights missing': the file of "
  "the network is not there; the record in eval/ says where its authors publish it."
)


_LOST = (
  "Goodput: share of wall time in training steps that were kept, over all starts of a "
  "run. The other columns are the shares of what was lost, by cause: docs/analysis.md."
)


def _body(runs, shown, images, found: dict[str, Finding], workdir: str) -> list[str]:
  def figures(*names):
    for plot, png in (images[n] for n in names if n in images):
      yield page.figure(png, plot.title, plot.caption, _again(plot.name, workdir))

  body = [page.section("Runs")]
  first, *rest = status_lines(runs)
  body += [page.paragraph(first)] + [page.paragraph(line, "bad") for line in rest]
  body += [page.table(shown["results"])]
  body += [page.section("What appears of the paper's findings at this scale")]
  body += [_finding(f) for f in found.values()]
  body += [page.section("Samples"), *figures("samples")]
  if "samples" not in images:
    body += [page.paragraph("No run has written samples here.", "soft")]
  body += [page.section("Scaling of validation loss")]
  if len(shown["fits"]):
    body += figures("val_loss_vs_size", "val_loss_vs_compute", "val_loss_curves")
    body += _fits(shown["fits"]) + list(figures("frontier"))
  body += figures("nats_vs_size", "loss_known")
  body += [page.section("Metrics")]
  body += figures("metrics_vs_size", "geneval_tags", "metrics_vs_loss")
  if len(shown["metrics"]):
    body += [page.table(shown["metrics"])]
    body += [page.paragraph(_MISSING, "soft")]
  if len(shown["correlations"]):
    body += [page.table(shown["correlations"])]
    body += [page.paragraph(_printed(), "soft")]
  body += figures("metrics_vs_steps", "metrics_vs_compute", "sampling", "aligner_depth")
  body += [page.section("Beside published numbers"), *figures("published")]
  body += [page.table(shown["trends"]), page.table(shown["systems"])]
  body += [page.section("Sizes and speed"), page.table(shown["sizes"])]
  body += figures("seconds_per_image")
  if len(shown["goodput"]):
    body += [page.table(shown["goodput"])]
    body += [page.paragraph(_LOST, "soft")]
  body += [page.section("How to make this again"), page.code(_commands(runs, workdir))]
  text = "Beside this page: figures/ (PNG, SVG and the CSV behind each) and tables/."
  return [*body, page.paragraph(text, "soft")]


def _fits(table: pd.DataFrame) -> list[str]:
  """The fits as a table, and in a line each those that were refused."""
  refused = table["reading"].str.startswith("no fit: ")
  lines = [
    f"{row['cell']}, {row['form']} in {row['x']}: {row['reading']}"
    for _, row in table[refused].iterrows()
  ]
  fitted = table[~refused].dropna(axis=1, how="all")
  body = [page.table(fitted)] if len(fitted) else []
  if lines:
    body += [page.folded(f"{len(lines)} fits that these runs cannot carry", lines)]
  return body


def _printed() -> str:
  r = published.PEARSON
  return (
    "Printed in the paper, over Fluid's sizes: Pearson r of validation loss with FID "
    f"{r['fid']:.3f}, with GenEval {r['geneval/overall']:.3f}."
  )


def _again(name: str, workdir: str) -> str:
  return f"python -m analysis.plots --workdir {shlex.quote(workdir)} --only {name}"


def _finding(f: Finding) -> str:
  kind = {APPEARS: "appears", PARTLY: "part", OPEN: ""}.get(f.verdict, "absent")
  body = page.paragraph(f"{f.claim}: {f.verdict}.")
  body += page.paragraph("; ".join(f.evidence), "soft")
  body += page.folded("How it is judged", [f.test])
  if f.needs:
    body += page.folded("What it would take", list(f.needs))
  return f'<div class="finding {kind}">{body}</div>'


def _title(runs: pd.DataFrame) -> str:
  sources = list(runs["source"].dropna().unique()) if "source" in runs else []
  return f"Autoregressive image generation on {' and '.join(sources) or 'this data'}"


def _commands(runs: pd.DataFrame, workdir: str) -> str:
  """What to type: the report, and each run on its own."""
  lines = ["# this report", f"python -m analysis.report --workdir {shlex.quote(workdir)}"]  # fmt: skip  # noqa: E501
  commands = runs["command"] if "command" in runs else pd.Series(dtype=str)
  known = [c for c in commands.dropna() if c]
  if known:
    lines += ["# the runs (launch.sweep issues these, tokenizers and caches first)"]
  return "\n".join([*lines, *known])


def show(table: pd.DataFrame) -> None:
  """Prints a table to the terminal; never cut off where there is none."""
  console = Console()
  if not console.is_terminal:
    console = Console(width=140)
  view = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
  for column in table:
    texts = table[column].map(lambda v: isinstance(v, str)).any()
    view.add_column(column, justify="left" if texts else "right", overflow="fold")
  for row in table.itertuples(index=False):
    view.add_row(*(v if isinstance(v, str) else page.number(v) for v in row))
  console.print(view)


def main() -> None:
  """Entry of `python -m analysis.report`."""
  parser = argparse.ArgumentParser(prog="python -m analysis.report")
  parser.add_argument("--workdir", required=True, help="of the sweep, or one run")
  parser.add_argument("--out", help="folder to write (default: WORKDIR/report)")
  args = parser.parse_args()
  study, out = _open(args.workdir, args.out)
  found = findings(study)
  index = save(study, found, args.workdir, out)
  show(tables.results(study.runs))
  for line in status_lines(study.runs):
    print(line)
  for f in found.values():
    print(f"{f.claim}: {f.verdict}")
  print(f"report: {index.resolve()}")
