"""The figures of a study, drawn from the tables of analysis.load.

`draw(runs, evals, workdir)` gives those for which there are numbers. Losses of the
diffusion head and of the categorical head are different quantities: never one axis.
"""

import textwrap
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from analysis import samples, style
from analysis.correlate import correlate
from analysis.fit import fit
from analysis.load import CELLS
from analysis.style import Plot, cell_style, label, panels

METRICS = ("geneval/overall", "kid", "fd")
# Columns to read a metric by: what chance scores, what the tokenizer alone scores.
CHANCE = {"geneval/overall": "geneval/chance"}
CEILING = {"geneval/overall": "geneval/tokenizer", "kid": "kid_tokenizer"}
TAGS = (
  "single_object",
  "two_object",
  "counting",
  "colors",
  "position",
  "color_attr",
)
KEYS = ["run", "cell", "size", "status", "step", "N", "compute"]
MAX_PROMPTS = 8


def draw(runs: pd.DataFrame, evals: pd.DataFrame, workdir: Path) -> list[Plot]:
  """All figures that the tables have numbers for.

  A run that has not finished has its place in curves over training and in the samples,
  not among the results.
  """
  ended = finished(runs)
  with matplotlib.rc_context(style.RC):
    plots = [
      loss_against(ended, "N", "val_loss_vs_size"),
      loss_against(ended, "compute", "val_loss_vs_compute"),
      loss_curves(evals),
      metrics_vs_size(ended),
      metrics_vs_steps(evals),
      metrics_vs_loss(ended),
      tags_vs_size(ended),
      sample_sheet(runs, workdir),
    ]
  return [p for p in plots if p is not None]


def cells_of(table: pd.DataFrame) -> list[str]:
  """The cells of a table, those of the grid first and in its order."""
  present = list(table["cell"].dropna().unique()) if "cell" in table else []
  known = [c for c in CELLS if c in present]
  return known + sorted(c for c in present if c and c not in CELLS)


