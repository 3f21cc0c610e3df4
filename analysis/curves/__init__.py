"""Curves through points: forms, their fits, intervals, and correlations; no folders."""
