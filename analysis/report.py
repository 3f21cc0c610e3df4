"""The report of a study: one HTML file, its figures (PNG, SVG) and its tables (CSV).

  python -m analysis.report --workdir DIR [--out DIR2]

DIR is what launch.sweep filled, one run, or a folder with runs.json. What is missing
(unfinished runs, metrics that were not evaluated) is said, not required.
"""

import argparse
import shlex
import sys
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from analysis import page
from analysis.correlate import correlate
from analysis.findings import APPEARS, OPEN, PARTLY, Finding, findings
from analysis.fit import fit
from analysis.load import COMPONENTS, TableError, load
from analysis.plots import METRICS, Plot, cells_of, draw, finished, having

RESULT = {
  "cell": "cell",
  "size": "size",
  "N": "N",
  "status": "status",
  "val/loss": "val loss",
  "geneval/overall": "GenEval",
  "kid": "KID",
  "fd": "FD",
  "sample/seconds_per_image": "s/image",
  "train_images_per_s": "train images/s",
}


def write(workdir: str | Path, out: str | Path | None = None) -> Path:
  """Writes the report of `workdir`; returns the path of its index.html."""
  workdir = Path(workdir)
  out = Path(out) if out else workdir / "report"
  runs, evals = load(workdir), load(workdir, "eval")
  plots = draw(runs, evals, workdir)
  images = [plot.save(out / "figures") for plot in plots]
  tables = {
    "results": results(runs),
    "sizes": sizes(runs),
    "fits": fits(finished(runs)),
    "correlations": correlations(finished(runs)),
  }
  for name, table in (*tables.items(), ("runs", runs), ("evals", evals)):
    (out / "tables").mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "tables" / f"{name}.csv", index=False)
  body = _body(runs, tables, list(zip(plots, images)), workdir, out)
  index = out / "index.html"
  index.write_text(page.page(_title(runs), body), encoding="utf-8")
  return index


def results(runs: pd.DataFrame) -> pd.DataFrame:
  """A row per run, the columns of RESULT that anything is known of."""
  known = [c for c in RESULT if c in runs and runs[c].notna().any()]
  table = runs[known].rename(columns=RESULT)
  names = runs["features"].dropna().unique() if "features" in runs else []
  if len(names) == 1:  # a distance without its network means nothing
    table = table.rename(columns={m: f"{m}-{names[0]}" for m in ("KID", "FD")})
  return table


def sizes(runs: pd.DataFrame) -> pd.DataFrame:
  """Parameters per component, seconds per image, training throughput."""
  columns = {
    "cell": "cell",
    "size": "size",
    "N": "trained",
    **{f"N_{c}": c.replace("_", " ") for c in COMPONENTS},
    "sample/seconds_per_image": "s/image",
    "train_images_per_s": "train images/s",
    "wall_seconds": "training s",
  }
  known = [c for c in columns if c in runs and runs[c].notna().any()]
  rows = having(runs, "N")
  return rows[known].rename(columns=columns) if "N" in known else rows


def fits(runs: pd.DataFrame) -> pd.DataFrame:
  """Every form fitted to validation loss against size and compute, per cell."""
  rows = []
  for cell in cells_of(having(runs, "val/loss")):
    for x in [c for c in ("N", "compute") if c in runs]:
      for form in ("power", "power_floor"):
        f = fit(runs[runs["cell"] == cell], form=form, x=x)
        lo, hi = f.intervals.get("a", (None, None))
        held = f.held_out
        rows.append(
          {
            "cell": cell,
            "x": x,
            "form": form,
            "runs": len(f.x),
            "a": f.params.get("a"),
            "a from": lo,
            "a to": hi,
            "E": f.params.get("E"),
            "R² (log)": f.r2,
            "AICc": f.aicc,
            "held-out error": held.relative_error if held else None,
            "reading": "; ".join([f.reading, *f.warnings]),
          }  # fmt: skip
        )
  return pd.DataFrame(rows)


