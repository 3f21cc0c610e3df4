"""Sweeps that are submitted to stand-ins of schedulers, and what their jobs find."""

import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fluid import files
from fluid.errors import ConfigError
from launch import code, engines, logs, order, retry, status, stop, sweep, view
from launch.plan import plan
from launch.remote import Remote
from tests import schedulers
from tests.machines import COMMIT, specs_with

ENGINES = ("slurm", "gke", "skypilot", "tpu_vm")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sweep_ends_with_each_run_as_it_should(machine, engine, capfd, monkeypatch):
  machine.modes |= {"run/dr2": "preempted", "run/cr1": "hang"}
  if engine != "tpu_vm":  # Its machines say how they ended, which has no stand-in.
    machine.modes["run/dr1"] = "fail"
  going = lambda s: s.get("run/dr2") == "finished" and s["run/cr1"] == "running"
  machine.until(engine, going)
  argv = ["--workdir", str(machine.workdir)]
  monkeypatch.setattr(order.Order, "specs", specs_with(machine.build))
  assert stop.main([*argv, "cr1"]) == 0
  want = {"run/dr1": "failed", "run/dr2": "finished", "run/cr1": "cancelled"}
  want["run/dr1"] = "finished" if engine == "tpu_vm" else "failed"
  ended = lambda s: all(s[k] == v for k, v in want.items())
  result, _ = machine.until(engine, ended)
  assert result == int(engine != "tpu_vm")
  starts = machine.starts()
  assert starts.pop("dr2") == 2 and set(starts.values()) == {1}
  # A call more starts nothing, whoever makes it.
  machine.submit(engine)
  assert machine.starts() == starts | {"dr2": 2}
  capfd.readouterr()
  status.main([*argv, "--json"])
  rows = {r["stage"]: r for r in json.loads(capfd.readouterr().out)}
  assert rows["run/dr2"]["state"] == "finished" and rows["run/dr2"]["loss"] == 0.5
  assert rows["run/dr2"]["goodput"] == 0.75
  assert rows["run/cr1"]["state"] == "cancelled"
  if engine in ("slurm", "gke"):  # SkyPilot has words of its own.
    assert rows["run/dr1"]["note"].endswith(": error: no luck")
  assert logs.main(["dr2", *argv]) == 0
  assert "stopped: SIGTERM after step 2" in capfd.readouterr().out
  if engine == "tpu_vm":  # Its machines are gone.
    (machine.workdir / "logs/dr2.log").unlink()
    with pytest.raises(ConfigError, match="machines are gone.* would be in .*dr2.log"):
      logs.main(["dr2", *argv])
  machine.modes.clear()
  (machine.workdir / "runs/cr1/starts").unlink()
  retry.main(["--failed", "--cancelled", *argv], build=machine.build)
  result, found = machine.until(engine, lambda s: set(s.values()) == {"finished"})
  assert result == 0 and machine.starts()["dr2"] == 2


@pytest.mark.parametrize("engine", ENGINES)
def test_what_somebody_cancels_stays_so_until_it_is_retried(machine, engine):
  """By the engine's own command, before the job or while it could say how it ended."""
  waits = (
    engine == "slurm"
  )  # For the tokenizer; elsewhere a stage comes as it is ready.
  machine.modes["tokenizer/vq" if waits else "run/dr1"] = "hang"
  before = "queued" if waits else "running"
  machine.until(engine, lambda s: s.get("run/dr1") == before)
  if not waits:
    machine.begins("dr1")
  asked = machine.order(engine)
  made = asked.engine()
  stages = asked.stages(machine.workdir)
  specs = asked.specs(stages, machine.workdir, made, machine.build)
  made.stop(specs["run/dr1"].key, "")
  machine.until(engine, lambda s: s["run/dr1"] == "cancelled", 30)
  for folder in machine.state.iterdir():  # As if it had been forgotten meanwhile.
    for job, found in schedulers.jobs(folder).items():
      if found["name"] == specs["run/dr1"].key:
        (folder / f"{job}.json").rename(folder / f"{job}.gone")
  machine.submit(engine)
  assert machine.states()["run/dr1"] == "cancelled"
  if not waits:
    assert machine.starts()["dr1"] == 1
  argv = ["--cancelled", "--workdir", str(machine.workdir)]
  retry.main(argv, build=machine.build)
  after = "queued" if waits else "finished"
  machine.until(engine, lambda s: s["run/dr1"] == after)


