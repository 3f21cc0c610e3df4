"""Which findings appear, and what is open.

python -m analysis.findings --workdir DIR [--workdir DIR2] --out docs/findings.md
"""

from analysis.command import run
from analysis.report.findings import FINDINGS, Finding, findings
from analysis.report.findings.markdown import main, page

__all__ = ["FINDINGS", "Finding", "findings", "page"]

if __name__ == "__main__":
  run(main)
