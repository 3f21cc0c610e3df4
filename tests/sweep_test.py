"""launch.sweep on fake stages: what is run, skipped, resumed, and said at the end."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from rich.console import Console

from configs import fluid as paper
from configs import sizes
from fluid import config, flops
from fluid.config import ConfigError
from fluid.durable.lock import AwayError
from fluid.evals.loss import LossConfig
from launch import cost, engines, entries, errors, recommended, retry, stop, sweep
from launch.plan import plan
from launch.progress import Screen, progress
from tests.schedulers import FAKE

ROOT = Path(__file__).parents[1]


@pytest.fixture
def execute(study, tmp_path):
  """Runs the study with fake stages; returns (exit status, printed text)."""
  (tmp_path / "fake.py").write_text(FAKE)
  signals = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

  def run(modes=None, only="", jobs=1):
    workdir = tmp_path / "w"
    workdir.mkdir(exist_ok=True)
    stages = plan(study, workdir)
    stages = sweep.choose(stages, only) if only else stages
    out = io.StringIO()
    console = Console(file=out)

    def build(stage):
      mode = (modes or {}).get(stage.id.split("-")[0], "ok")
      return [sys.executable, str(tmp_path / "fake.py"), str(stage.folder), mode]

    code = sweep.Sweep(
      stages, workdir, engines.make("local", jobs=jobs), build=build,
      screen=Screen(progress, console=console), poll_seconds=0.02,
    ).run()  # fmt: skip
    return code, out.getvalue()

  yield run
  for number, handler in signals.items():
    signal.signal(number, handler)


def statuses(tmp_path):
  records = json.loads((tmp_path / "w/sweep.json").read_text())
  return {f"{r['kind']}/{r['name'].split('-')[0]}": r["status"] for r in records}


def starts(tmp_path):
  return {
    p.parent.name.split("-")[0]: int(p.read_text())
    for p in (tmp_path / "w/runs").glob("*/starts")
  }


def test_a_preempted_stage_is_interrupted_and_goes_on(execute, tmp_path):
  code, _ = execute({"run/dr1": "preempted"})
  assert code == 75
  found = statuses(tmp_path)
  assert found.pop("run/dr1") == "interrupted" and set(found.values()) == {"finished"}
  assert execute({"run/dr1": "preempted"})[0] == 0
  assert statuses(tmp_path)["run/dr1"] == "finished" and starts(tmp_path)["dr1"] == 2


def test_runs_everything_then_skips_the_finished(execute, tmp_path):
  code, text = execute()
  assert code == 0 and set(statuses(tmp_path).values()) == {"finished"}
  assert "7 of 7 stages finished" in text and "loss 0.5000" in text
  assert "9 images/s" in text
  code, text = execute()
  assert code == 0 and starts(tmp_path) == {"dr1": 1, "dr2": 1, "cr1": 1}
  assert "run/cr1: finished (before)" in text


def test_goes_on_past_a_failure_and_says_so(execute, tmp_path):
  code, text = execute({"run/dr1": "fail"})
  assert code == 1
  assert statuses(tmp_path)["run/dr1"] == "failed"
  assert statuses(tmp_path)["run/dr2"] == statuses(tmp_path)["run/cr1"] == "finished"
  assert "failed: run/dr1: exit status 3: error: no luck" in text
  code, _ = execute()
  assert code == 0 and starts(tmp_path) == {"dr1": 2, "dr2": 1, "cr1": 1}


def test_runs_behind_a_failed_tokenizer_are_blocked(execute, tmp_path):
  code, text = execute({"tokenizer/vq": "fail"}, jobs=2)
  assert code == 1 and starts(tmp_path) == {"cr1": 1}
  assert statuses(tmp_path)["run/dr2"] == "blocked"
  assert "blocked: run/dr2: needs data/shapes-vq-" in text or (
    "blocked: run/dr2: needs tokenizer/vq-" in text
  )


def test_only_takes_what_the_chosen_runs_need(execute, tmp_path, study):
  code, _ = execute(only="cr*")
  assert code == 0 and starts(tmp_path) == {"cr1": 1}
  assert not list((tmp_path / "w/tokenizers").glob("vq*"))
  with pytest.raises(ConfigError, match="matches no run; runs: dr1, dr2, cr1"):
    sweep.choose(plan(study, tmp_path), "zz*")


def test_an_early_end_with_status_0_is_not_finished(execute, tmp_path, study):
  execute()
  study.write_text(study.read_text().replace("'model.trunk.layers': 3", "'steps': 8"))
  code, text = execute()
  assert code == 1 and "run/cr1: stopped before its last step" in text


def _is_from(study, tmp_path, **changes):
  """Writes config.json of run cr1 with some values changed: trunk__layers=9."""
  stage = plan(study, tmp_path / "w")[-1]
  changes = {k.replace("__", "."): v for k, v in changes.items()}
  tree = config.to_dict(config.replaced(stage.run, changes))
  (stage.folder / "config.json").write_text(json.dumps(tree))


OTHER = "run/cr1: finished with another config: "


def test_a_finished_run_of_another_config_is_named(execute, tmp_path, study):
  execute()
  _is_from(study, tmp_path, model__trunk__layers=9)
  code, text = execute()
  assert code == 1 and f"{OTHER}model.trunk.layers was 9, now 3" in text
  # Also one of the layout before.
  old = {"model": {"layers": 9, "size": "s"}, "batch": 2}
  (tmp_path / "w/runs/cr1/config.json").write_text(json.dumps(old))
  code, text = execute()
  assert code == 1 and f"{OTHER}model.trunk.layers was 9, now 3" in text
  old["model"]["layers"] = 3
  (tmp_path / "w/runs/cr1/config.json").write_text(json.dumps(old))
  assert execute()[0] == 0


def test_a_finished_run_may_differ_in_what_is_free(execute, tmp_path, study):
  execute()
  _is_from(
    study,
    tmp_path,
    model__trunk__remat="none",
    model__trunk__attention="xla",
    optim__max_skipped=5,
    init__workdir="/elsewhere",
    data__max_bad=0.5,
    data__workers=2,
    data__cache="/elsewhere/data",
    tokenizer__path="/elsewhere/tokenizer",
    mesh__fsdp=2,
    sample__guidance=1.5,
    evals={"loss": LossConfig()},
    keep=9,
    steps=2,
  )
  code, text = execute()
  assert code == 0 and "run/cr1: finished (before)" in text
  assert starts(tmp_path) == {"dr1": 1, "dr2": 1, "cr1": 1}


def test_a_finished_run_whose_config_cannot_be_read_ends_no_sweep(execute, tmp_path):
  execute()
  (tmp_path / "w/runs/cr1/config.json").write_text('{"model": {')
  (tmp_path / "w/runs/dr1/done.json").unlink()
  code, text = execute()
  assert code == 1 and starts(tmp_path)["dr1"] == 2
  assert "run/cr1" in text and "config.json is damaged" in " ".join(text.split())


def test_sigterm_reaches_the_child_and_the_next_call_resumes(study, tmp_path, execute):
  (tmp_path / "fake.py").write_text(FAKE)
  script = textwrap.dedent(f"""
    import sys
    from pathlib import Path
    from launch import cost, engines, recommended, sweep
    from launch.plan import plan
    w = Path({str(tmp_path / "w")!r}); w.mkdir()
    stages = plan({str(study)!r}, w)
    build = lambda s: [sys.executable, {str(tmp_path / "fake.py")!r}, str(s.folder),
                       'hang' if s.name == 'dr2' else 'ok']
    sys.exit(sweep.Sweep(stages, w, engines.make('local', jobs=1), build=build).run())
  """)
  process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
  marker = tmp_path / "w/runs/dr2/starts"
  end = time.monotonic() + 30
  while not marker.exists() and time.monotonic() < end:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=30) == 128 + signal.SIGTERM
  assert statuses(tmp_path)["run/dr2"] == "interrupted"
  assert statuses(tmp_path)["run/cr1"] == "waiting"
  code, _ = execute()
  assert code == 0 and starts(tmp_path) == {"dr1": 1, "dr2": 2, "cr1": 1}


def test_a_cache_without_all_splits_is_continued(execute, tmp_path):
  execute(only="cr*")
  (cache,) = (tmp_path / "w/data").iterdir()
  (cache / "metadata.json").write_text('{"splits": {"train": {}}}')
  (tmp_path / "w/runs/cr1/done.json").unlink()
  code, _ = execute(only="cr*")
  assert code == 0 and (cache / "starts").read_text() == "2"


def test_dry_run_prints_commands_and_writes_nothing(study, tmp_path, capsys):
  argv = ["--config", str(study), "--workdir", str(tmp_path / "w"), "--dry-run"]
  assert sweep.main(argv) == 0
  out = capsys.readouterr().out
  assert out.count("fluid.train") == 3 and out.count("fluid.tokenizers.train") == 2
  assert "# run/dr1 (to do)" in out and not (tmp_path / "w").exists()


def test_two_sweeps_do_not_share_a_workdir(study, tmp_path):
  (tmp_path / "w").mkdir()
  held = sweep.lock(tmp_path / "w")
  with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
    sweep.lock(tmp_path / "w")
  os.close(held)
  os.close(sweep.lock(tmp_path / "w"))


@pytest.mark.parametrize(
  "old, new, message",
  [
    ("'optim.lr'", "'optim.lrr'", "optim.lrr"),
    ("'optim.lr': 0.5", "'optim.lr': 'x'", "cannot override|optim.lr"),
    ("'dr2'", "'dr1'", "two runs named 'dr1'"),
    ("overrides", "override", "unknown key 'override'"),
    ("toy.py", "absent.py", "no such file"),
    ("toy.py", "w.md", "w.md is no Python file"),
    ("'dr1'", "'a/../../b c'", "named 'a/../../b c', which is no name of a folder"),
    ("'dr1'", "'..'", "named '..', which"),
    (
      "='dr1'",
      "='dr1', tune=('cfg', 3)",
      "'tune' of 'dr1' is .* two strings",
    ),
    ("def sweep", "def sweeps", "no function sweep"),
  ],
)
def test_a_wrong_sweep_file_is_refused(study, tmp_path, old, new, message):
  study.write_text(study.read_text().replace(old, new))
  (tmp_path / "w.md").touch()
  with pytest.raises(ConfigError, match=message):
    plan(study, tmp_path / "w")


def test_the_launcher_does_not_import_jax():
  code = "import sys, launch.sweep; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_what_a_sweep_takes_is_said_before(capsys):
  argv = ["--config", str(ROOT / "configs/sweeps/fig5_size_ladder.py")]
  argv += [
    "--workdir",
    "gs://bucket/fig5",
    "--on",
    "tpu_vm",
    "--set",
    "zone=z",
    "--dry-run",
  ]
  argv += ["--set", "repository=https://host/x"]
  begun = time.process_time()
  assert sweep.main(argv) == 0
  assert time.process_time() - begun < 5
  out = capsys.readouterr().out
  lines = [x.split() for x in out[out.index("run  ") :].splitlines()]
  runs = [x for x in lines if x[0].endswith(tuple(sizes.PAPER))]
  assert len(runs) == 24 and not any("?" in x for x in runs)
  assert out.count("queued-resources create") == 28  # Two tokenizers, two caches.
  # One of them by hand: steps, the compiler's seconds a step, chips, dollars.
  (one,) = [x for x in runs if x[0] == "continuous-random-1.1B"]
  report = recommended.reports()["1.1B continuous-random on v5p:4x4x4"]
  hours = 1_000_000 * report["estimate"]["compiler_seconds"] / 3600
  assert one[1:3] == ["v5p:4x4x4", "64"]
  found = [float(x.replace(",", "")) for x in one[3:7]]
  want = [
    hours,
    hours * 64,
    hours * 64 * cost.PRICES["v5p"],
    48 * report["params"] / 1e9,
  ]
  assert found == pytest.approx(want, rel=5e-3)
  assert "1.1B continuous-random on v5p:4x4x4, by compiler's model" in " ".join(one)
  assert "v5p $4.20 a chip-hour, on demand, by Google's list of 2025" in out
  # Tokenizers and caches: at the chips' peak, and what nobody can know.
  (vae,) = [x for x in lines if x[0].startswith("tokenizer/vae")]
  (cache,) = [x for x in lines if x[0].startswith("data/folder-vae")]
  tokenizer = config.from_config_dict(paper.get_config("tokens=continuous")).tokenizer
  images = tokenizer.steps * tokenizer.batch
  hours = flops.training(tokenizer, 256) * images / 459e12 / 4 / 3600
  assert float(vae[3].replace(",", "")) == pytest.approx(hours, abs=0.06)
  assert cache[3:7] == ["?"] * 4 and "how many there are is not said" in " ".join(cache)
  few = ["--override", "data.num_train=999000", "--override", "data.num_val=1000"]
  assert sweep.main([*argv, "--price", "0", *few]) == 0
  out = capsys.readouterr().out
  lines = [x.split() for x in out[out.index("run  ") :].splitlines()]
  assert "dollars: $0 a chip-hour, by --price" in out and "?" not in lines[1]
  (cache,) = [x for x in lines if x[0].startswith("data/folder-vae")]
  # A million records of mean and std, 256 x 16 x 2 bytes, and 128 x 4096 x 2 of T5.
  assert float(cache[6].replace(",", "")) == pytest.approx(1065, abs=1)


STOPPABLE = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
(folder / 'starts').write_text('1')
time.sleep(600)
"""


