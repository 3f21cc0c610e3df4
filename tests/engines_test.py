"""Schedulers: what is rendered for them, and sweeps on stand-ins of their commands.

`python -m tests.engines_test` writes the golden files anew.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from fluid import files
from fluid.errors import ConfigError
from launch import (
  code,
  engines,
  errors,
  hardware,
  logs,
  order,
  retry,
  status,
  stop,
  sweep,
  view,
)
from launch.plan import plan
from launch.remote import Remote
from launch.spec import Code, RunSpec
from tests import schedulers
from tests.schedulers import FAKE

GOLDENS = Path(__file__).parent / "data/launch"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
IMAGE = f"registry/fluid@sha256:{'0' * 64}"
OPTIONS = {
  "slurm": {
    "setup": "source /shared/venv/bin/activate",
    "partition": "gpu",
    "exclusive": "",
  },
  "gke": {"image": IMAGE, "claim": "work", "queue": "team"},
  "tpu_vm": {"zone": "us-east5-a", "repository": "https://host/fluid.git"},
  "skypilot": {
    "repository": "https://host/fluid.git",
    "gpu": "H100",
    "mount": "/data=gs://bucket",
  },
}
CODES = {
  "slurm": Code(COMMIT, folder=f"/shared/w/code/{COMMIT}"),
  "gke": Code(COMMIT, image=IMAGE),
  "tpu_vm": Code(COMMIT, repository="https://host/fluid.git"),
  "skypilot": Code(COMMIT, repository="https://host/fluid.git"),
}
# What every golden file has: one host, many, and several slices where there are.
MACHINES = {
  "slurm": ("cpu:1x1", "gpu:4x8", "cpu:2x2"),
  "gke": ("v5p:2x2x1", "v5p:4x4x8 x 2", "v6e:4x8 spot", "gpu:2x8"),
  "tpu_vm": ("v5e:2x2", "v5p:2x4x4 x 2 spot"),
  "skypilot": ("v5e:4x4 spot", "gpu:2x8 spot"),
}


def spec(engine: str, machine: str) -> RunSpec:
  argv = ("python", "-m", "fluid.train", "--config=configs/toy.py:size=xs",
          "--workdir=/shared/w/runs/xs a")  # fmt: skip
  env = {"FLUID_COMMIT": COMMIT}
  where = hardware.parse(machine)
  return RunSpec("toy", "run/xs a", argv, env, "/shared/w", where, CODES[engine])


def rendered(engine: str) -> str:
  made = engines.remote(engine, OPTIONS[engine])
  out = []
  for machine in MACHINES[engine]:
    one = spec(engine, machine)
    found = made.render(one)
    for path, text in found.files.items():
      out.append(f"# {machine}: {path}\n{text.rstrip()}")
    out.append(f"# submit: {json.dumps(found.submit)}")
    out.append(f"# logs: {json.dumps(made.logs(one.key, one.log, follow=False))}")
  return "\n".join(out) + "\n"


@pytest.mark.parametrize("engine", sorted(OPTIONS))
def test_what_is_rendered_stays(engine):
  assert rendered(engine) == (GOLDENS / f"{engine}.txt").read_text()


def test_jobsets_have_no_field_that_jobset_does_not_know(fixtures):
  schema = json.loads((fixtures / "launch/jobset_v1alpha2.schema.json").read_text())

  def strict(node):
    if isinstance(node, dict):
      if "properties" in node:
        node["additionalProperties"] = False
      for child in node.values():
        strict(child)
    elif isinstance(node, list):
      for child in node:
        strict(child)

  strict(schema)
  engine = engines.remote("gke", OPTIONS["gke"])
  for machine in MACHINES["gke"]:
    manifest = engine.manifest(spec("gke", machine))
    jsonschema.validate(manifest, schema)
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    pod["containers"][0]["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
      jsonschema.validate(manifest, schema)


def test_skypilot_takes_its_tasks():
  sky = pytest.importorskip("sky")
  engine = engines.remote("skypilot", OPTIONS["skypilot"])
  for machine in MACHINES["skypilot"]:
    sky.Task.from_yaml_config(engine.task(spec("skypilot", machine)))


def test_shell_scripts_are_shell(tmp_path):
  for engine in ("slurm", "tpu_vm"):
    for machine in MACHINES[engine]:
      made = engines.remote(engine, OPTIONS[engine])
      for text in made.render(spec(engine, machine)).files.values():
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@pytest.mark.parametrize(
  "text, chips, hosts, accelerator",
  [
    ("v5p:4x4x4", 64, 16, "v5p-128"),
    ("v5p:4x4x8 x 2", 256, 64, "v5p-256"),
    ("v5e:4x8", 32, 8, "v5litepod-32"),
    ("v6e:16x16 spot", 256, 64, "v6e-256"),
    ("v5e:1x1", 1, 1, "v5litepod-1"),
    ("gpu:4x8", 32, 4, None),
    ("cpu:2x3", 2, 2, None),
  ],
)
def test_hardware_is_read_and_written(text, chips, hosts, accelerator):
  found = hardware.parse(text)
  assert str(found) == text and (found.chips, found.hosts) == (chips, hosts)
  assert found.tpu is None or found.accelerator == accelerator


def test_a_key_names_one_thing_and_is_a_name():
  one = spec("gke", "v5p:2x2x1")
  assert one.key == spec("gke", "v5p:2x2x1").key != spec("gke", "v5p:2x2x2").key
  assert one.key.startswith("toy-run-xs-a-") and len(one.key) <= 40


@pytest.fixture
def machine(study, tmp_path, monkeypatch):
  """A sweep on stand-ins: `submit()`, the folder, and how its stages are to end."""
  env = schedulers.install(tmp_path / "bin", tmp_path / "state")
  for key, value in env.items():
    monkeypatch.setenv(key, value)
  monkeypatch.setattr(code, "_state", lambda root: (COMMIT, "HEAD"))
  monkeypatch.setattr(
    code, "write", lambda c: Path(c.folder).mkdir(parents=True, exist_ok=True)
  )
  (tmp_path / "fake.py").write_text(FAKE)

  class Machine:
    workdir = tmp_path / "w"
    modes: dict[str, str] = {}
    state = tmp_path / "state"

    def build(self, stage):
      mode = self.modes.get(stage.id.split("-")[0], "ok")
      return ["python", str(tmp_path / "fake.py"), str(stage.folder), mode]

    def order(self, engine, **changes):
      own = {"gke": {"mount": str(tmp_path)}}
      own |= {name: {"setup": "true"} for name in ("slurm", "skypilot", "tpu_vm")}
      options = OPTIONS[engine] | own.get(engine, {})
      where = "cpu:1x1" if engine in ("slurm", "gke", "skypilot") else "v5e:1x1"
      return order.Order(str(study), engine, where, options=options, **changes)

    def submit(self, engine, **changes):
      asked = self.order(engine, **changes)
      return sweep.submit(asked, self.workdir, build=self.build)

    def until(self, engine, done, seconds=120):
      """Submits again until the states are as wanted."""
      end = time.monotonic() + seconds
      while True:
        result = self.submit(engine)
        if done(found := self.states()):
          return result, found
        assert time.monotonic() < end, found
        time.sleep(0.3)

    def states(self):
      records = json.loads(files.read_text(self.workdir / "sweep.json"))
      return {f"{r['kind']}/{r['name'].split('-')[0]}": r["status"] for r in records}

    def begins(self, name, seconds=60):
      """Waits for a job to do something: its scheduler says before that it runs."""
      end = time.monotonic() + seconds
      while name not in self.starts() and time.monotonic() < end:
        time.sleep(0.05)

    def starts(self):
      return {
        p.parent.name: int(p.read_text() or 0) for p in self.workdir.glob("*/*/starts")
      }

  yield Machine()
  schedulers.stop_all(tmp_path / "state")


ENGINES = ("slurm", "gke", "skypilot", "tpu_vm")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sweep_ends_with_each_run_as_it_should(machine, engine, capfd, monkeypatch):
  machine.modes |= {"run/dr2": "preempted", "run/cr1": "hang"}
  if engine != "tpu_vm":  # Its machines say how they ended, which has no stand-in.
    machine.modes["run/dr1"] = "fail"
  going = lambda s: s.get("run/dr2") == "finished" and s["run/cr1"] == "running"
  machine.until(engine, going)
  argv = ["--workdir", str(machine.workdir)]
  monkeypatch.setattr(order.Order, "specs", _with(machine.build))
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
  monkeypatch.setattr(order.Order, "specs", _with(machine.build))
  hiccups.write_text("2")
  assert status.main(argv) == 0
  hiccups.write_text("3")
  with pytest.raises(ConfigError, match="^squeue refuses: error: Unable to contact"):
    status.main(argv)


GCLOUD = """#!/bin/sh
for last; do :; done
name=$HERE/$(basename "$last")
case "$1 $2" in
"storage cat") cat "$name" ;;
"storage cp") cat > "$name.new"; mv "$name.new" "$name" ;;
*) touch "$HERE/deleted" ;;
esac
"""


@pytest.mark.parametrize("bucket", [False, True])
def test_a_tpu_machine_says_how_it_ended(tmp_path, bucket):
  """And keeps what was printed, each time: journald dies with a spot machine."""
  made = engines.remote("tpu_vm", OPTIONS["tpu_vm"])
  workdir = "gs://bucket/w" if bucket else str(tmp_path)
  where = dataclasses.replace(spec("tpu_vm", "v5e:2x2"), workdir=workdir)
  (script,) = made.render(where).files.values()
  after = script.split("<<'AFTER'\n")[1].split("\nAFTER\n")[0]
  log, end = Path(where.log), Path(where.exit)
  if bucket:
    log, end = tmp_path / log.name, tmp_path / end.name
  log.parent.mkdir(exist_ok=True), end.parent.mkdir(parents=True, exist_ok=True)
  for name, text in (
    ("journalctl", '#!/bin/sh\necho "$*" "$EXIT_STATUS"'),
    ("curl", "#!/bin/sh\necho $WORKER"),
    ("gcloud", GCLOUD),
  ):
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)

  def ends(code, worker):
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "EXIT_STATUS": code}
    env |= {"WORKER": worker, "INVOCATION_ID": "i", "HERE": str(tmp_path)}
    subprocess.run(["bash", "-c", after], env=env, check=True)

  def left():
    return end.exists(), (tmp_path / "deleted").exists()

  ends("3", "1")
  assert not log.exists() and left() == (False, False)
  ends("TERM", "0"), ends("75", "0")
  assert left() == (False, False)
  ends("3", "0")
  for never in ("1", "127", "128"):  # No code, no Python.
    assert re.search(rf"RestartPreventExitStatus=.*\b{never}\b", script)
    (tmp_path / "deleted").unlink()
    ends(never, "0")
    assert left() == (True, True)
  ends("3", "0")
  lines = log.read_text().splitlines()
  want = ["TERM", "75", "3", "1", "127", "128", "3"]
  assert [x.split()[-1] for x in lines] == want
  assert all("_SYSTEMD_INVOCATION_ID=i" in x for x in lines) and left() == (True, True)
  assert json.loads(end.read_text()) == {"code": 3, "state": "RUNNING"}


STUBS = {
  "sleep": "",
  "git": """
