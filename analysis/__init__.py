"""Scaling analysis of run directories or any table of (N, D, loss); never imports jax.

import analysis
runs = analysis.load('DIR')                       # one row per run
analysis.fit(runs[runs.cell == 'continuous-random'], x='N', y='val/loss').reading

Folders, from the ground up; each imports from those before it alone
(tests/imports_test.py):

  curves, runs   forms and their fits to points; folders and files as tables. Neither
                 knows the other: a table is all that passes between them
  planning       what to train next
  report         tables, figures, findings, and their page
  command        command lines, and on top of it the modules beside this one: what is
                 typed (`python -m analysis.fit`) and names that stay where they were
"""

# First the modules that are named like a function: when one of them is imported later,
# its name here is not bound again, and stays the function.
from analysis import fit as _fit_module  # noqa: F401
from analysis import load as _load_module  # noqa: F401
from analysis.curves.correlate import correlate
from analysis.curves.fit import fit
from analysis.runs.load import load

__all__ = ["correlate", "fit", "load"]