def test_any_stage_on_this_machine_can_be_stopped(study, tmp_path, capsys):
  """By name, though only runs lock their folders; the others go on."""
  (tmp_path / "fake.py").write_text(FAKE)
  (tmp_path / "stoppable.py").write_text(STOPPABLE)
  script = textwrap.dedent(f"""
    import sys
    from pathlib import Path
    from launch import engines, order, sweep
    w = Path({str(tmp_path / "w")!r}); w.mkdir()
    held, asked = sweep.lock(w), order.Order({str(study)!r})
    asked.save(w)
    def build(s):
      name = 'stoppable' if s.id.startswith('tokenizer/vq') else 'fake'
      return [sys.executable, f'{tmp_path}/{{name}}.py', str(s.folder), 'ok']
    engine = engines.make('local', jobs=1, lock=held)
    sys.exit(sweep.Sweep(asked.stages(w), w, engine, build=build).run())
  """)
  process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
  try:
    end = time.monotonic() + 60
    while not list(tmp_path.glob("w/tokenizers/vq*/starts")):
      assert time.monotonic() < end and process.poll() is None
      time.sleep(0.05)
    argv = ["--workdir", str(tmp_path / "w")]
    assert stop.main(["dr1", *argv]) == 0
    assert "run/dr1: does not run here" in capsys.readouterr().out
    assert stop.main(["tokenizer/vq*", *argv]) == 0
    assert "saves and ends" in capsys.readouterr().out
    assert process.wait(timeout=60) == 75
  finally:
    process.kill()
  found = statuses(tmp_path)
  assert found["tokenizer/vq"] == "interrupted" and found["run/cr1"] == "finished"
  assert retry.main(["cr1", *argv]) == 0
  assert capsys.readouterr().out.splitlines() == [
    "run/cr1 is finished: there is nothing to try again",
    "0 stages to try again: none",
  ]


