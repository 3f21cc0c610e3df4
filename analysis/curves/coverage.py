"""Do the intervals hold what they say? Simulated studies with known parameters.

  python -m analysis.coverage [--studies 200] [--form power] [--csv FILE]

Every form gets studies of a size that people run, with multiplicative noise between
runs, and is judged by how many of its 95 % intervals hold the planted value; and so
are predictions of a fourth size from three in studies of several cells, with each
cell's own scatter and with that of all.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import pandas as pd

from analysis.curves.fit import fit_points
from analysis.curves.intervals import pooled
from analysis.curves.result import Fit


@dataclasses.dataclass(frozen=True)
class Plant:
  """A law and the studies drawn from it.

  Attributes:
    truth: public parameters to find.
    study: rng -> keyword arguments of fit_points.
    law: x [d, m] -> the noiseless curve [m].
  """

  truth: dict[str, float]
  study: Callable[[np.random.Generator], dict]
  law: Callable[[np.ndarray], np.ndarray]


CHINCHILLA = dict(E=1.8172, A=477.83, B=2143.4, alpha=0.34731, beta=0.36717)


def chinchilla(n, d, E, A, B, alpha, beta):
  """The loss of Hoffmann et al. 2022, with the parameters of `CHINCHILLA`."""
  return E + A / n**alpha + B / d**beta


def _runs(x, law, noise, *, log=True):
  """Studies of the points x [d, n]."""
  x = np.atleast_2d(x)

  def study(rng):
    e = noise * rng.normal(size=x.shape[1])
    return {"x": x, "y": law(x) * np.exp(e) if log else law(x) + e}

  return study


def isoflop_grid(budgets, *, sizes=7, reach=4.0, law=CHINCHILLA):
  """N and compute [2, n] of sizes from N*/reach to N* reach around each optimum."""
  a = law["beta"] / (law["alpha"] + law["beta"])
  g = (law["alpha"] * law["A"] / law["beta"] / law["B"]) ** (
    1 / (law["alpha"] + law["beta"])
  )
  best = g * (np.asarray(budgets) / 6) ** a
  n = best[:, None] * np.geomspace(1 / reach, reach, sizes)
  return np.stack([n.ravel(), np.repeat(budgets, sizes)])


def _plants() -> dict[str, Plant]:
  power = lambda x: (1e3 / x[0]) ** 0.1
  floor = lambda x: 0.1 + (1e3 / x[0]) ** 0.1
  line = lambda x: 2 - 0.5 * x[0]
  rise = lambda x: 0.04 + 0.76 / (1 + np.exp(3 * (x[0] - 2.5)))
  surface = lambda x: chinchilla(*x, **CHINCHILLA)
  along = lambda x: chinchilla(x[0], x[1] / 6 / x[0], **CHINCHILLA)
  a = CHINCHILLA["beta"] / (CHINCHILLA["alpha"] + CHINCHILLA["beta"])

  def broken(x):
    bend = (1 + (x[0] / 1e8) ** (1 / 0.3)) ** (-0.3 * 0.3)
    return 0.5 + 30 * x[0] ** -0.15 * bend

  def curves(rng):
    """Training curves: the noise belongs to the run, all along its curve."""
    n = np.repeat(np.geomspace(1e7, 1e10, 10), 60)
    d = n * np.tile(np.geomspace(2, 200, 60), 10)
    noise = np.repeat(0.001 * rng.normal(size=10), 60)
    y = chinchilla(n, d, **CHINCHILLA) * np.exp(noise)
    return {"x": np.stack([n, 6 * n * d]), "y": y, "runs": n}

  n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e7, 1e10, 10), np.geomspace(1e9, 3e11, 10)))  # fmt: skip  # noqa: E501
  return {
    "power": Plant(
      {"a": 0.1, "log10_N0": 3.0}, _runs(np.geomspace(1e5, 1e7, 7), power, 0.01), power
    ),
    "power_floor": Plant(
      {"a": 0.1, "E": 0.1}, _runs(np.geomspace(1e5, 1e9, 9), floor, 0.003), floor
    ),
    "chinchilla": Plant(
      {k: CHINCHILLA[k] for k in ("E", "alpha", "beta")} | {"a": a},
      _runs(np.stack([n, d]), surface, 0.005),
      surface,
    ),
    "isoflop": Plant(
      {"a": a}, _runs(isoflop_grid(np.geomspace(1e18, 1e21, 7)), along, 0.002), along
    ),
    "envelope": Plant({"a": a}, curves, along),
    "bnsl": Plant(
      {"E": 0.5, "c0": 0.15, "c1": 0.3, "d": 1e8},
      _runs(np.geomspace(1e5, 1e11, 40), broken, 0.003),
      broken,
    ),
    "linear": Plant(
      {"m": -0.5, "c": 2.0}, _runs(np.linspace(0, 3, 7), line, 0.05, log=False), line
    ),
    "sigmoid": Plant(
      {"high": 0.8, "x0": 2.5, "k": -3.0},
      _runs(np.linspace(1.2, 4, 12), rise, 0.02, log=False),
      rise,
    ),
  }


PLANTS = _plants()


def simulate(form: str, studies: int, *, seed: int = 0, **options) -> pd.DataFrame:
  """A row per parameter: truth, median estimate, bias, coverage of the intervals."""
  plant = PLANTS[form]
  rng = np.random.default_rng(seed)
  fits: list[Fit] = [
    fit_points(**plant.study(rng), form=form, seed=i, **options) for i in range(studies)
  ]
  good = [f for f in fits if not f.refused]
  held = float(np.mean([f.held_out.inside for f in good if f.held_out]))
  rows = []
  for name, true in plant.truth.items():
    values = np.array([f.params[name] for f in good])
    ends = np.array([f.intervals[name] for f in good])
    inside = (ends[:, 0] <= true) & (true <= ends[:, 1])
    row = {"form": form, "parameter": name, "planted": true}
    row |= {"median": float(np.median(values)), "coverage": float(inside.mean())}
    row |= {"studies": len(good), "refused": studies - len(good)}
    rows.append(row | {"held-out coverage": held})
  return pd.DataFrame(rows)


def simulate_cells(studies: int, *, seed: int = 0, cells: int = 4) -> pd.DataFrame:
  """Held-out coverage, and half the width (median, as a share of what is predicted).

  A row for predictions with each cell's own scatter, one for those with all cells'.
  """
  rng = np.random.default_rng(seed)
  study = _runs(np.geomspace(1.2e5, 1.6e6, 4), lambda x: (1e3 / x[0]) ** 0.1, 0.005)
  found: dict[str, list] = {"own": [], "pooled": []}
  for _ in range(studies):
    fits = (fit_points(**study(rng), intervals="none") for _ in range(cells))
    held = [f.held_out for f in fits if f.held_out]
    spread, freedom = pooled([(h.spread, h.freedom) for h in held])
    found["own"] += held
    found["pooled"] += [
      dataclasses.replace(h, spread=spread, freedom=freedom) for h in held
    ]
  return pd.DataFrame(
    {"form": f"power, {cells} cells of 4 sizes", "scatter": name,
     "held-out coverage": np.mean([h.inside for h in held]),
     "half": np.median([(h.hi - h.lo) / 2 / h.predicted for h in held])}
    for name, held in found.items()
  )  # fmt: skip
