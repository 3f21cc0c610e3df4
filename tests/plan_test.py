"""analysis.planning: from a fit to a sweep, and to its score."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis import coverage
from analysis.fit import fit_points
from analysis.plan import Guess, Planner, grid, score, write_sweep
from analysis.planning.shapes import Ladder
from launch.plan import plan

ROOT = Path(__file__).parents[1]
TOY = ROOT / "analysis/results/toy_study"
LAW = coverage.CHINCHILLA
A = LAW["beta"] / (LAW["alpha"] + LAW["beta"])
G = (LAW["alpha"] * LAW["A"] / LAW["beta"] / LAW["B"]) ** (
  1 / (LAW["alpha"] + LAW["beta"])
)


@pytest.fixture(scope="module")
def surface():
  study = coverage.PLANTS["chinchilla"].study(np.random.default_rng(0))
  return fit_points(**study, form="chinchilla", draws=100)


def test_the_optimum_of_a_surface_is_the_planted_one(surface):
  best = Planner(surface).optimum(1e21)
  n = G * (1e21 / 6) ** A
  d = 1e21 / 6 / n
  truth = n, d, coverage.chinchilla(n, d, **LAW)
  for (value, lo, hi), true in zip((best.N, best.D, best.loss), truth):
    assert lo < true < hi and lo < value < hi
  assert best.N[0] * best.D[0] * 6 == pytest.approx(1e21)
  # No other split of the budget has a lower loss.
  others = best.N[0] * np.geomspace(0.5, 2, 21)
  losses = surface.predict(others, 1e21 / 6 / others)
  assert losses.argmin() == 10 and losses.min() == pytest.approx(best.loss[0])


def test_parabolas_and_surface_plan_alike(surface):
  x = coverage.isoflop_grid(np.geomspace(1e18, 1e21, 6))
  y = coverage.chinchilla(x[0], x[1] / 6 / x[0], **LAW)
  two = Planner(fit_points(x, y, form="isoflop")).optimum(1e22)
  assert two.N[0] == pytest.approx(G * (1e22 / 6) ** A, rel=0.01)
  d = 1e22 / 6 / two.N[0]
  assert two.loss[0] == pytest.approx(coverage.chinchilla(two.N[0], d, **LAW), rel=2e-3)


@pytest.mark.parametrize("cell", ["continuous-random", "discrete-raster"])
def test_a_shape_left_out_of_the_ladder_is_counted_within_some_per_cent(cell):
  runs = analysis.load(TOY)
  runs = runs[runs["cell"] == cell]
  for size in ("s", "m", "l"):
    left = runs[runs["size"] == size].iloc[0]
    ladder = Ladder(runs[runs["size"] != size])
    near = ladder.nearest(left.N)
    got = ladder.priced(left.layers, left.width, left.heads, near)
    assert got.N == pytest.approx(left.N, rel=0.02)
    assert got.flops_per_image == pytest.approx(left.flops_per_image, rel=0.06)
    chosen = Ladder(runs).shape(left.N)
    assert (chosen.layers, chosen.width) == (left.layers, left.width)
    assert chosen.width % chosen.heads == 0


def test_a_planned_sweep_can_be_launched(tmp_path):
  runs = analysis.load(TOY)
  ladder = Ladder(runs[runs["cell"] == "discrete-raster"])

  table = grid(Guess(4e5, 1e12), ladder, [1e12, 4e12], sizes=3, spacing=1.5)
  assert len(table) == 6
  np.testing.assert_allclose(table["compute"], table["budget"], rtol=0.02)
  # Centred: as much below as above.
  sizes = table["N"].to_numpy()[:3]
  assert table["N"].iloc[4] / sizes[1] == pytest.approx(2, rel=0.1)  # (4x)^0.5
  assert sizes[0] * sizes[2] == pytest.approx(4e5**2, rel=0.15)
  file = tmp_path / "next.py"
  write_sweep(table, "configs/toy.py", file, "python -m analysis.plan", {"seed": 3})
  smaller = grid(Guess(4e5, 1e12), ladder, [1e12], sizes=3, spacing=1.5, batch=32)
  np.testing.assert_allclose(smaller["compute"], 1e12, rtol=0.02)
  np.testing.assert_allclose(smaller["steps"], 4 * table["steps"][:3], rtol=0.01)
  stages = [s for s in plan(file, tmp_path / "w") if s.kind == "run"]
  assert [s.name for s in stages] == list(table["run"])
  for stage, row in zip(stages, table.itertuples()):
    model = stage.run.model.trunk
    assert (model.layers, model.width, model.heads) == (
      row.layers,
      row.width,
      row.heads,
    )
    assert stage.run.steps == row.steps and stage.run.seed == 3
    assert stage.cell == "discrete-raster"


def test_predictions_are_scored_by_run():
  told = pd.DataFrame(
    {"run": ["a", "b", "c"], "N": [1e6, 2e6, 4e6], "compute": 1e12,
     "loss": [2.0, 1.8, 1.7], "lo": [1.9, 1.7, 1.6], "hi": [2.1, 1.9, 1.8]}
  )  # fmt: skip
  came = pd.DataFrame(
    {"run": ["b", "a", "x", "c"], "N": [2.1e6, 1e6, 1.0, 4e6], "D": 1e6,
     "compute": 1e12, "val/loss": [2.0, 2.0, 1.0, 1.7],
     "status": ["finished"] * 3 + ["running"]}
  )  # fmt: skip
  table = score(told, came).set_index("run")
  assert list(table.index) == ["a", "b"]
  assert list(table["error"]) == pytest.approx([0, -0.1])
  assert list(table["inside"]) == [True, False] and table.loc["b", "N"] == 2.1e6


def test_command_line_plans_predicts_and_says_what_is_wrong(tmp_path):
  study = coverage.PLANTS["chinchilla"].study(np.random.default_rng(0))
  n, d = study["x"]
  pd.DataFrame({"n": n, "c": 6 * n * d, "l": study["y"]}).to_csv(
    tmp_path / "t.csv", index=False
  )

  def call(table, *more):
    argv = [sys.executable, "-m", "analysis.plan", f"--csv={table}", *more]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)

  columns = ("--n=n", "--compute=c", "--loss=l", "--draws=50")
  file = tmp_path / "p.json"
  out = call(tmp_path / "t.csv", *columns, "--budget=1e21", f"--predict={file}")
  assert out.returncode == 0, out.stderr
  best = json.loads(file.read_text())["optima"][0]["N"]
  assert best[0] == pytest.approx(G * (1e21 / 6) ** A, rel=0.1)
  bad = call(tmp_path / "t.csv", *columns, "--budget=1e21", "--sweep=x.py")
  assert bad.returncode == 2 and "planned from run directories" in bad.stderr
  bad = call(tmp_path / "t.csv", *columns)
  assert bad.returncode == 2 and "--budget is needed" in bad.stderr
  refused = call(TOY, "--cell=discrete-raster", "--budget=1e14")
  assert refused.stderr == (
    "error: nothing to plan from: only 1 different value of D\n"
  )
