"""Metrics against size, training, loss and the settings of sampling."""

import pandas as pd

from analysis.curves.correlate import correlate
from analysis.report import style
from analysis.report.figures import pieces
from analysis.report.figures.loss import per_cell
from analysis.report.study import CEILING, CHANCE, KEYS, METRICS, TAGS, Study
from analysis.report.style import Plot, label, panels
from analysis.runs.rows import by_cell, having, kinds_of


def against_size(s: Study) -> Plot | None:
  """Each metric at the end of training against model size, all cells in one panel."""
  runs = s.ended
  metrics = [m for m in METRICS if len(having(runs, "N", m))]
  if not metrics:
    return None
  figure, axes = panels(1, len(metrics))
  for ax, metric in zip(axes[0], metrics):
    pieces.cells(ax, runs, "N", metric)
  style.legend_above(figure)
  columns = [f"{m}{e}" for m in metrics for e in ("", "_lo", "_hi")]
  return Plot(
    "metrics_vs_size",
    "Metrics against model size",
    "Bars: 95 % intervals where the evaluation gave one. Dashed: real images through "
    "the tokenizer, the best its tokens can say; dotted: chance (others' prompts).",
    figure,
    pieces.known(
      having(runs, "N"), *KEYS, *columns, *CHANCE.values(), *CEILING.values()
    ),
  )


def against_steps(s: Study) -> Plot | None:
  """Loss and metrics during training, a column per cell and a row per metric."""
  return _training(s, "step", "metrics_vs_steps", "steps")


def against_compute(s: Study) -> Plot | None:
  """Loss and metrics during training against compute, per cell."""
  return _training(s, "compute", "metrics_vs_compute", "compute")


def _training(s: Study, x: str, name: str, what: str) -> Plot | None:
  metrics = [m for m in ("val/loss", *METRICS) if _is_curve(having(s.evals, x, m))]
  if x == "compute" and metrics == ["val/loss"]:  # which val_loss_curves has
    return None
  return per_cell(
    s.evals[s.evals["step"] > 0] if metrics else s.evals,
    x,
    metrics,
    name,
    f"Validation loss and metrics during training against {what}",
    "A line per model size.",
    log=x == "compute",
  )


def _is_curve(table: pd.DataFrame) -> bool:
  """Whether some run has several points."""
  return bool(len(table) and table.groupby("run").size().max() > 1)


def against_loss(s: Study) -> Plot | None:
  """Each metric against validation loss, a column per token type, with r and rho."""
  runs = s.ended
  metrics = [m for m in METRICS if len(having(runs, "val/loss", m))]
  if not metrics:
    return None
  kinds = kinds_of(runs)
  figure, axes = panels(len(metrics), len(kinds))
  data = []
  for row, metric in zip(axes, metrics):
    table = having(runs, "val/loss", metric)
    for ax, kind in zip(row, kinds):
      for cell, rows in by_cell(table, "val/loss", kind):
        c = correlate(rows, x="val/loss", y=metric)
        note = f"{cell}, r = {c.r:.2f}, ρ = {c.rho:.2f}" if not c.refused else cell
        pieces.points(ax, rows, "val/loss", metric, cell, line=False, name=note)
        data.append(
          rows[["run", "cell", "size", "val/loss"]].assign(
            metric=metric, value=rows[metric], pearson_r=c.r, spearman_rho=c.rho
          )
        )
      ax.set(xlabel=pieces.loss_label(kind), ylabel=label(metric, runs))
      if ax.has_data():  # Above the panel, where it hides no point.
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0)
  return Plot(
    "metrics_vs_loss",
    "Metrics against validation loss",
    "A point per run, at the end of its training; r is Pearson's correlation over the "
    "sizes of a cell, ρ Spearman's.",
    figure,
    pd.concat(data),
  )


def tags(s: Study) -> Plot | None:
  """GenEval per tag against model size."""
  runs = s.ended
  names = [t for t in TAGS if len(having(runs, "N", f"geneval/{t}"))]
  if not names:
    return None
  columns = min(3, len(names))
  figure, axes = panels(-(-len(names) // columns), columns, height=2.5)
  for ax in axes.flat[len(names) :]:
    ax.remove()
  for ax, tag in zip(axes.flat, names):
    pieces.cells(ax, runs, "N", f"geneval/{tag}")
    ax.set(ylabel="share correct", ylim=(-0.03, 1.03), title=tag.replace("_", " "))
  style.legend_above(figure)
  return Plot(
    "geneval_tags",
    "GenEval per tag against model size",
    "Share of images in which everything asked for was found.",
    figure,
    pieces.known(having(runs, "N"), *KEYS, *(f"geneval/{t}" for t in names)),
  )


def sampling(s: Study) -> Plot | None:
  """Each metric against guidance and temperature, of runs evaluated with several."""
  return _settings(
    s.samplings,
    ["guidance", "temperature"],
    "sampling",
    "Metrics against guidance and temperature",
    "A point per call of fluid.evaluate with --override sample.guidance=... or "
    "sample.temperature=...; a line per cell and value of the other setting.",
  )


def aligner_depth(s: Study) -> Plot | None:
  """Each metric against the depth of the text aligner, where runs differ in it."""
  return _settings(
    having(s.ended, "aligner_layers"),
    ["aligner_layers"],
    "aligner_depth",
    "Metrics against the depth of the text aligner",
    "Finished runs; a line per cell.",
  )


def _settings(table, columns, name, title, caption) -> Plot | None:
  """Each metric against those of the columns that vary."""
  varied = [x for x in columns if having(table, x)[x].nunique() > 1]
  metrics = [m for m in METRICS if len(having(table, *varied, m))] if varied else []
  if not metrics:
    return None
  figure, axes = panels(len(metrics), len(varied))
  others = {"guidance": "temperature", "temperature": "guidance"}
  for row, metric in zip(axes, metrics):
    for ax, x in zip(row, varied):
      rows = having(table, x, metric)
      for cell, mine in by_cell(rows):
        other = others.get(x)
        lines = mine.groupby(other) if other in mine else [("", mine)]
        for value, line in lines:
          if line[x].nunique() > 1 or len(mine) == 1:
            said = f"{cell}, {other} {value:g}" if other in varied else cell
            pieces.points(ax, line.sort_values(x), x, metric, cell, name=said)
      ax.set(xlabel=label(x), ylabel=label(metric, table))
  style.legend_above(figure)
  return Plot(
    name, title, caption, figure, pieces.known(table, *KEYS, *varied, *metrics)
  )
