"""Draws a study: `python -m analysis.plots --workdir DIR [--only NAME]`."""

from analysis.command import run
from analysis.report.plots import draw, main

__all__ = ["draw"]

if __name__ == "__main__":
  run(main)