[ -e $HERE/clones ] || exit 128
[ $1 = clone ] && mkdir $3 && cp -r $ROOT/launch $3/""",
  "uv": """
echo "$@" >> said
[ $1 = venv ] && mkdir -p .venv/bin && echo 'echo 3.11 "$@"' > .venv/bin/python
echo PATH=$PWD/.venv/bin:$PATH > .venv/bin/activate
chmod +x .venv/bin/python""",
}


def test_a_tpu_machine_makes_its_python_or_gives_up(tmp_path):
  where = dataclasses.replace(spec("tpu_vm", "v5e:2x2"), workdir=str(tmp_path / "w"))
  made = engines.remote("tpu_vm", OPTIONS["tpu_vm"]).render(where)
  (script,) = made.files.values()
  fatal = re.search(r'RestartPreventExitStatus="(.*?)"', script)[1].split()
  run = script.split("<<'RUN'\n")[1].split("\nRUN\n")[0]
  run = run.replace("/opt/fluid", str(tmp_path))
  (tmp_path / "bin").mkdir()
  for name, text in STUBS.items():
    (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n:\n")
    (tmp_path / "bin" / name).chmod(0o755)
  env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HERE": str(tmp_path)}
  env["ROOT"] = str(code.ROOT)

  def start():
    return subprocess.run(["bash", "-c", run], env=env, capture_output=True, text=True)

  assert str(start().returncode) in fatal  # Nothing to clone.
  (tmp_path / "clones").touch()
  for _ in range(2):
    done = start()
    assert done.stdout.startswith("3.11 -m fluid.train"), done.stderr
  said = (tmp_path / "code/said").read_text().splitlines()
  (tmp_path / "bin/uv").write_text("exit 32")  # As a mount that fails.
  assert str(start().returncode) in fatal
  assert [x.split()[0] for x in said] == ["venv", "pip", "pip"]
  assert said[-1].endswith(" -r requirements-tpu.txt")


def _with(build):
  """The argv of fake stages for commands that have no seam for it."""
  original = order.Order.specs
  return lambda self, stages, workdir, engine, _=None: original(
    self, stages, workdir, engine, build
  )


def test_a_call_for_other_runs_leaves_the_first_in_sight(machine, monkeypatch):
  machine.modes |= {"run/dr1": "fail", "run/cr1": "hang"}
  monkeypatch.setattr(order.Order, "specs", _with(machine.build))
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


def test_a_killed_submission_is_found_again(machine):
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
  with pytest.raises(ConfigError, match="study.py has the same name: choose another"):
    sweep.submit(asked, machine.workdir, build=machine.build)
  # Another engine, or a changed sweep, is no second job in the same folder.
  with pytest.raises(ConfigError, match="run/dr1 is running on slurm as study-run-dr1"):
    machine.submit("gke")


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
  code.committed(code.cloned("https://x", root), root)
  with pytest.raises(ConfigError, match="bare.git has commit .*: git push"):
    code.committed(code.cloned("", root), root)
  git("push", "-q", "origin", "HEAD")
  code.committed(code.cloned("", root), root)


@pytest.mark.parametrize(
  "engine, where, options, said",
  [
    ("slurm", "v5p:4x4", {}, "'v5p:4x4' does not exist: v5p slices are 2x2x1"),
    ("slurm", "v5p:2x2x1", {}, "Slurm has no TPUs"),
    ("slurm", "h100:8", {}, "topology 'h100:8' is unknown"),
    ("slurm", "", {}, "says nothing of its hardware: --topology"),
    ("slurm", "cpu:3x1", {}, "batch 2 in 1 microbatches does not divide by 3"),
    ("slurm", "cpu:1x1", {"no such": "x"}, "sbatch has no such option"),
    ("gke", "v5e:1x1", {}, "--set image"),
    ("gke", "v5e:1x1", {"image": "fluid:latest"}, "has no digest"),
    ("gke", "v5e:1x1", {"clame": "x"}, "--set clame: --on gke knows image"),
    ("skypilot", "v5p:2x2x1 x 2", {}, "SkyPilot has no multislice"),
    ("skypilot", "cpu:1x1 spot", {"mount": "/=gs://b"}, ": --workdir gs://b/"),
    ("skypilot", "cpu:2x1", {"mount": "/=gs://b"}, "checkpoints with it"),
    ("tpu_vm", "cpu:1x1", {"zone": "z"}, "tpu_vm has TPUs"),
    ("tpu_vm", "v5e:1x1", {}, "needs --set zone=ZONE"),
  ],
)
def test_what_cannot_be_submitted_is_one_line(
  machine, study, engine, where, options, said
):
  if engine == "gke" and "clame" not in options:
    options = options | {"claim": "c"}
  elif engine in ("skypilot", "tpu_vm"):
    options = options | {"repository": "https://host/fluid.git", "setup": "true"}
  changes = {"mesh.data": -1} | ({} if where == "cpu:3x1" else {"batch": 8})
  asked = order.Order(str(study), engine, where, options=options, overrides=changes)
  with pytest.raises(ConfigError) as error:
    sweep.submit(asked, machine.workdir)
  assert said in str(error.value) and "\n" not in str(error.value)
  assert not (machine.workdir / "sweep.json").exists()


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


def test_an_engine_that_is_not_there_or_refuses_is_one_line(machine, monkeypatch):
  monkeypatch.setenv("FAKE_REFUSES", "1")
  with pytest.raises(ConfigError, match="^sbatch refuses: .*Invalid account$"):
    machine.submit("slurm")
  monkeypatch.setattr(order.Order, "specs", _with(machine.build))
  with pytest.raises(ConfigError, match="^run/dr1 is waiting: it has not been subm"):
    logs.main(["dr1", "--workdir", str(machine.workdir)])
  monkeypatch.setenv("PATH", "/nowhere")
  with pytest.raises(ConfigError, match="needs the command squeue, which is not inst"):
    machine.submit("slurm")


@pytest.mark.parametrize(
  "command, where, said",
  [
    ("launch.sweep", "gs://b/x", "mount the bucket"),
    ("launch.sweep --on=slurm --topology=cpu:1x1", "gs://b/x", "mount the bucket"),
    ("launch.sweep --on=gke", "s3://b/x", "mount what is elsewhere"),
    ("launch.status", "s3://b/x", "mount what is elsewhere"),
  ],
)
def test_a_folder_that_is_an_address_is_refused(study, command, where, said):
  argv = [sys.executable, "-m", *command.split(), "--workdir", where]
  argv += ["--config", str(study)] if "sweep" in command else []
  done = subprocess.run(argv, capture_output=True, text=True, cwd=code.ROOT)
  assert done.returncode == 2 and done.stderr.startswith(f"error: --workdir is {where}")
  assert said in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("flags, said", [
  (["--watch"], "--watch is of a scheduler"),
  (["--on=slurm", "--topology=cpu:1x1", "--jobs=2"], "--jobs is of this machine"),
])  # fmt: skip
def test_a_flag_that_would_do_nothing_is_refused(study, tmp_path, flags, said):
  with pytest.raises(ConfigError, match=said):
    sweep.main(["--config", str(study), "--workdir", str(tmp_path / "w"), *flags])


def test_ctrl_c_is_no_traceback(capsys):
  def main():
    raise KeyboardInterrupt

  with pytest.raises(SystemExit, match="130"):
    errors.end(main)
  assert capsys.readouterr().err == "interrupted\n"


def test_where_nothing_was_begun_there_is_nothing_to_say(tmp_path):
  with pytest.raises(ConfigError, match="no sweep in .*launch.sweep --workdir"):
    status.main(["--workdir", str(tmp_path)])


def test_hardware_is_of_the_stage(study, tmp_path):
  text = study.read_text().replace(
    "overrides={}", "overrides={}, hardware={'run': 'v5e:1x1', 'data': 'cpu:1x1'}"
  )
  study.write_text(
    text.replace(
      "overrides={'", "hardware='v5p:2x2x1', overrides={'mesh.data': -1, 'batch': 4, '"
    )
  )
  stages = {
    s.id.split("-")[0]: str(s.hardware) for s in plan(study, tmp_path, topology="")
  }
  assert stages["run/dr1"] == "v5e:1x1" and stages["data/shapes"] == "v5p:2x2x1"
  assert stages["run/dr2"] == stages["run/cr1"] == "v5p:2x2x1"


if __name__ == "__main__":
  for name in OPTIONS:
    (GOLDENS / f"{name}.txt").write_text(rendered(name))
