"""What a study says: figures, tables, findings, and one page of it all.

python -m analysis.report --workdir DIR [--out DIR2]
"""

from analysis.report.report import save, show, status_lines, write

__all__ = ["save", "show", "status_lines", "write"]
