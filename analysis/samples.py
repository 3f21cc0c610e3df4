"""Sample grids of run directories."""

from analysis.runs.samples import Grid, cut, read

__all__ = ["Grid", "cut", "read"]
