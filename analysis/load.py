"""Run directories, committed results, CSV or JSONL -> tidy tables.

python -m analysis.load --workdir DIR --csv FILE [--rows eval] [--json DIR2]
"""

from analysis.command import run
from analysis.runs.load import COMPONENTS, ROWS, TableError, load, main, save_json
from analysis.runs.rows import CELLS

__all__ = ["CELLS", "COMPONENTS", "ROWS", "TableError", "load", "save_json"]
__path__: list[str] = []  # as in analysis.fit

if __name__ == "__main__":
  run(main)
