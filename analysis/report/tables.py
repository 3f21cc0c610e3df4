"""The tables of a report: a new one is a function, and an entry of TABLES."""

from collections.abc import Callable

import pandas as pd

from analysis import published
from analysis.curves.correlate import Correlation, correlate
from analysis.curves.result import Fit
from analysis.report.figures.published import FITS
from analysis.report.study import METRICS, PAPER, Study
from analysis.runs.rows import by_cell, cells_of, having
from analysis.runs.rundir import COMPONENTS

RESULT = {
  "cell": "cell",
  "size": "size",
  "N": "N",
  "status": "status",
  "val/loss": "val loss",
  "val/nats": "nats/image",
  "val/density_nats": "density nats/image",
  "geneval/overall": "GenEval",
  "fid": "FID",
  "kid": "KID",
  "fd": "FD",
  "sample/seconds_per_image": "s/image",
  "train_images_per_s": "train images/s",
}
# Form and its x (None: the form's own two).
LOSS_FITS = (
  ("power", "N"),
  ("power_floor", "N"),
  ("power", "compute"),
  ("power_floor", "compute"),
  ("chinchilla", None),
  ("isoflop", None),
)


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


def goodput(runs: pd.DataFrame) -> pd.DataFrame:
  """Share of wall time in steps that were kept, and of what was lost, by cause."""
  rows = having(runs, "goodput")
  lost = [c for c in rows if c.startswith("lost/") and (rows[c] >= 5e-4).any()]
  columns = {"run": "run", "goodput": "goodput"}
  columns |= {c: c.removeprefix("lost/") for c in lost}
  return rows[list(columns)].rename(columns=columns) if len(rows) else rows


def fits(s: Study) -> pd.DataFrame:
  """Validation loss against size and compute, and against both, per cell."""
  rows = []
  for cell in cells_of(having(s.ended, "val/loss")):
    for form, x in LOSS_FITS:
      if not {x or "D", "N"} <= set(s.ended):
        continue
      f = s.fit(cell, form=form, x=x)
      row = {"cell": cell, "form": form, "x": ", ".join(f.x_names), "points": len(f.y)}
      row["a"] = f.params.get("a")
      row["a from"], row["a to"] = f.intervals.get("a", (None, None))
      row |= {"E": f.params.get("E"), "R² (log)": f.r2, "AICc": f.aicc}
      row["held-out error"] = f.held_out.error if f.held_out else None
      rows.append(row | {"reading": _said(f)})
  return pd.DataFrame(rows)


def trends(s: Study) -> pd.DataFrame:
  """Quality against size, published beside ours: the same forms, and Pearson's r."""
  groups = [(PAPER, metric, metric) for metric in FITS]
  for cell, mine in by_cell(having(s.ended, "N")):
    for metric, (_, _, ours) in FITS.items():
      groups += [(cell, metric, m) for m in ours if len(having(mine, m))][:1]
  rows = []
  for who, metric, column in groups:
    form, x, _ = FITS[metric]
    f = s.fit(who, form=form, x=x, y=column)
    c = correlate(s.of(who), x="log10 N", y=column)
    row = {"who": who, "metric": column, "form": f"{form} in {x}", "points": len(f.y)}
    row |= _pearson(c, "Pearson r with log N")
    rows.append(row | {"Spearman": c.rho, "reading": _said(f)})
  return pd.DataFrame(rows)


def systems(runs: pd.DataFrame) -> pd.DataFrame:
  """Table 1: published rows, and the largest finished run of each of our cells."""
  table = published.table("fluid_table1")
  columns = {"run": "model", "size": "size", "N": "N", "fid_30k": "FID-30K",
             "geneval/overall": "GenEval", "seconds_per_image": "s/image"}  # fmt: skip
  rows = [table[list(columns)].rename(columns=columns).assign(where="published")]
  for cell, mine in by_cell(having(runs, "N")):
    mine = mine.nlargest(1, "N")
    ours = {"size": "size", "N": "N", "fid": "FID-30K", "geneval/overall": "GenEval",
            "kid": "KID", "sample/seconds_per_image": "s/image"}  # fmt: skip
    known = [c for c in ours if c in mine and mine[c].notna().any()]
    what = f"ours, {mine['source'].iloc[0]}" if "source" in mine else "ours"
    rows.append(mine[known].rename(columns=ours).assign(model=cell, where=what))
  return pd.concat(rows, ignore_index=True).dropna(axis=1, how="all")


def correlations(runs: pd.DataFrame) -> pd.DataFrame:
  """Pearson and Spearman between validation loss and each metric, per cell."""
  rows = []
  for metric in METRICS:
    for cell, mine in by_cell(having(runs, "val/loss", metric)):
      c = correlate(mine, x="val/loss", y=metric)
      row = {"cell": cell, "metric": metric, "runs": c.n} | _pearson(c, "Pearson r")
      row |= dict(zip(("Spearman", "from", "to"), (c.rho, *c.rho_interval)))
      rows.append(row | {"note": c.refused})
  return pd.DataFrame(rows)


def metrics(s: Study) -> pd.DataFrame:
  """Every metric of images in fluid.evaluate's records, of each cell's largest run."""
  table = s.metrics
  if "of" in table:  # Losses are of other units in each cell.
    table = table[~table["of"].isin(("loss", "likelihood"))]
  if table.empty:
    return table
  last = table.sort_values("N").groupby("cell")["run"].last()
  rows: dict[tuple, dict] = {}
  for _, r in table[table["run"].isin(last)].iterrows():
    network = r.get("features")
    key = (r["metric"], network if isinstance(network, str) else "")
    if isinstance(r.get("missing"), str):
      missing = r["missing"].startswith("network ")
      said = "weights missing" if missing else "not measured"
    elif pd.isna(r["value"]):
      said = "none"
    else:
      ends = [r.get("lo"), r.get("hi")]
      known = not any(e is None or pd.isna(e) for e in ends)
      said = f"{r['value']:.4g}" + (f" [{ends[0]:.3g}, {ends[1]:.3g}]" if known else "")
    of = {"images": r.get("images")} if r.get("of") != "reconstruction" else {}
    row = rows.setdefault(key, {"metric": key[0], "features": key[1]} | of)
    row[f"{r['cell']}, {r['size']}"] = said
  return pd.DataFrame(rows.values())


def _pearson(c: Correlation, name: str) -> dict[str, float]:
  return dict(zip((name, "r from", "r to"), (c.r, *c.r_interval)))


def _said(f: Fit) -> str:
  """All that a fit has to say, in one cell of a table."""
  held = [f.held_out.reading] if f.held_out else []
  return "; ".join([f.reading, *held, *f.warnings])


TABLES: dict[str, Callable[[Study], pd.DataFrame]] = {
  "results": lambda study: results(study.runs),
  "sizes": lambda study: sizes(study.runs),
  "goodput": lambda study: goodput(study.runs),
  "fits": fits,
  "trends": trends,
  "correlations": lambda study: correlations(study.ended),
  "systems": lambda study: systems(study.ended),
  "metrics": metrics,
}
