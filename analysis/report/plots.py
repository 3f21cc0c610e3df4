"""Draws the figures of a study, those of report.figures."""

import argparse
from pathlib import Path

import matplotlib

from analysis.curves.clean import need
from analysis.report import style
from analysis.report.figures import FIGURES, Study
from analysis.report.style import Plot


def draw(study: Study, names=tuple(FIGURES)) -> list[Plot]:
  """The figures that the study has numbers for."""
  with matplotlib.rc_context(style.RC):
    plots = [FIGURES[name](study) for name in names]
  return [p for p in plots if p is not None]


def main() -> None:
  """Entry of `python -m analysis.plots`."""
  parser = argparse.ArgumentParser(prog="python -m analysis.plots")
  parser.add_argument("--workdir", required=True, help="sweep, run, or its results")
  parser.add_argument("--out", default="figures", help="folder to write")
  parser.add_argument("--only", action="append", choices=list(FIGURES))
  args = parser.parse_args()
  study = Study.read(args.workdir)
  need(study.runs, ("run", "cell", "size"), args.workdir)
  plots = draw(study, args.only or tuple(FIGURES))
  for plot in plots:
    print(plot.save(Path(args.out)))
  missing = set(args.only or ()) - {p.name for p in plots}
  if missing:
    raise ValueError(f"{args.workdir} has no numbers for {', '.join(sorted(missing))}")
