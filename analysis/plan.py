"""What to train with a budget: `python -m analysis.plan --csv FILE --budget 1e21`."""

from analysis.command import plan_main, run
from analysis.planning.plan import Guess, Optimum, Planner, grid, score, write_sweep

__all__ = ["Guess", "Optimum", "Planner", "grid", "score", "write_sweep"]

if __name__ == "__main__":
  run(plan_main)