def test_skypilot_is_asked_for_all_jobs_and_why_one_failed(machine):
  machine.modes |= {"run/dr1": "fail", "run/cr1": "hang"}
  want = {"run/dr1": "failed", "run/cr1": "running"}
  machine.until("skypilot", lambda s: want.items() <= s.items())
  machine.begins("cr1")
  state = machine.state / "sky"
  jobs = {f["name"]: j for j, f in schedulers.jobs(state).items()}
  dr1, cr1 = (next(j for n, j in jobs.items() if x in n) for x in ("-dr1-", "-cr1-"))
  schedulers._write(state, dr1, why="no\n such  zone")
  for n in range(1000, 1060):  # It lists 50 by itself.
    schedulers._write(state, str(n), name="another", state="COMPLETED")
  machine.submit("skypilot")
  assert want.items() <= machine.states().items() and machine.starts()["cr1"] == 1
  os.killpg(schedulers.jobs(state)[cr1]["pid"], signal.SIGKILL)  # It begins again.
  machine.until("skypilot", lambda s: s["run/cr1"] == s["run/dr2"] == "finished")
  # Nothing is in progress, so its controller is stopped: what it knows stays known.
  machine.submit("skypilot")
  records = json.loads((machine.workdir / "sweep.json").read_text())
  (found,) = [r for r in records if r["name"] == "dr1"]
  assert (found["status"], found["note"]) == ("failed", "no such zone")


CANCELLED, PREEMPTED = (
  engines.Found("cancelled", "7", "CANCELLED"),
  engines.Found("lost", "7", "PREEMPTED"),
)


@pytest.mark.parametrize(
  "end, found, want",
  [
    ({"code": 75, "state": "COMPLETING"}, None, "cancelled"),
    ({"code": 75, "state": "COMPLETING"}, CANCELLED, "cancelled"),
    ({"code": 75, "state": "COMPLETING"}, PREEMPTED, "lost"),
    ({"code": 75, "state": "PREEMPTED"}, None, "lost"),
    ({"code": 75, "state": "TIMEOUT"}, None, "lost"),
    ({"code": 75, "state": ""}, None, "lost"),
    ({"code": 75, "state": ""}, CANCELLED, "cancelled"),
    ({"code": 3, "state": "PREEMPTED"}, PREEMPTED, "failed"),
    ({"code": 128, "state": "RUNNING"}, None, "failed"),
    ({"code": 75, "state": "RUNNING"}, None, "lost"),
  ],
)
def test_what_was_taken_away_is_told_from_what_was_cancelled(
  machine, end, found, want, monkeypatch
):
  remote, spec = _submitted(machine, monkeypatch, found)
  files.write_json(spec.exit, end | {"restarts": 1})
  remote.look()
  assert remote.entries["run/dr1"].status == want


def _submitted(machine, monkeypatch, found=None):
  """A run that was submitted, with what it needs done; -> its sweep and its spec."""
  asked, workdir = machine.order("slurm", only="dr1"), machine.workdir
  engine, stages = asked.engine(), asked.stages(workdir)
  specs = asked.specs(stages, workdir, engine, machine.build)
  for needed in stages[:2]:
    files.write_json(f"{needed.folder}/done.json", {"step": 4})
    said = {"splits": {"train": {}, "val": {}}}
    files.write_json(f"{needed.folder}/metadata.json", said)
  remote, spec = Remote(stages, specs, workdir, engine), specs["run/dr1"]
  states = {spec.key: found} if found else {}
  monkeypatch.setattr(engine, "states", lambda keys: states)
  remote._submitted("run/dr1", "7")
  return remote, spec


def test_what_a_scheduler_says_of_before_does_not_end_another_try(machine, monkeypatch):
  """As SkyPilot does, where a name was used before and the submission is refused."""
  remote, _ = _submitted(machine, monkeypatch, engines.Found("failed", "7"))
  remote._write("run/dr1", remote._new("run/dr1") | {"again": True})
  remote.look()
  assert remote.entries["run/dr1"].status == "waiting"


def test_losses_are_counted_since_the_last_checkpoint(machine, monkeypatch):
  remote, _ = _submitted(machine, monkeypatch)
  monkeypatch.setattr(remote.engine, "submit", lambda spec, after: "8")
  entry = remote.entries["run/dr1"]

  def again(step):
    files.write_json(entry.stage.folder / "saved.json", {"step": step})
    remote.look()
    remote.submit()
    return entry.status

  assert [again(step) for step in range(6)] == ["queued"] * 6
  assert [again(5) for _ in range(5)] == ["queued"] * 4 + ["failed"]
  assert entry.note == "slurm lost it 5 times without a new checkpoint"


