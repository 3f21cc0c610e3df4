"""Scaling analysis of run directories or any table of (N, D, loss); never imports jax.

import analysis
runs = analysis.load('DIR')                       # one row per run
analysis.fit(runs[runs.cell == 'continuous-random'], x='N', y='val/loss').reading
"""

import sys

# `python -m analysis.load` loads the module itself, as __main__; loading it here too
# would run it twice.
if sys.argv[:1] != ["-m"]:
  from analysis.correlate import correlate
  from analysis.fit import fit
  from analysis.load import load

  __all__ = ["correlate", "fit", "load"]
