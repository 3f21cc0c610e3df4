"""What cannot be submitted, or does nothing, is one line."""

import subprocess
import sys

import pytest

from fluid.errors import ConfigError
from launch import code, engines, errors, logs, order, status, sweep
from tests.machines import specs_with


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


def test_an_engine_that_is_not_there_or_refuses_is_one_line(machine, monkeypatch):
  monkeypatch.setenv("FAKE_REFUSES", "1")
  with pytest.raises(ConfigError, match="^sbatch refuses: .*Invalid account$"):
    machine.submit("slurm")
  monkeypatch.setattr(order.Order, "specs", specs_with(machine.build))
  with pytest.raises(ConfigError, match="^run/dr1 is waiting: it has not been subm"):
    logs.main(["dr1", "--workdir", str(machine.workdir)])
  monkeypatch.setenv("PATH", "/nowhere")
  with pytest.raises(ConfigError, match="needs the command squeue, which is not inst"):
    machine.submit("slurm")


LOGGED_OUT = """
ERROR: (gcloud.compute.tpus.queued-resources.list) You do not have an active account.
Please run:

  $ gcloud auth login

to obtain new credentials.
"""
NO_ACCOUNT = (
  "sbatch: error: Invalid account\nsbatch: error: Batch job submission failed"
)


@pytest.mark.parametrize(
  "said, line",
  [
    (
      LOGGED_OUT,
      "ERROR: .* active account. Please run: \\$ gcloud auth login to obta.*",
    ),
    (NO_ACCOUNT, "sbatch: error: Batch job submission failed"),
    ("", "no output"),
  ],
)
def test_what_a_command_says_is_one_line(said, line):
  made = engines.remote("tpu_vm", {"zone": "z"})
  with pytest.raises(engines.Refused, match=f"^sh refuses: {line}$"):
    made.call(["sh", "-c", 'printf "%s" "$1" >&2; exit 1', "sh", said])


def test_a_reader_that_has_enough_is_no_error(study, tmp_path):
  sweep = f"{sys.executable} -m launch.sweep --config {study} --workdir {tmp_path}/w"
  script = f"set -o pipefail; {sweep} --dry-run | true"
  done = subprocess.run(["bash", "-c", script], cwd=code.ROOT, capture_output=True)
  assert (done.returncode, done.stderr) == (141, b"")


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