def test_a_scheduler_that_does_not_answer_is_asked_again(machine, monkeypatch, capfd):
  hiccups = machine.workdir.parent / "hiccups"
  monkeypatch.setenv("FAKE_HICCUPS", str(hiccups))
  for name, value in (("WATCH_SECONDS", 0.2), ("WATCH_FAILURES", 4)):
    monkeypatch.setattr(sweep, name, value)
  monkeypatch.setattr(engines, "PAUSE", 0.1)
  looks, look = [], Remote.look

  def failing(self):
    if len(looks) == 1:
      hiccups.write_text("3")
    looks.append(1)
    return look(self)

  monkeypatch.setattr(Remote, "look", failing)
  asked = machine.order("slurm")
  assert sweep.submit(asked, machine.workdir, watch=True, build=machine.build) == 0
  said = capfd.readouterr().err
  assert said.count("warning:") == 1 and "4 times in all" in said
  assert "squeue refuses: error: Unable to contact slurm controller" in said
  assert set(machine.states().values()) == {"finished"}
  assert set(machine.starts().values()) == {1}
  argv = ["--workdir", str(machine.workdir)]
  monkeypatch.setattr(order.Order, "specs", specs_with(machine.build))
  hiccups.write_text("2")
  assert status.main(argv) == 0
  hiccups.write_text("3")
  with pytest.raises(ConfigError, match="^squeue refuses: error: Unable to contact"):
    status.main(argv)


def test_a_call_for_other_runs_leaves_the_first_in_sight(machine, monkeypatch):
  machine.modes |= {"run/dr1": "fail", "run/cr1": "hang"}
  monkeypatch.setattr(order.Order, "specs", specs_with(machine.build))
  argv = ["--workdir", str(machine.workdir)]
  for only in ("dr1", "cr1"):
    machine.submit("slurm", only=only)

  def until(**want):
    end = time.monotonic() + 120
    while (found := _runs(machine)) != want:
      assert time.monotonic() < end, found
      time.sleep(0.3)

  until(dr1="failed", cr1="running")
  machine.modes["run/dr1"] = "hang"
  (machine.workdir / "runs/dr1/starts").unlink()
  retry.main([*argv, "dr1"], build=machine.build)
  until(dr1="running", cr1="running")
  assert stop.main(argv) == 0
  until(dr1="cancelled", cr1="cancelled")
  jobs = schedulers.jobs(machine.state / "slurm").values()
  assert not {j["state"] for j in jobs} & {"PENDING", "RUNNING"}


def _runs(machine):
  _, found, _ = view.open_sweep(machine.workdir)
  return {e.stage.name: e.status for e in found.values() if e.stage.kind == "run"}


def test_a_killed_submission_is_found_again(machine, capsys):
  machine.modes["run/dr1"] = "hang"
  machine.until("slurm", lambda s: s["run/dr1"] == "running")
  machine.begins("dr1")
  job = machine.workdir / "jobs/dr1/job.json"
  before = json.loads(job.read_text())
  job.unlink()  # As if it had been killed between sbatch and this file.
  machine.submit("slurm")
  after = json.loads(job.read_text())
  assert after["job"] == before["job"] and machine.starts()["dr1"] == 1
  # Nor is another sweep of the same name in its folder.
  other = machine.workdir / "study.py"
  other.write_text(Path(machine.order("slurm").config).read_text())
  asked = dataclasses.replace(machine.order("slurm"), config=str(other))
  sweep.submit(asked, machine.workdir, build=machine.build)  # A copy is no other one.
  machine.submit("slurm")
  other.write_text(other.read_text() + "# Another.\n")
  with pytest.raises(ConfigError, match="study.py has the same name: choose another"):
    sweep.submit(asked, machine.workdir, build=machine.build)
  # Another engine, or a changed sweep, is no second job in the same folder.
  with pytest.raises(ConfigError, match="run/dr1 is running on slurm as study-run-dr1"):
    machine.submit("gke")
  # One of another name may share its tokenizers, and says what it takes over.
  dataclasses.replace(asked, config=str(other.rename(other.with_name("b.py")))).save(
    machine.workdir
  )
  assert "launch.status, stop, logs and retry are of" in capsys.readouterr().out


