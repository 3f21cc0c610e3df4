"""A sweep on a real Slurm, the short form: two runs, one told twice to stop."""

import json
import sys
import time

import pytest

from launch import sweep
from launch.engines.slurm import Engine
from launch.order import Order
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


TWICE = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
n = 1 + len(list(folder.glob('start-*')))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
(folder / f'start-{n}').touch()
while n < 3 and not (folder / f'go-{n}').exists():
  time.sleep(.1)
if n < 3:
  sys.exit(75)
(folder / 'done.json').write_text('{"step": 4}')
"""


@pytest.mark.slow
def test_what_is_taken_away_for_good_is_submitted_again(tmp_path, study, monkeypatch):
  """And what ends while the controller is away is requeued when it is back."""
  if why := slurm.missing():
    pytest.skip(why)
  (tmp_path / "twice.py").write_text(TWICE)
  point = f"name='a', config='{tmp_path}/toy.py:categorical,random'"
  study.write_text(f"sweep = lambda: [dict({point}, overrides={{'data.cache': '/x'}})]")
  options = {"partition": "away", "setup": "true"}
  order = Order(str(study), "slurm", "cpu:1x1", options=options)
  work, run = tmp_path / "w", tmp_path / "w/runs/a"
  ended = work / "jobs/a/exit.json"
  with slurm.cluster(tmp_path / "slurm") as cluster:
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))

    def submit():
      argv = [sys.executable, str(tmp_path / "twice.py"), str(run)]
      sweep.submit(order, work, build=lambda stage: argv)
      return json.loads((work / "sweep.json").read_text())[-1]["status"]

    def until(condition):
      end = time.monotonic() + 90
      while not condition():
        assert time.monotonic() < end
        cluster.soon()
        time.sleep(0.2)

    submit()
    until((run / "start-1").exists)
    everything = ("-p", "high", "-N2", "-c2", "-o", "/dev/null", "--wrap", "true")
    cluster.call("sbatch", *everything)
    until(ended.exists)
    assert json.loads(ended.read_text())["state"] == "PREEMPTED"
    # The job writes how it ends before it has ended.
    until(lambda: submit() == "queued")
    until((run / "start-2").exists)
    cluster.call("scontrol", "shutdown", "slurmctld")
    cluster.daemons[0].wait(30)
    (run / "go-2").touch()
    time.sleep(5)
    assert not ended.exists()
    cluster.start("slurmctld")
    end = time.monotonic() + 60
    while not ended.exists() and time.monotonic() < end:
      time.sleep(0.2)
    assert json.loads(ended.read_text()) == {
      "code": 75, "restarts": 0, "state": "RUNNING"
    }  # fmt: skip
    until((run / "done.json").exists)
    assert submit() == "finished"


def _states(names):
  return {k: v.state for k, v in Engine().states(list(names)).items()}
