"""Schedulers: what is rendered for them, and how machines begin and end.

`python -m tests.engines_test` writes the golden files anew.
"""

import dataclasses
import json
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest

from launch import code, engines, hardware
from launch.plan import plan
from launch.spec import Code, RunSpec
from tests.machines import COMMIT, IMAGE, OPTIONS

GOLDENS = Path(__file__).parent / "data/launch"
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
  assert (tmp_path / "starts").read_text() == "4\n"
  (tmp_path / "starts").write_text("101\n")  # The first, and a hundred more.
  done = start()
  assert done.returncode == 5 and "started again 100 times" in done.stdout
  assert not done.stderr and "5" in fatal
  assert [x.split()[0] for x in said] == ["venv", "pip", "pip"]
  assert said[-1].endswith(" -r requirements-tpu.txt")


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
