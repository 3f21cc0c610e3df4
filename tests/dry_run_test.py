"""What launch.sweep says before it does anything, and what it refuses by then."""

import dataclasses
import io
import time
import types

import pytest
from rich.console import Console

from fluid import files, flops, models, remote
from fluid.errors import ConfigError
from launch import cost, engines, progress, status, sweep
from launch.entries import Entry
from launch.order import Order
from launch.plan import plan
from tests.conftest import ROOT

IMAGE = f"image=registry/fluid@sha256:{'0' * 64}"
LADDER = ROOT / "configs/sweeps/fig5_size_ladder.py"


@pytest.fixture
def away(monkeypatch):
  """No bucket is within reach, and nobody asks for one."""

  def asked(url):
    raise AssertionError(f"{url} was asked for")

  monkeypatch.setattr(remote, "opened", asked)


def dry(*argv):
  return sweep.main(["--dry-run", "--config", *map(str, argv)])


def test_a_bucket_need_not_be_there_yet(away, capsys):
  begun = time.process_time()
  assert dry(LADDER, "--workdir=gs://b/x/", "--on=gke", "--set", IMAGE) == 0
  assert time.process_time() - begun < 5
  out = capsys.readouterr().out
  assert out.count("\n# run/") == 24 and "# gs://b/x/jobs/discrete-raster-3.1B" in out
  assert "(to do)" not in out
  assert out.splitlines()[-1].startswith("gs://b/x was not looked at")


def test_nor_one_with_a_tokenizer(away, study, tmp_path, capsys):
  argv = (study, f"--workdir={tmp_path}/w", "--override=tokenizer.path=gs://b/vq")
  assert dry(*argv) == 0
  assert "# run/dr1 (to do)" in capsys.readouterr().out


def test_images_lie_where_machines_have_them(away):
  """And not in a bucket, as no source but TFDS's would read them there."""
  argv = (LADDER, "--workdir=gs://b/x", "--on=gke", "--set", IMAGE)
  for path, said in (
    ("gs://b/images", "is gs://b/images, and has to lie on a file system here; mount"),
    ("images", "is 'images', a path from this folder, where jobs do not start: name"),
  ):
    with pytest.raises(ConfigError, match=f"^config key 'data.source.path' {said}"):
      dry(*argv, f"--override=data.source.path={path}")
  emoji = (LADDER.with_name("iconify_study.py"), *argv[1:], "--topology=v5e:1x1")
  with pytest.raises(ConfigError, match=r"source.path' is 'runs/ic.* as they have it$"):
    dry(*emoji)
  assert dry(*argv, "--override=data.source.path=/mnt/images") == 0
  with pytest.raises(ConfigError, match="name it from / as they .* or as gs://...$"):
    dry(*argv, "--override=data.cache=caches/x")


@pytest.mark.parametrize(
  "where, more, said",
  [
    # What is recommended for a size does not hide what the caller says.
    ("", {"mesh.fsdp": 7}, "mesh data -1, fsdp 7, .* takes 7 devices"),
    ("v5e:2x2", {}, "10.5B' does not fit v5e:2x2: its state alone takes 44 GB of a"),
    (
      "v5e:4x4",
      {"mesh.fsdp": 1, "mesh.data": -1},
      "does not fit v5e:4x4: its state alone",
    ),
    ("v5p:2x2x4 x 3", {}, "batch 2048 in 1 microbatches does not divide by 48"),
  ],
)
def test_a_slice_that_is_too_small_is_refused(away, where, more, said):
  options = dict([IMAGE.split("=", 1)])
  with pytest.raises(ConfigError, match=said):
    Order(str(LADDER), "gke", where, overrides=more, options=options).stages(
      files.place("gs://b/x", "--workdir"), look=False
    )


def test_of_runs_that_are_not_chosen_nothing_has_to_fit(tmp_path):
  order = Order(str(LADDER), "slurm", "gpu:1x4", only="*-166M")
  assert len(order.stages(tmp_path)) == 8
  with pytest.raises(ConfigError, match="batch 2048 in 1 microbatches"):
    Order(str(LADDER), "slurm", "gpu:1x3", only="*-166M").stages(tmp_path)


@pytest.mark.parametrize(
  "engine, options, said",
  [
    ("gke", {}, "--workdir gs://BUCKET/FOLDER, or --set claim=NAME of a"),
    ("tpu_vm", {"zone": "z"}, "gs://BUCKET/FOLDER, or --set setup='mount ...; . laun"),
    ("skypilot", {}, "or --set mount=PATH=gs://BUCKET or --set setup="),
    ("skypilot", {"mount": "/data=gs://b"}, "needs a work folder that outlives its"),
  ],
)
def test_a_folder_that_machines_do_not_see_is_refused(
  study, tmp_path, engine, options, said
):
  with pytest.raises(ConfigError, match=said):
    Order(str(study), engine, "v5e:1x1", options=options).stages(tmp_path)


@pytest.mark.parametrize("path", ["", "gs://", "gs:///x", "S3://b/x"])
def test_what_is_no_folder_is_refused(path):
  with pytest.raises(ConfigError, match=f"^--workdir is ({path}:|empty;)"):
    files.place(path, "--workdir")


@pytest.mark.parametrize("option", ["job-name", "output", "nodes", "ntasks"])
def test_what_the_launcher_says_to_slurm_is_its_own(option):
  with pytest.raises(ConfigError, match=f"--set {option}: that is the launcher's"):
    engines.remote("slurm", {option: "1"})


