"""A sweep on a real Slurm, the short form: two runs, one told twice to stop."""

import pytest

from tests.e2e import drills_slurm
from tests.e2e.lab import NotHere


@pytest.mark.slow
def test_a_sweep_on_slurm_ends_as_its_runs_do_alone(tmp_path):
  try:
    found = dict(drills_slurm.run(tmp_path, brief=True))
  except NotHere as e:
    pytest.skip(str(e))
  assert "2 starts" in found["twice"] and "1 starts" in found["plain"]
