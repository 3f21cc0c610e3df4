"""The simulated goodput: closed forms, bounds, and what saves cost when measured."""

import dataclasses
import math

import pytest

from benchmarks.goodput import Machine, best_period, closed_form, simulate

HOUR = 3600.0
M = Machine(rate=1 / (2 * HOUR), step=1.0, block=5.0, write=0.0, restart=200.0)


@pytest.mark.parametrize("period", [60, 300, 1800])
def test_it_is_daly_where_saves_are_on_disk_at_once(period):
  found = simulate(M, period, days=1000)
  # Steps are whole, where the closed form loses parts of one, too: half a step a loss.
  assert found["goodput"] == pytest.approx(closed_form(M, period), rel=0.004)
  assert found["losses"] == pytest.approx(1000 * 24 / 2, rel=0.03)
  assert sum(v for k, v in found.items() if k.startswith("lost/")) == pytest.approx(
    1 - found["goodput"]
  )
  # On average half a period is done again, and what a loss interrupts.
  assert found["lost/redone"] == pytest.approx(period / 2 / (2 * HOUR), rel=0.15)


def test_a_save_without_losses_costs_what_was_measured():
  """docs/reliability.md: step time with saves over that without, at two periods."""
  for period, block, measured in ((5.4, 0.64, 1.109), (18.7, 0.68, 1.039)):
    m = Machine(rate=0, step=period / 50, block=block, write=0, restart=7)
    found = simulate(m, period, days=2)["goodput"]
    assert 1 / found == pytest.approx(measured, rel=0.01)


def test_the_best_period_is_youngs_where_losses_are_rare_and_not_below_the_write():
  rare = dataclasses.replace(M, rate=1 / (1000 * HOUR))
  assert best_period(rare) == pytest.approx(math.sqrt(2 * 5 * 1000 * HOUR), rel=0.02)
  assert best_period(dataclasses.replace(M, write=HOUR)) == HOUR
  best = best_period(M)
  at = lambda p: simulate(M, p, days=300)["goodput"]
  assert at(best) > max(at(best / 5), at(best * 5))


def test_a_loss_costs_no_more_than_two_periods_and_announced_ones_no_step():
  m = dataclasses.replace(M, write=50.0)
  assert 60 < simulate(m, 60)["most"] <= 120
  assert simulate(dataclasses.replace(m, warned=1.0), 60)["most"] == 0
  slow = dataclasses.replace(m, write=400.0)  # Saves wait for one another.
  assert simulate(slow, 60)["most"] <= 2 * (400 + 5)
  assert simulate(m, 60)["goodput"] < simulate(M, 60)["goodput"]
