"""The short form of the drills: every kind of fault, survived."""

import pytest

from tests.e2e import drills


@pytest.mark.slow
def test_the_short_form_is_survived(tmp_path):
  report = drills.run(tmp_path, seed=0, short=True)
  assert len(report["rows"]) >= 8
  assert [r for r in report["rows"] if r["survived"] < r["tried"]] == []