def test_a_submission_killed_before_it_knew_the_job_is_found(machine, monkeypatch):
  """Even where another commit gives the job another name."""
  made, taken = type(machine.order("slurm").engine()), []

  def submit(self, spec, after):
    taken.append(original(self, spec, after))
    raise KeyboardInterrupt

  original = made.submit
  machine.modes["tokenizer/vq"] = "hang"
  monkeypatch.setattr(made, "submit", submit)
  with pytest.raises(KeyboardInterrupt):
    machine.submit("slurm", only="dr1")
  monkeypatch.setattr(made, "submit", original)
  monkeypatch.setattr(code, "_state", lambda root: (COMMIT[::-1], "HEAD"))
  machine.submit("slurm", only="dr1")
  jobs = schedulers.jobs(machine.state / "slurm")
  assert [j["after"] for j in jobs.values()] == [[], taken, ["1", "2"]]
  assert machine.states()["tokenizer/vq"] in ("queued", "running")


def test_code_is_kept_as_it_was(tmp_path):
  def git(*args):
    env = os.environ | {k: "x" for k in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME")}
    env |= {k: "x@x" for k in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL")}
    subprocess.run(["git", *args], cwd=root, env=env, check=True, capture_output=True)

  root, work = tmp_path / "repo", tmp_path / "w"
  root.mkdir()
  (root / "a.py").write_text("one")
  with pytest.raises(ConfigError, match="no git checkout"):
    code.copied(work, root)
  git("init", "-q"), git("add", "a.py"), git("commit", "-qm", "x")
  first = code.copied(work, root)
  code.write(first, root)
  (root / "a.py").write_text("two")
  (root / "new.py").write_text("three")
  assert not code.tracked("new.py", root)
  git("add", "new.py")
  second = code.copied(work, root)
  code.write(second, root)
  assert second.commit.startswith(first.commit + "+")
  assert Path(first.folder, "a.py").read_text() == "one"
  assert Path(second.folder, "a.py").read_text() == "two"
  assert Path(second.folder, "new.py").read_text() == "three"
  with pytest.raises(ConfigError, match="commit and push"):
    code.committed(code.cloned("https://x", root), root)
  # Nor what nobody pushed; of an address that is no remote of it git knows nothing.
  git("commit", "-qam", "y"), git("init", "-q", "--bare", "../bare.git")
  git("remote", "add", "origin", str(tmp_path / "bare.git"))
  with pytest.raises(ConfigError, match="bare.git is a folder here, .*repository=URL"):
    code.committed(code.cloned("", root), root)
  git("remote", "set-url", "origin", f"file://{tmp_path}/bare.git")
  code.committed(code.cloned("https://x", root), root)
  with pytest.raises(ConfigError, match="bare.git has commit .*: git push"):
    code.committed(code.cloned("", root), root)
  git("push", "-q", "origin", "HEAD")
  code.committed(code.cloned("", root), root)


def test_what_is_named_from_this_folder_is_found_by_jobs(machine, study, monkeypatch):
  """By the command line or in a config; what is in the code keeps its path."""
  toy = study.with_name("toy.py")
  toy.write_text(toy.read_text().replace("steps=4", "init=c.Init('a/run'), steps=4"))
  mine = {"tokenizer.path": "configs/tokenizers/shapes32-vq"}
  mine |= {"data.mixture": ("m", "/n", "gs://b/o"), "text.path": "configs/none"}
  mine |= {"data.weights": (1, 1, 1)}
  monkeypatch.chdir(study.parent)

  def of(engine, **more):
    return machine.order(engine, only="dr1", overrides=mine | more)

  asked = of("slurm", **{"data.cache": "caches/x"})
  (stage,) = asked.stages(machine.workdir)
  changed = {k: v for k, v in stage.overrides.items() if mine.get(k) != v}
  here = str(study.parent)
  assert changed == {
    "data.cache": f"{here}/caches/x",
    "data.mixture": (f"{here}/m", "/n", "gs://b/o"),
    "init.workdir": f"{here}/a/run",
    "text.path": f"{here}/configs/none",
  }
  # Names of caches do not depend on it.
  data = of("slurm").stages(machine.workdir)[0]
  assert data.id in {s.id for s in plan(study, machine.workdir, overrides=mine)}
  with pytest.raises(ConfigError, match="'data.cache' is 'caches/x', a path from this"):
    of("gke", **{"data.cache": "caches/x"}).stages(machine.workdir)
