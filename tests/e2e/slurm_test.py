"""A sweep on a real Slurm, the short form: two runs, one told twice to stop."""

import time

import pytest

from launch.engines.slurm import Engine
from tests.e2e import drills_slurm, slurm
from tests.e2e.lab import NotHere


@pytest.mark.slow
def test_a_sweep_on_slurm_ends_as_its_runs_do_alone(tmp_path):
  try:
    found = dict(drills_slurm.run(tmp_path, brief=True))
  except NotHere as e:
    pytest.skip(str(e))
  assert "2 starts" in found["twice"] and "1 starts" in found["plain"]


@pytest.mark.slow
def test_what_somebody_cancels_is_told_from_what_slurm_cancels(tmp_path, monkeypatch):
  """Before it runs: it waits for a job that runs, or for one that fails."""
  if why := slurm.missing():
    pytest.skip(why)
  with slurm.cluster(tmp_path) as cluster:
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))

    def submit(name, command, after=""):
      wait = [f"--dependency=afterok:{after}"] if after else []
      argv = ["sbatch", "--parsable", "-J", name, "-o", "/dev/null", *wait]
      return cluster.call(*argv, "--kill-on-invalid-dep=yes", "--wrap", command)

    runs, fails = submit("runs", "sleep 300"), submit("fails", "exit 3")
    submit("by-hand", "true", after=runs), submit("by-slurm", "true", after=fails)
    cluster.call("scancel", "--name=by-hand")
    want = {"runs": "running", "fails": "lost"}
    want |= {"by-hand": "cancelled", "by-slurm": "lost"}
    end = time.monotonic() + 60
    while (found := _states(want)) != want and time.monotonic() < end:
      time.sleep(0.5)
    assert found == want
    # The last of a name counts: it was submitted again.
    submit("by-hand", "true", after=runs)
    assert _states(want)["by-hand"] == "queued"


def _states(names):
  return {k: v.state for k, v in Engine().states(list(names)).items()}
