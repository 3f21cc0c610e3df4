"""analysis.fit: goldens, planted parameters, coverage, reasons to refuse."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

import analysis
from analysis import coverage
from analysis.curves import intervals, solve
from analysis.curves.forms import FORMS
from analysis.curves.frontier import grid_bias, isoflop
from analysis.curves.result import FitError
from analysis.fit import fit_points

ROOT = Path(__file__).parents[1]
X = np.geomspace(1e5, 3e6, 6)


@pytest.fixture(scope="module")
def hoffmann(fixtures):
  """The 240 points read off Hoffmann et al.'s figure."""
  table = pd.read_csv(fixtures / "chinchilla.csv")
  table = table.rename(columns={"Model Size": "N", "Training FLOP": "compute"})
  table["D"] = table["compute"] / (6 * table["N"])
  return table.drop(index=table["loss"].nlargest(5).index)


def test_chinchilla_golden(hoffmann):
  f = analysis.fit(hoffmann, form="chinchilla", y="loss", draws=200, hold_out=3e20 / 6)
  assert f.params["E"] == pytest.approx(1.8172, abs=1e-3)
  assert f.params["alpha"] == pytest.approx(0.34731, abs=1e-3)
  assert f.params["beta"] == pytest.approx(0.36717, abs=1e-3)
  assert f.params["A"] == pytest.approx(477.83, rel=0.01)
  assert f.params["B"] == pytest.approx(2143.4, rel=0.02)
  assert f.params["a"] == pytest.approx(0.5139, abs=1e-3)
  objective = solve.huber(f.residuals, 1e-3).sum()
  assert objective == pytest.approx(0.00101827402, rel=1e-6)
  assert f.intervals["a"] == pytest.approx((0.48, 0.56), abs=0.015)
  assert f.held_out.error == pytest.approx(0.010, abs=0.001)
  assert f.reached > 0.9


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_curve(form):
  curve, plant = FORMS[form], coverage.PLANTS[form]
  study = plant.study(np.random.default_rng(0))
  x = study["x"][-1:] if curve.reduce else study["x"]
  x, y = x[:, :20], study["y"][:20]
  x, y = (np.log(x), np.log(y)) if curve.log else (x, y)
  for theta in curve.starts(x, y, 3, np.random.default_rng(1)):
    slope = curve.curve(theta[None], x)[1][0]
    numeric = optimize.approx_fprime(theta, lambda t: curve.curve(t[None], x)[0][0])
    np.testing.assert_allclose(slope.T, numeric, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_finds_its_planted_parameters_without_noise(form):
  plant = coverage.PLANTS[form]
  study = plant.study(np.random.default_rng(0))
  x = study["x"]
  f = fit_points(**study | {"y": plant.law(x)}, form=form, intervals="none")
  # The envelope of curves on a grid, and parabolas, are approximations.
  rel = {"isoflop": 1e-3, "envelope": 5e-3}.get(form, 1e-4)
  assert {k: f.params[k] for k in plant.truth} == pytest.approx(plant.truth, rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_intervals_cover_the_planted_parameters(form):
  # 200 studies, in docs/analysis.md, are `python -m analysis.coverage`.
  table = coverage.simulate(form, 16, draws=100)
  assert (table["refused"] == 0).all()
  # Binomial: fewer than 12 of 16 happens to a 95 % interval once in 10,000 times.
  assert (table["coverage"] >= 0.75).all(), table
  assert (table["held-out coverage"] >= 0.75).all(), table


@pytest.mark.parametrize("form", ["power", "isoflop"])
def test_intervals_cover_nominally(form):
  table = coverage.simulate(form, 200)
  assert (abs(table["coverage"] - 0.95) < 0.05).all()
  assert (abs(table["held-out coverage"] - 0.95) < 0.05).all()


def test_cells_that_share_their_noise_predict_closer_and_cover_as_nominally():
  own, pooled = coverage.simulate_cells(40).to_dict("records")
  # 160 predictions each: 0.017 is a standard error. 800: docs/analysis.md.
  assert own["held-out coverage"] == pytest.approx(0.95, abs=0.05)
  assert pooled["held-out coverage"] == pytest.approx(0.95, abs=0.05)
  assert pooled["half"] < own["half"] / 2
  samples = np.random.default_rng(0).normal(size=(3, 7)) * [[1], [2], [3]]
  parts = [(float(np.std(x[:n], ddof=1)), n - 1) for x, n in zip(samples, (3, 5, 7))]
  lists = [x[:n] for x, n in zip(samples, (3, 5, 7))]
  assert intervals.alike(parts) == pytest.approx(stats.bartlett(*lists).pvalue)


def test_a_profile_of_a_line_is_the_textbooks_interval():
  y = (1e3 / X) ** 0.1 * np.exp(0.01 * np.random.default_rng(2).normal(size=6))
  f = fit_points(X, y)
  line = stats.linregress(np.log(X), np.log(y))
  half = stats.t.ppf(0.975, 4) * line.stderr
  assert f.params["a"] == pytest.approx(-line.slope)
  assert f.intervals["a"] == pytest.approx(
    (-line.slope - half, -line.slope + half), rel=1e-3
  )
  u, s2 = np.log(X), np.sum(f.residuals**2) / 4
  at = np.log(1e7)
  variance = s2 * (1 / 6 + (at - u.mean()) ** 2 / np.sum((u - u.mean()) ** 2))
  half = stats.t.ppf(0.975, 4) * np.sqrt(variance)
  lo, hi = f.band(1e7)
  assert np.log(hi / lo)[0] / 2 == pytest.approx(half, rel=1e-6)
  lo, hi = f.band(1e7, new_run=True)
  assert np.log(hi / lo)[0] / 2 == pytest.approx(half * np.sqrt(1 + s2 / variance))


def test_bootstrap_is_of_settings_and_seeds_and_repeats_by_seed():
  rng = np.random.default_rng(0)
  x = np.repeat(np.geomspace(1e5, 1e7, 8), 3)
  y = (1e3 / x) ** 0.1 * np.exp(0.01 * rng.normal(size=24))
  one, two, other = (
    fit_points(x, y, intervals="bootstrap", seed=s, draws=200) for s in (1, 1, 2)
  )
  assert one.intervals == two.intervals != other.intervals
  profile = fit_points(x, y).intervals["a"]
  assert np.ptp(one.intervals["a"]) == pytest.approx(np.ptp(profile), rel=0.5)
  # Drawn with replacement in two stages, as often as there are rows.
  from analysis.curves.intervals import resample

  weights = resample(x[None], 50, 2, rng)
  assert (weights.sum(1) == 24).all() and (weights > 1).any() and (weights == 0).any()


def test_approaches_2_and_3_agree_within_the_known_bias_of_the_grid():
  # Hoffmann's exponents, 15 sizes from N*/4 to 4 N* and from N*/16 to 16 N*; parabolas
  # through all of them would be off by 1.3 % and 5.4 %.
  law = dict(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)
  budgets = np.geomspace(1e18, 1e21, 5)
  for reach in (4, 16):
    x = coverage.isoflop_grid(budgets, sizes=15, reach=reach, law=law)
    d = x[1] / 6 / x[0]
    y = coverage.chinchilla(x[0], d, **law)
    two = fit_points(x, y, form="isoflop", intervals="none")
    three = fit_points([x[0], d], y, form="chinchilla", intervals="none")
    assert three.params == pytest.approx(law | {"a": 0.28 / 0.62}, rel=1e-4)
    assert two.params["a"] == pytest.approx(three.params["a"], abs=1e-6)
    best = np.sqrt(x[0].reshape(5, 15)[:, 0] * x[0].reshape(5, 15)[:, -1])
    assert np.abs(two.y / best - 1).max() < 3e-3
    assert abs(grid_bias(np.linspace(-np.log(4), np.log(4), 15))) < 2e-3
    assert "grid bias" not in "".join(two.warnings)
  assert grid_bias(np.linspace(-2, 6, 4)) > 0.05  # Few sizes, off the middle.


def test_isoflop_finds_the_published_exponents(fixtures):
  """Porian et al. (arXiv 2406.19146), their tables; minima through all sizes: .038."""
  published = json.loads((fixtures / "isoflop/published.json").read_text())
  errors, inside, widths = [], [], []
  for name, row in published.items():
    table = pd.read_csv(fixtures / f"isoflop/{name}.csv")
    f = analysis.fit(table.rename(columns={"loss": "val/loss"}), form="isoflop")
    low, high = f.intervals["a"]
    errors.append(abs(f.params["a"] - row["exponent"]))
    inside.append(low <= row["exponent"] <= high)
    widths.append(high - low)
  assert np.mean(errors) <= 0.015 and np.mean(widths) < 0.1
  assert sum(inside) >= len(inside) - 1


def test_isoflop_knows_which_budgets_tell_their_minima_best():
  """Their scatter over 300 studies, against what a study says of itself."""
  plant, rng = coverage.PLANTS["isoflop"], np.random.default_rng(0)
  drawn = [plant.study(rng) for _ in range(300)]
  points = [isoflop(s["x"], s["y"], np.arange(len(s["y"]))) for s in drawn]
  scatter = np.log([p.best for p in points]).std(0)
  said = np.sqrt(np.median([np.diag(p.noise) for p in points], axis=0))
  assert scatter[-1] > 2 * scatter[0]
  assert said == pytest.approx(scatter, rel=0.2)
  # Minima that scatter by more than their curves explain do so alike.
  s = plant.study(np.random.default_rng(1))
  budget = np.unique(s["x"][1], return_inverse=True)[1]
  moved = s["x"] * np.stack([np.exp(0.5 * rng.normal(size=7)), np.ones(7)])[:, budget]
  noise = np.diag(isoflop(moved, s["y"], budget).noise)
  assert noise.min() > 0.1**2 and noise.max() < 1.2 * noise.min()
  # Three sizes leave nothing over to tell noise by: the curves' shapes do.
  few = np.arange(49) % 7 % 3 == 0
  noise = np.diag(isoflop(s["x"][:, few], s["y"][few], budget[few]).noise)
  assert noise[-1] > 3 * noise[0] > 0


def test_isoflop_and_envelope_say_what_they_leave_out():
  x = coverage.isoflop_grid(np.geomspace(1e18, 1e21, 6))
  y = coverage.chinchilla(x[0], x[1] / 6 / x[0], **coverage.CHINCHILLA)
  keep = np.ones(x.shape[1], bool)
  keep[:5] = False  # two sizes of the first budget
  keep[10:14] = False  # the small sizes of the second
  f = fit_points(x[:, keep], y[keep], form="isoflop", intervals="none")
  said = " ".join(f.warnings)
  assert "left out: 2 sizes; a parabola needs 3" in said
  assert "size has the lowest loss" in said and len(f.y) == 4
  with_curves = fit_points(x, y, form="envelope")
  assert "needs training curves" in with_curves.refused


def test_aicc_prefers_the_form_that_made_the_data():
  rng = np.random.default_rng(0)
  x = np.geomspace(1e5, 1e8, 12)
  noise = np.exp(0.003 * rng.normal(size=12))
  plain, floored = (1e3 / x) ** 0.1 * noise, (1 + (1e4 / x) ** 0.4) * noise
  aicc = lambda y, form: fit_points(x, y, form=form, intervals="none").aicc
  assert aicc(plain, "power") < aicc(plain, "power_floor")
  assert aicc(floored, "power_floor") < aicc(floored, "power")
  f = fit_points(x, floored)
  rss = np.sum(f.residuals**2)
  assert f.aicc == pytest.approx(12 * np.log(rss / 12) + 6 + 24 / 8)


def test_what_the_points_do_not_identify_is_said():
  x = np.geomspace(1e5, 3e6, 8)
  bent = np.exp(0.02 * np.log(x / x.mean()) ** 2)  # curves away from any floor
  f = fit_points(x, (1e3 / x) ** 0.2 / bent, form="power_floor")
  assert f.params["E"] == 0 and "floor is not identified" in f.warnings[0]
  noisy = (1e3 / x) ** 0.1 * np.exp(0.01 * np.random.default_rng(3).normal(size=8))
  f = fit_points(x, noisy, form="power_floor")
  assert "the floor is not told apart from 0" in " ".join(f.warnings)
  rise = coverage.PLANTS["sigmoid"].law(np.linspace(2.6, 4, 9)[None])
  rise += 0.01 * np.random.default_rng(4).normal(size=9)
  f = fit_points(np.linspace(2.6, 4, 9), rise, form="sigmoid")
  assert "report no high" in " ".join(f.warnings)


def test_what_is_not_positive_is_named_and_errors_keep_their_sign():
  low = fit_points(X, (1e3 / X) ** 0.1 - 0.5, x_name="N", y_name="val/loss")
  assert low.refused == "val/loss must be positive"
  f = fit_points(X, np.log(X) - 20 - (X == X.max()), form="linear")
  held = f.held_out
  assert (np.sign(held.errors) == np.sign(held.predicted - held.actual)).all()


def test_parameters_that_are_known_are_not_fitted():
  plant = coverage.PLANTS["sigmoid"]
  study = plant.study(np.random.default_rng(0))
  f = fit_points(**study, form="sigmoid", fixed={"low": 0.04})
  assert f.params["low"] == 0.04 and f.freedom == 12 - 3
  free = fit_points(**study, form="sigmoid")
  assert np.ptp(f.intervals["k"]) < np.ptp(free.intervals["k"])
  zero = fit_points(X, (1e3 / X) ** 0.2, form="power_floor", fixed={"E": 0})
  assert zero.params["a"] == pytest.approx(0.2) and zero.params["E"] == 0
  with pytest.raises(FitError, match="cannot fix 'high5'; choose from low, high"):
    fit_points(**study, form="sigmoid", fixed={"high5": 1})


@pytest.mark.parametrize(
  "x, y, reason",
  [
    (X[:3], X[:3] ** -0.1, "3 runs; 2 parameters need 4"),
    (np.geomspace(1, 9, 6), np.ones(6) / 2, r"spans x9\.0, less than a decade"),
    (np.full(5, 3.0), np.arange(1.0, 6), "only 1 different value of x"),
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


def test_bad_tables_are_named_excluded_or_refused():
  y = (1e3 / X) ** 0.1
  good = pd.DataFrame({"run": list("abcdef"), "cell": "c1", "N": X, "val/loss": y})
  table = good.copy()
  table.loc[2, "val/loss"] = np.nan
  f = analysis.fit(table)
  assert f.params["a"] == pytest.approx(0.1)
  assert f.warnings == ("left out, no finite val/loss: c",)
  f = analysis.fit(pd.concat([good, good[:2]]))
  assert f.warnings == ("left out, twice in the table: a, b",) and len(f.y) == 6
  other = good[:1].assign(**{"val/loss": 0.9})
  assert analysis.fit(pd.concat([good, other])).refused == (
    "two different rows for run a"
  )
  steps = pd.concat([good.assign(step=2), good.assign(step=1, **{"val/loss": 2 * y})])
  f = analysis.fit(steps)
  assert f.params["a"] == pytest.approx(0.1)
  assert f.warnings == ("only the last step counts of a, b, c, d, e, f",)
  hashed = pd.concat([good.assign(config_hash=list("pqrstu"))] * 2)
  hashed["run"] = list("abcdefghijkl")
  assert "same config as another run: g, h" in analysis.fit(hashed).warnings[0]
  table = good.copy()
  table.loc[0, "cell"] = "c2"
  assert analysis.fit(table).refused == "the rows mix cells: c1, c2"
  mixed = good.assign(source=["shapes"] * 3 + ["emoji"] * 3)
  assert analysis.fit(mixed).refused == "the rows mix sources: emoji, shapes"
  with pytest.raises(FitError, match="no column 'loss'"):
    analysis.fit(table, y="loss")
  with pytest.raises(FitError, match="unknown form 'cubic'; choose from power"):
    analysis.fit(table, form="cubic")
  one = good.assign(N=1e6)
  assert analysis.fit(one).refused == "only 1 different value of N"


def test_readings():
  f = fit_points(X, (1e3 / X) ** 0.1, x_name="N", y_name="loss")
  assert f.reading == "10x N -> loss x 0.794 [0.794, 0.794]"
  assert f.held_out.reading.startswith("largest held out: predicted 0.449 ")


def test_all_cells_of_the_toy_study():
  runs = analysis.load(ROOT / "analysis/results/toy_study")
  fits = {c: analysis.fit(rows) for c, rows in runs.groupby("cell", sort=False)}
  assert len(fits) == 4 and all(not f.refused for f in fits.values())
  assert min(f.r2 for f in fits.values()) > 0.99
  fluid = fits["continuous-random"]
  assert fluid.held_out.inside == 1
  assert 10 ** -fluid.params["a"] == pytest.approx(0.872, abs=1e-3)
