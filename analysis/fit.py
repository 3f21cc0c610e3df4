"""Fits curves to a table.

  python -m analysis.fit --csv points.csv --form power --x N --y loss
  python -m analysis.fit --csv points.csv --form chinchilla \\
    --n "Model Size" --compute "Training FLOP" --loss loss --drop-largest 5
"""

from analysis.command import fit_main, run
from analysis.curves.fit import METHODS, fit, fit_points
from analysis.curves.forms import FORMS
from analysis.curves.result import Fit, FitError

__all__ = ["FORMS", "METHODS", "Fit", "FitError", "fit", "fit_points"]
# With a path, `python -m` does not warn that the package has imported this already.
__path__: list[str] = []

if __name__ == "__main__":
  run(fit_main)
