"""`python -m analysis.report`."""

from analysis.command import run
from analysis.report.report import main

run(main)