def correlations(runs: pd.DataFrame) -> pd.DataFrame:
  """Pearson and Spearman between validation loss and each metric, per cell."""
  rows = []
  for metric in METRICS:
    for cell in cells_of(having(runs, "val/loss", metric)):
      c = correlate(runs[runs["cell"] == cell], x="val/loss", y=metric)
      rows.append(
        {
          "cell": cell,
          "metric": metric,
          "runs": c.n,
          "Pearson r": c.r,
          "r from": c.r_interval[0],
          "r to": c.r_interval[1],
          "Spearman": c.rho,
          "from": c.rho_interval[0],
          "to": c.rho_interval[1],
          "note": c.refused,
        }  # fmt: skip
      )
  return pd.DataFrame(rows)


def status_lines(runs: pd.DataFrame) -> list[str]:
  """How many runs finished, which did not and why, and which metrics are absent."""
  done = runs["status"] == "finished"
  lines = [f"{int(done.sum())} of {len(runs)} runs finished."]
  for _, row in runs[~done].iterrows():
    reached = f" at step {int(row['step'])}" if row.get("step", 0) > 0 else ""
    note = f": {row['note']}" if isinstance(row.get("note"), str) and row["note"] else ""  # fmt: skip  # noqa: E501
    lines.append(f"{row['run']} is {row['status']}{reached}{note}")
  absent = [m for m in ("val/loss", *METRICS) if having(runs, m).empty]
  if absent:
    lines.append(f"No run has {', '.join(absent)}: left out below.")
  return lines


def _body(runs, tables, plots: list[tuple[Plot, Path]], workdir, out) -> list[str]:
  shown = {plot.name: (plot, png) for plot, png in plots}

  def figures(*names):
    return [
      page.figure(shown[n][1], shown[n][0].title, shown[n][0].caption)
      for n in names
      if n in shown
    ]

  body = [page.section("Runs")]
  first, *rest = status_lines(runs)
  body += [page.paragraph(first)] + [page.paragraph(line, "bad") for line in rest]
  body += [page.table(tables["results"])]
  body += [page.section("What appears of the paper's findings at this scale")]
  body += [_finding(f) for f in findings(runs)]
  body += [page.section("Samples"), *figures("samples")]
  if "samples" not in shown:
    body += [page.paragraph("No run has written samples here.", "soft")]
  body += [page.section("Scaling of validation loss")]
  if len(tables["fits"]):
    body += figures("val_loss_vs_size", "val_loss_vs_compute", "val_loss_curves")
    body += [page.table(tables["fits"])]
  body += [page.section("Metrics")]
  body += figures("metrics_vs_size", "geneval_tags", "metrics_vs_loss")
  if len(tables["correlations"]):
    body += [page.table(tables["correlations"])]
  body += figures("metrics_vs_steps")
  body += [page.section("Sizes and speed"), page.table(tables["sizes"])]
  body += [page.section("How to make this again"), page.code(_commands(runs, workdir))]
  text = f"Figures as PNG, SVG and CSV: {out / 'figures'}; tables: {out / 'tables'}."
  return [*body, page.paragraph(text, "soft")]


def _finding(f: Finding) -> str:
  kind = {APPEARS: "appears", PARTLY: "part", OPEN: ""}.get(f.verdict, "absent")
  claim = page.paragraph(f"{f.claim}: {f.verdict}.")
  return (
    f'<div class="finding {kind}">{claim}{page.paragraph(f.evidence, "soft")}</div>'
  )


def _title(runs: pd.DataFrame) -> str:
  sources = list(runs["source"].dropna().unique()) if "source" in runs else []
  return f"Autoregressive image generation on {' and '.join(sources) or 'this data'}"


def _commands(runs: pd.DataFrame, workdir: Path) -> str:
  """What to type: the report, and each run on its own."""
  lines = ["# this report", f"python -m analysis.report --workdir {shlex.quote(str(workdir))}"]  # fmt: skip  # noqa: E501
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


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(prog="python -m analysis.report")
  parser.add_argument("--workdir", required=True, help="of the sweep, or one run")
  parser.add_argument("--out", help="folder to write (default: WORKDIR/report)")
  args = parser.parse_args(argv)
  index = write(args.workdir, args.out)
  runs = load(args.workdir)
  show(results(runs))
  for line in status_lines(runs):
    print(line)
  for f in findings(runs):
    print(f"{f.claim}: {f.verdict}")
  print(f"report: {index.resolve()}")


if __name__ == "__main__":
  try:
    main()
  except (TableError, FileNotFoundError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