TOLD = """
import pathlib, signal, sys, time
def fails(*_):
  print('error: no room')
  sys.exit(2)
told = {'dies': signal.SIG_DFL, 'stays': signal.SIG_IGN, 'fails': fails}
signal.signal(signal.SIGTERM, told[sys.argv[2]])
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""


@pytest.mark.parametrize(
  "does, status, note",
  [
    ("dies", "interrupted", "start the sweep again"),  # As while it still imports.
    ("stays", "interrupted", "was killed: it goes on from what it saved last"),
    ("fails", "failed", "exit status 2: error: no room"),
  ],
)
def test_how_a_stage_ends_that_is_told_to_is_said(study, tmp_path, does, status, note):
  (tmp_path / "told.py").write_text(TOLD)
  begun = tmp_path / "begun"
  script = textwrap.dedent(f"""
    import sys
    from pathlib import Path
    from launch import engines, sweep
    from launch.engines import local
    from launch.plan import plan
    local.GRACE, w = 1.0, Path({str(tmp_path / "w")!r})
    build = lambda s: [sys.executable, {str(tmp_path / "told.py")!r}, {str(begun)!r},
                       {does!r}]
    engine, stages = engines.make('local', jobs=1), plan({str(study)!r}, w)
    sys.exit(sweep.Sweep(stages, w, engine, build=build).run())
  """)
  process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
  end = time.monotonic() + 60
  while not begun.exists() and time.monotonic() < end:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=60) == 128 + signal.SIGTERM
  records = json.loads((tmp_path / "w/sweep.json").read_text())
  (found,) = [r for r in records if r["status"] != "waiting"]
  assert found["status"] == status and note in found["note"]


@pytest.mark.parametrize("error, code", [(ConfigError, 2), (AwayError, 75)])
def test_the_status_says_whether_the_same_command_may_go_on(error, code, capsys):
  def main():
    raise error("w is in use")

  with pytest.raises(SystemExit, match=f"^{code}$"):
    errors.end(main)
  assert capsys.readouterr().err == "error: w is in use\n"


SWEEPS = sorted(p.name for p in (ROOT / "configs/sweeps").glob("[a-z]*.py"))


def test_every_sweep_can_be_planned_and_no_device_is_touched():
  code = f"""
from jax._src import xla_bridge
from launch.plan import plan
for name in {SWEEPS}:
  stages = plan("configs/sweeps/" + name, "/nowhere")
  cells = sorted({{s.cell for s in stages if s.kind == "run"}})
  print(name, len([s for s in stages if s.kind == "run"]), *cells)
assert not xla_bridge._backends
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  found = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
  four = [f"{t}-{o}" for t in ("continuous", "discrete") for o in ("random", "raster")]
  assert found["quickstart.py"] == ["8", *four]
  assert found["toy_study.py"] == ["16", *four]
  assert found["toy_rates.py"] == ["32", *four]
  assert found["iconify_study.py"] == ["16", *four]


def test_the_last_line_is_the_programs_own(tmp_path):
  """Slurm adds lines of a status, of each task."""
  log = tmp_path / "log"
  slurm = "srun: error: n1: task 0: Exited with exit code 2\n"
  log.write_text(f"step 3\nerror: its disk is gone\n{slurm}{slurm}slurmstepd: x\n")
  assert entries.last_line(log) == "error: its disk is gone"
  log.write_text(slurm)
  assert entries.last_line(log) == slurm.strip()
  assert entries.last_line(tmp_path / "none") == ""
