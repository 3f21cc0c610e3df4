"""Run directories and tables: what is read of them, and rows picked from it."""
