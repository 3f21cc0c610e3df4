"""The tables of a report, and those that are made of runs alone."""

from analysis.report.tables import TABLES, correlations, results, sizes, systems

__all__ = ["TABLES", "correlations", "results", "sizes", "systems"]
