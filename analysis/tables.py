"""The tables of a report."""

from analysis.report.tables import TABLES, correlations, fits, results, sizes, systems

__all__ = ["TABLES", "correlations", "fits", "results", "sizes", "systems"]