def having(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
  """The rows with a finite number in every column (none if a column is absent)."""
  if any(c not in table for c in columns):
    return table.iloc[:0].reindex(columns=[*dict.fromkeys([*table, *columns])])
  values = table[list(columns)].apply(pd.to_numeric, errors="coerce")
  return table[np.isfinite(values.to_numpy(float)).all(1)]


def finished(runs: pd.DataFrame) -> pd.DataFrame:
  """The finished runs (all, where the table does not say)."""
  return runs[runs["status"] == "finished"] if "status" in runs else runs


def loss_against(runs: pd.DataFrame, x: str, name: str) -> Plot | None:
  """Validation loss at the end of training against size or compute, with fits."""
  table = having(runs, x, "val/loss")
  if table.empty:
    return None
  figure, axes, kinds = _panel_per_tokens(table)
  notes, data = [], []
  for ax, kind in zip(axes, kinds):
    for cell in [c for c in cells_of(table) if c.startswith(kind)]:
      rows = table[table["cell"] == cell].sort_values(x)
      _points(ax, rows, x, "val/loss", cell, line=False)
      result = fit(rows, x=x)
      rows = rows[[c for c in [*KEYS, "val/loss", "val/loss_sem"] if c in rows]]
      if result.refused:
        notes.append(f"{cell}: no power law ({result.refused})")
        ax.plot(rows[x], rows["val/loss"], ":", color=cell_style(cell)["color"])
      else:
        grid = np.geomspace(rows[x].min(), rows[x].max() * 1.2, 100)
        ax.plot(grid, result.predict(grid), color=cell_style(cell)["color"])
        ax.fill_between(
          grid, *result.band(grid), color=cell_style(cell)["color"], alpha=0.15, lw=0
        )
        notes.append(f"{cell}: {result.reading}, R² (log) {result.r2:.3f}")
        rows = rows.assign(fitted=result.predict(rows[x]))
      data.append(rows)
    _log_axes(ax, y=True)
    ax.set(xlabel=label(x), ylabel=f"validation loss ({style.UNITS.get(kind, '')})")
    ax.set_title(f"{kind} tokens")
    ax.legend()
  what = "model size" if x == "N" else "training compute"
  return Plot(
    name,
    f"Validation loss against {what}",
    "Lines: power law fitted per cell, with its 95 % band. " + "; ".join(notes) + ".",
    figure,
    pd.concat(data),
  )


def loss_curves(evals: pd.DataFrame) -> Plot | None:
  """Validation loss during training against compute, a panel per cell."""
  table = having(evals, "compute", "val/loss")
  table = table[table["compute"] > 0] if len(table) else table
  return _per_cell_curves(
    table,
    "compute",
    ["val/loss"],
    "val_loss_curves",
    "Validation loss during training against compute",
    "A line per model size. Compute is 3 x forward FLOPs x images seen.",
    log=True,
  )


def metrics_vs_steps(evals: pd.DataFrame) -> Plot | None:
  """Loss and metrics during training, a column per cell and a row per metric."""
  metrics = [m for m in ("val/loss", *METRICS) if len(having(evals, m))]
  table = evals[evals["step"] > 0] if metrics else evals
  return _per_cell_curves(
    table,
    "step",
    metrics,
    "metrics_vs_steps",
    "Validation loss and metrics during training",
    "A line per model size.",
    log=False,
  )


def metrics_vs_size(runs: pd.DataFrame) -> Plot | None:
  """Each metric at the end of training against model size, all cells in one panel."""
  metrics = [m for m in METRICS if len(having(runs, "N", m))]
  if not metrics:
    return None
  figure, axes = panels(1, len(metrics))
  for ax, metric in zip(axes[0], metrics):
    table = having(runs, "N", metric)
    for cell in cells_of(table):
      _points(ax, table[table["cell"] == cell].sort_values("N"), "N", metric, cell)
    _marks(ax, table, metric)
    _log_axes(ax)
    ax.set(xlabel=label("N"), ylabel=label(metric, runs))
  style.legend_above(figure)
  columns = [f"{m}{s}" for m in metrics for s in ("", "_lo", "_hi")]
  columns += [*CHANCE.values(), *CEILING.values()]
  return Plot(
    "metrics_vs_size",
    "Metrics against model size",
    "Bars: 95 % intervals where the evaluation gave one. Dashed: real images through "
    "the tokenizer, the best its tokens can say; dotted: chance (others' prompts).",
    figure,
    having(runs, "N")[[c for c in [*KEYS, *columns] if c in runs]],
  )


def metrics_vs_loss(runs: pd.DataFrame) -> Plot | None:
  """Each metric against validation loss, a column per token type, with Pearson r."""
  metrics = [m for m in METRICS if len(having(runs, "val/loss", m))]
  if not metrics:
    return None
  kinds = _kinds(runs)
  figure, axes = panels(len(metrics), len(kinds))
  data = []
  for row, metric in zip(axes, metrics):
    table = having(runs, "val/loss", metric)
    for ax, kind in zip(row, kinds):
      for cell in [c for c in cells_of(table) if c.startswith(kind)]:
        rows = table[table["cell"] == cell].sort_values("val/loss")
        c = correlate(rows, x="val/loss", y=metric)
        note = f"{cell}, r = {c.r:.2f}" if not c.refused else cell
        _points(ax, rows, "val/loss", metric, cell, line=False, name=note)
        data.append(
          rows[["run", "cell", "size", "val/loss"]].assign(
            metric=metric, value=rows[metric], pearson_r=c.r, spearman_rho=c.rho
          )
        )
      ax.set(
        xlabel=f"validation loss ({style.UNITS.get(kind, '')})",
        ylabel=label(metric, runs),
      )
      if ax.has_data():
        ax.legend()
  return Plot(
    "metrics_vs_loss",
    "Metrics against validation loss",
    "A point per run, at the end of its training; r is Pearson's correlation over the "
    "sizes of a cell.",
    figure,
    pd.concat(data),
  )


def tags_vs_size(runs: pd.DataFrame) -> Plot | None:
  """GenEval per tag against model size."""
  tags = [t for t in TAGS if len(having(runs, "N", f"geneval/{t}"))]
  if not tags:
    return None
  columns = min(3, len(tags))
  figure, axes = panels(-(-len(tags) // columns), columns, height=2.5)
  for ax in axes.flat[len(tags) :]:
    ax.remove()
  for ax, tag in zip(axes.flat, tags):
    table = having(runs, "N", f"geneval/{tag}")
    for cell in cells_of(table):
      rows = table[table["cell"] == cell].sort_values("N")
      _points(ax, rows, "N", f"geneval/{tag}", cell)
    _log_axes(ax)
    ax.set(xlabel=label("N"), ylabel="share correct", ylim=(-0.03, 1.03))
    ax.set_title(tag.replace("_", " "))
  style.legend_above(figure)
  data = having(runs, "N")
  return Plot(
    "geneval_tags",
    "GenEval per tag against model size",
    "Share of images in which everything asked for was found.",
    figure,
    data[[c for c in [*KEYS, *(f"geneval/{t}" for t in tags)] if c in data]],
  )


def sample_sheet(runs: pd.DataFrame, workdir: Path) -> Plot | None:
  """The largest run of each cell with samples, side by side for the same prompts."""
  columns = []
  for cell in cells_of(runs):
    rows = runs[runs["cell"] == cell]
    rows = rows.sort_values("N", ascending=False) if "N" in rows else rows
    for _, row in rows.iterrows():
      folder = workdir / "runs" / row["run"]
      grid = samples.read(folder if folder.is_dir() else workdir)
      if grid:
        columns.append((row, grid))
        break
  if not columns:
    return None
  prompts = list(columns[0][1].tiles)
  shared = [p for p in prompts if all(p in g.tiles for _, g in columns)] or prompts
  shared = shared[:MAX_PROMPTS]
  figure, axes = panels(len(shared), len(columns) + 1, width=1.8, height=1.2)
  for i, prompt in enumerate(shared):
    for ax in axes[i]:
      ax.set_axis_off()
    words = textwrap.fill(prompt, 22)
    axes[i][0].text(1, 0.5, words, ha="right", va="center", fontsize=8)
    for ax, (row, grid) in zip(axes[i][1:], columns):
      tiles = grid.tiles.get(prompt, [])[:2]
      if tiles:
        gap = np.full((tiles[0].shape[0], 2, 3), 255, np.uint8)
        strip = [piece for tile in tiles for piece in (gap, tile)][1:]
        ax.imshow(np.concatenate(strip, 1), interpolation="nearest")
      if i == 0:
        ax.set_title(f"{row['cell']}\n{row['size']}, step {grid.step}")
  data = [{"run": r["run"], "step": g.step, "prompt": p} for r, g in columns for p in shared]  # fmt: skip  # noqa: E501
  return Plot(
    "samples",
    "Samples for the same prompts",
    "The largest run of each cell that has samples.",
    figure,
    pd.DataFrame(data),
  )


def _per_cell_curves(table, x, metrics, name, title, caption, *, log) -> Plot | None:
  cells = cells_of(table) if len(table) else []
  if not cells or not metrics:
    return None
  figure, axes = panels(len(metrics), len(cells), width=3.0, height=2.5)
  sizes = table.groupby("size")["N"].max().sort_values().index if "N" in table else []
  shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(len(sizes), 1)))
  colours = dict(zip(sizes, shades))
  for i, metric in enumerate(metrics):
    for ax, cell in zip(axes[i], cells):
      rows = having(table[table["cell"] == cell], x, metric)
      for size in [s for s in sizes if s in set(rows["size"])]:
        curve = rows[rows["size"] == size].sort_values(x)
        ax.plot(curve[x], curve[metric], ".-", color=colours[size], label=size)
      if log:
        _log_axes(ax, y=True)
      ax.set(xlabel=label(x), ylabel=label(metric, table))
      if i == 0:
        ax.set_title(cell)
  style.legend_above(figure, "size")
  columns = [c for c in [*KEYS, "time", *metrics] if c in table]
  return Plot(name, title, caption, figure, table[columns])


def _points(ax, rows, x, y, cell, *, line: bool = True, name: str | None = None):
  """Points of one cell with error bars from NAME_lo and NAME_hi or NAME_sem."""
  error = None
  if f"{y}_lo" in rows and f"{y}_hi" in rows:
    error = np.stack([rows[y] - rows[f"{y}_lo"], rows[f"{y}_hi"] - rows[y]])
  elif f"{y}_sem" in rows:
    error = 1.96 * np.stack([rows[f"{y}_sem"]] * 2)
  if error is not None:
    error = np.nan_to_num(np.clip(error.astype(float), 0, None))
  style_ = cell_style(cell) | {"linestyle": "-" if line else "none"}
  ax.errorbar(rows[x], rows[y], error, label=name or cell, capsize=2, **style_)


def _marks(ax, table, metric):
  """Lines at what chance and the tokenizers score."""
  if len(rows := having(table, CHANCE.get(metric, ""))):
    ax.axhline(rows[CHANCE[metric]].mean(), color=style.OTHER_COLOUR, linestyle=":")
  if len(rows := having(table, CEILING.get(metric, ""))):
    for cell, ceiling in rows.groupby("cell")[CEILING[metric]].mean().items():
      if cell.endswith("random"):  # Both orders have the same tokenizer.
        ax.axhline(ceiling, color=style.cell_style(cell)["color"], linestyle="--", lw=1)


def _kinds(table: pd.DataFrame) -> list[str]:
  return list(dict.fromkeys(c.split("-")[0] for c in cells_of(table)))


def _panel_per_tokens(table):
  kinds = _kinds(table)
  figure, axes = panels(1, len(kinds), width=4.2, height=3.2)
  return figure, axes[0], kinds


def _log_axes(ax, *, y: bool = False):
  ax.set_xscale("log")
  # Sizes span about a decade, in which powers of ten would label one point.
  low, high = ax.get_xlim()
  subs = (1, 2, 5) if high < 200 * low else (1,)
  ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
  ax.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
  ax.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
  if y:
    # Losses span less than a decade: plain numbers read better than powers of ten.
    ax.set_yscale("log")
    for which in ("set_major_formatter", "set_minor_formatter"):
      getattr(ax.yaxis, which)(matplotlib.ticker.StrMethodFormatter("{x:.3g}"))
    ax.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(2, 3, 4, 5, 7)))
