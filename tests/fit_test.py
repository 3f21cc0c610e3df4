"""analysis.fit: planted parameters, coverage of the intervals, reasons to refuse."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.fit import FitError, fit_points

X = np.geomspace(1e5, 3e6, 6)


@pytest.mark.parametrize("a, n0", [(0.05, 1e3), (0.3, 1e8), (0.9, 2.0)])
def test_power_recovers_planted_parameters(a, n0):
  f = fit_points(X, (n0 / X) ** a)
  assert f.params["a"] == pytest.approx(a, rel=1e-9)
  assert f.params["log10_N0"] == pytest.approx(np.log10(n0), rel=1e-9)
  assert f.r2 == pytest.approx(1) and f.space == "log"
  assert f.held_out.relative_error == pytest.approx(0, abs=1e-9)
  assert f.predict(1e9) == pytest.approx((n0 / 1e9) ** a)


@pytest.mark.parametrize("a, floor", [(0.3, 0.5), (0.15, 1.8), (0.6, 0.01)])
def test_power_floor_recovers_planted_parameters(a, floor):
  f = fit_points(X, floor + (5e3 / X) ** a, form="power_floor")
  assert f.params["a"] == pytest.approx(a, rel=1e-4)
  assert f.params["E"] == pytest.approx(floor, rel=1e-4)
  assert f.params["log10_N0"] == pytest.approx(np.log10(5e3), rel=1e-4)


def test_linear_recovers_planted_parameters():
  x = np.arange(6.0)
  f = fit_points(x, 2 - 0.5 * x, form="linear")
  assert f.params == pytest.approx({"m": -0.5, "c": 2.0})
  assert f.space == "linear"


def test_floor_of_a_floorless_law_is_called_unidentified():
  x = np.geomspace(1e5, 3e6, 8)
  bent = np.exp(0.02 * np.log(x / x.mean()) ** 2)  # curves away from any floor
  f = fit_points(x, (1e3 / x) ** 0.2 / bent, form="power_floor")
  assert f.params["E"] == 0 and "floor is not identified" in f.warnings[0]


def test_aicc_prefers_the_form_that_made_the_data():
  rng = np.random.default_rng(0)
  x = np.geomspace(1e5, 1e8, 12)
  noise = np.exp(0.003 * rng.normal(size=12))
  plain, floored = (1e3 / x) ** 0.1 * noise, (1 + (1e4 / x) ** 0.4) * noise
  aicc = lambda y, form: fit_points(x, y, form=form).aicc
  assert aicc(plain, "power") < aicc(plain, "power_floor")
  assert aicc(floored, "power_floor") < aicc(floored, "power")


def test_aicc_by_hand():
  x, y = X[:5], (1e3 / X[:5]) ** 0.1 * np.exp([0.01, -0.02, 0.0, 0.02, -0.01])
  f = fit_points(x, y)
  rss = np.sum(f.residuals**2)
  assert f.aicc == pytest.approx(5 * np.log(rss / 5) + 6 + 24)


@pytest.mark.parametrize(
  "form, parameter, true",
  [("power", "a", 0.1), ("power", "log10_N0", 3.0), ("power_floor", "a", 0.4)],
)
def test_intervals_cover_the_truth_about_as_often_as_they_say(form, parameter, true):
  rng = np.random.default_rng(1)
  x = np.geomspace(1e5, 1e7, 7)
  a = true if parameter == "a" else 0.1
  clean = (1e3 / x) ** a if form == "power" else 0.1 + (1e3 / x) ** a
  studies = 200
  hits = inside = 0
  for _ in range(studies):
    f = fit_points(x, clean * np.exp(0.01 * rng.normal(size=7)), form=form)
    lo, hi = f.intervals[parameter]
    hits += lo <= true <= hi
    inside += f.held_out.inside
  # Binomial standard error at 0.95 of 200 studies: 0.015. The floor makes the form
  # nonlinear, where a local interval is an approximation.
  slack = 0.05 if form == "power" else 0.08
  assert abs(hits / studies - 0.95) < slack
  assert abs(inside / studies - 0.95) < slack


def test_band_of_the_line_against_the_textbook():
  rng = np.random.default_rng(2)
  y = (1e3 / X) ** 0.1 * np.exp(0.01 * rng.normal(size=6))
  f = fit_points(X, y)
  u = np.log(X)
  s2 = np.sum(f.residuals**2) / 4
  at = np.log(1e7)
  variance = s2 * (1 / 6 + (at - u.mean()) ** 2 / np.sum((u - u.mean()) ** 2))
  half = 2.7764451 * np.sqrt(variance)
  lo, hi = f.band(1e7)
  assert np.log(hi / lo)[0] / 2 == pytest.approx(half, rel=1e-6)
  lo, hi = f.band(1e7, new_run=True)
  assert np.log(hi / lo)[0] / 2 == pytest.approx(half * np.sqrt(1 + s2 / variance))


@pytest.mark.parametrize(
  "x, y, reason",
  [
    (X[:3], X[:3] ** -0.1, "3 runs; 2 parameters need 4"),
    (np.geomspace(1, 9, 6), np.ones(6) / 2, r"spans x9\.0, less than a decade"),
    (np.full(5, 3.0), np.arange(1.0, 6), "only 1 different values"),
    (X, X - X[2], "must be positive"),
  ],
)
def test_refuses_with_a_reason_and_keeps_the_points(x, y, reason):
  f = fit_points(x, y)
  assert pd.Series([f.refused]).str.contains(reason).item()
  assert not f.params and f.reading == f"no fit: {f.refused}"
  np.testing.assert_array_equal(f.y, y)
  with pytest.raises(FitError, match="no curve"):
    f.predict(1.0)
  assert json.loads(json.dumps(f.to_dict()))["r2"] is None


def test_tables_name_what_they_leave_out_and_are_not_mixed():
  y = (1e3 / X) ** 0.1
  table = pd.DataFrame({"run": list("abcdef"), "cell": "c1", "N": X, "val/loss": y})
  table.loc[2, "val/loss"] = np.nan
  f = analysis.fit(table)
  assert f.params["a"] == pytest.approx(0.1)
  assert f.warnings == ("left out, no finite val/loss: c",)
  table.loc[0, "cell"] = "c2"
  assert analysis.fit(table).refused == "the rows mix cells: c1, c2"
  with pytest.raises(FitError, match="no column 'loss'"):
    analysis.fit(table, y="loss")
  with pytest.raises(FitError, match="unknown form 'cubic'; choose from power"):
    analysis.fit(table, form="cubic")


def test_reading_says_what_ten_times_the_size_brings():
  f = fit_points(X, (1e3 / X) ** 0.1, x_name="N", y_name="loss")
  assert f.reading == "10x N -> loss x 0.794 [0.794, 0.794]"


def test_command_line(tmp_path):
  table = pd.DataFrame({"N": X, "loss": (1e3 / X) ** 0.25})
  table.to_csv(tmp_path / "t.csv", index=False)
  argv = [sys.executable, "-m", "analysis.fit", f"--csv={tmp_path}/t.csv", "--y=loss"]
  root = Path(__file__).parents[1]
  out = subprocess.run(argv, cwd=root, capture_output=True, text=True)
  assert json.loads(out.stdout)["params"]["a"] == pytest.approx(0.25)
  bad = subprocess.run([*argv, "--x=M"], cwd=root, capture_output=True, text=True)
  assert (bad.returncode, bad.stderr) == (2, "error: the table has no column 'M'\n")