SYNTAX = "def sweep(:\n  pass"
SWEEPS = [
  (SYNTAX, "s.py, line 1: SyntaxError: invalid syntax"),
  ("import absent", "s.py, line 1: ModuleNotFoundError: No module named 'absent'"),
  ("def sweep():\n  yield 1 / 0", "s.py, line 2: ZeroDivisionError: division by zero"),
  ("def sweep():\n  open('/no/file')", "s.py, line 2: FileNotFoundError: .*'/no/file'"),
  ("sweep = [1]", "has no function sweep()"),
  ("def sweep():\n  pass", "s.py yields no runs"),
  ("def sweep():\n  yield 'x'", "s.py yields 'x': it takes dict.name="),
  ("def sweep():\n  yield dict(name=5, config='')", "'name' of 5 is 5; it takes str"),
  ("def sweep():\n  yield dict(name='a', config=5)", "'config' of 'a' is 5; it takes"),
  (
    "def sweep():\n  yield dict(name='a', config='', overrides=[1])",
    r"'overrides' of 'a' is \[1\]; it takes dict",
  ),
  (
    "def sweep():\n  yield dict(name='a', config='', hardware=8)",
    "'hardware' of 'a' is 8; it takes str | dict",
  ),
  ("def sweep():\n  yield dict(name='a', config=__file__)", "no function get_config()"),
  (
    "def get_config():\n  return {}['a']\n"
    "def sweep():\n  yield dict(name='a', config=__file__)",
    "s.py, line 2: KeyError: 'a'",
  ),
]


@pytest.mark.parametrize("text, said", SWEEPS)
def test_a_sweep_file_with_a_mistake_is_one_line(tmp_path, text, said):
  (tmp_path / "s.py").write_text(text)
  with pytest.raises(ConfigError, match=said) as error:
    plan(tmp_path / "s.py", tmp_path / "w")
  assert "\n" not in str(error.value)


def test_hardware_of_no_stage_is_named(study, tmp_path):
  study.write_text(study.read_text().replace("overrides={}", "hardware={'runs': 'x'}"))
  with pytest.raises(ConfigError, match="'hardware' of run 'dr1' .* stage 'runs'; sta"):
    plan(study, tmp_path, topology="cpu:1x1")


def test_nothing_is_printed_before_all_is_rendered(study, tmp_path, capsys):
  argv = (study, "--workdir=gs://b/x", "--on=gke", "--set", IMAGE, "--topology=cpu:1x2")
  with pytest.raises(ConfigError, match="a pod runs one process, not 2"):
    dry(*argv)
  assert capsys.readouterr().out == ""


def test_a_narrow_table_leaves_states_whole(capsys):
  blank = dict.fromkeys(("step", "loss", "images_per_s", "mfu", "goodput"))
  row = {"stage": "run/continuous-random-10.5B", "state": "interrupted", **blank}
  row |= {"eta_seconds": 3600, "restarts": 3, "note": "", "step": 4120, "steps": 10**6}
  Console(width=80).print(status.table([row | {"loss": 0.25}]))
  words = capsys.readouterr().out.split()
  assert {"interrupted", "4120/1000000", "0.2500", "1:00:00", "restarts"} <= set(words)
  long = f"exit status 2: error: no [b]{'x' * 200}"
  assert status.notes([row, row | {"state": "failed", "note": long}]) == [
    f"failed: run/continuous-random-10.5B: {long}"
  ]


@pytest.mark.parametrize("started, said", [(0.0, ""), (1.0, " after 1:01:01")])
def test_how_long_is_said_where_it_is_known(monkeypatch, started, said):
  """Of what a scheduler has it is not."""
  stage = types.SimpleNamespace(id="run/a", run=types.SimpleNamespace(steps=9))
  told = Entry(stage, "running", started=started)
  monkeypatch.setattr(progress, "PLAIN_SECONDS", -1)
  monkeypatch.setattr(progress.time, "time", lambda: 3662.0)
  console = Console(file=io.StringIO(), width=80)
  screen = progress.Screen(console=console)
  screen.update([told, Entry(stage, "queued")])
  lines = console.file.getvalue().splitlines()
  assert lines == [f"run/a: running{said}", "run/a: queued"]
  console.print(screen._table([told]))
  row = console.file.getvalue().splitlines()[-2]
  assert row.replace("│", " ").split() == ["a", "running", *said.split()[1:]]


def test_what_tuning_takes_at_least(capsys):
  guidance = ROOT / "configs/sweeps/guidance.py"
  stages = plan(guidance, "gs://b/x", topology="v5p", look=False)
  stage = next(s for s in stages if s.id == "tune/discrete-raster-369M")
  made = cost.made(stage, price=1.0)
  # 15 x 7 points by a 32nd of 512 images, half of them by twice as many, and so on.
  images = sum(p * 16 * 2**k for k, p in enumerate((105, 53, 27, 14, 7, 4)))
  assert f"{images:,} images" in made["basis"]
  # A token at a time, conditional and not: each reads all weights but the embeddings.
  run = stage.run
  run = dataclasses.replace(run, data=dataclasses.replace(run.data, cache=""))
  net = models.Net.of(run)
  each = made["chip_hours"] * 3600 * flops.PEAKS["TPU v5"] / images
  assert each / (2 * flops.forward(net)["total"]) == pytest.approx(1, abs=0.15)
  assert made["dollars"] == made["chip_hours"] and made["gigabytes"] == 0
