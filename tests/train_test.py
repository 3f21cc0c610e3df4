"""The loop: bitwise resume, one compilation, order of events, clear refusals."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from fluid import config, evals, files, models, text, train
from fluid.config import identity
from fluid.data import pipeline, records
from fluid.durable import checkpoint, compiled
from fluid.durable.workdir import WorkdirError
from fluid.errors import NO_PROGRESS, REQUEUE, exit_code
from fluid.parallel import preemption
from fluid.training import clocks, health, log
from tests import tiny
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  folder = tmp_path_factory.mktemp("cache")
  cache = tiny.cache(folder / "discrete")
  metadata = records.read_metadata(cache)
  metadata["splits"]["train"]["cut_captions"] = 5
  metadata["config"] = {"tokenizer.weights": "abc"}
  records.write_metadata(cache, metadata)
  (folder / "discrete/text.model").write_bytes(b"pieces")
  return tiny.with_cache(tiny.run(), cache)


def _lines(workdir):
  lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [x for x in lines if "train/loss" in x]


def test_a_cache_of_another_source_is_told(base, tmp_path, capsys):
  """Tokens are of one set, and images that samples are judged by of another."""
  cache = tiny.cache(tmp_path / "cache")
  metadata = records.read_metadata(cache)
  made = identity.of_cache(base) | {"data.source.kind": "coco", "data.num_val": 7}
  records.write_metadata(cache, metadata | {"config": made})
  (tmp_path / "cache/text.model").write_bytes(b"pieces")
  train.run(
    tiny.with_cache(dataclasses.replace(base, steps=1), cache), tmp_path / "run"
  )
  said = [
    line for line in capsys.readouterr().out.splitlines() if "prepared with" in line
  ]
  assert len(said) == 1 and "data.source.kind' is 'shapes', but" in said[0]
  assert "'coco': evaluations take captions and real images" in said[0]


def test_a_mixture_goes_on_as_it_was_and_no_other(base, tmp_path):
  other = tiny.cache(tmp_path / "other", rows=24)
  metadata = records.read_metadata(other) | {"config": {"tokenizer.weights": "abc"}}
  records.write_metadata(other, metadata)
  (tmp_path / "other/text.model").write_bytes(b"pieces")
  mixed = {"data.mixture": (base.data.cache, other), "data.weights": (0.75, 0.25)}
  cfg = config.replaced(base, mixed)
  train.run(cfg, tmp_path / "whole")
  train.run(dataclasses.replace(cfg, steps=3), tmp_path / "halves")
  for changes, match in (
    ({"data.weights": (1.0, 1.0)}, "another config: data.weights"),
    ({"data.mixture": (other, base.data.cache)}, "not those that this run began with"),
    ({"data.mixture": (), "data.weights": ()}, "another config: data.weights"),
  ):
    with pytest.raises(config.ConfigError, match=match):
      train.run(config.replaced(cfg, changes), tmp_path / "halves")
  train.run(cfg, tmp_path / "halves")
  for a, b in zip(_params(tmp_path / "whole", 6), _params(tmp_path / "halves", 6)):
    np.testing.assert_array_equal(a, b)
  assert _lines(tmp_path / "whole")[0]["data/cut_captions"] == 5


class _Begun(Exception):
  """Ends a run before its first step."""


@pytest.mark.parametrize(
  "steps, changes, said",
  [
    (6, {"ema": 0.5}, ""),  # 1.6 %
    (6, {"ema": 0.9}, "weights, which are judged, are 53% those of the start"),
    (100, {"ema": 0.9}, ""),
    (7, {"ema": 0.5, "warmup": 6}, ""),
    (6, {"ema": 0.5, "warmup": 6}, "'optim.warmup' is 6, but the run has 6 steps"),
  ],
)
def test_a_run_too_short_for_its_average_or_warm_up_is_told_so(
  base, tmp_path, monkeypatch, capfd, steps, changes, said
):
  def begin(*_args):
    raise _Begun

  monkeypatch.setattr(train, "_start", begin)
  changes = {f"optim.{k}": v for k, v in changes.items()}
  with pytest.raises(_Begun):
    train.run(config.replaced(base, changes | {"steps": steps}), tmp_path / "w")
  warnings = [x for x in capfd.readouterr().out.splitlines() if "warning" in x]
  assert len(warnings) == bool(said) and said in "".join(warnings)


def _config_of(name, make_one):
  """The config of an evaluator of these tests, as a row of EVALS."""

  class Config(evals.Evaluation):
    kind = name

    def make(self, net, context):
      return make_one(context)

  return Config


def _with_evals(cfg, **sections):
  tree = config.to_dict(cfg) | {"evals": sections}
  return config.from_config_dict(tree)


def _params(workdir, step):
  return jax.tree.leaves(checkpoint.restore_params(workdir, "raw", step)[0])


def test_six_steps_are_three_and_a_restart_and_three_and_compile_once(
  base, tmp_path, monkeypatch, caplog, capsys
):
  judged = []

  class Judge:
    def run(self, params, step, weights="ema"):
      judged.append(step)
      yield "val/loss", jax.tree.leaves(params)[0].sum()

  monkeypatch.setitem(evals.EVALS, "judge", _config_of("judge", lambda _: Judge()))
  monkeypatch.setattr(text, "load", lambda *_: None)
  cfg = _with_evals(base, judge={"every": 2, "raw": True})

  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    done = train.run(cfg, tmp_path / "whole")
  compiled = [m for m in caplog.messages if "Compiling jit(step)" in m]
  assert len(compiled) == 1
  assert {x["data/cut_captions"] for x in _lines(tmp_path / "whole")} == {5}
  assert judged == [2, 2, 4, 4, 6, 6]
  assert done["step"] == 6 and done["images_per_s"] > 0
  assert json.loads((tmp_path / "whole/done.json").read_text()) == done

  train.run(dataclasses.replace(cfg, steps=3), tmp_path / "halves")
  # What a run that was killed after step 4 would have left behind.
  with (tmp_path / "halves/metrics.jsonl").open("a") as f:
    f.write('{"step": 4, "time": 0, "train/loss": 1}\n{"step": 5, "ti')
  train.run(cfg, tmp_path / "halves")
  for a, b in zip(_params(tmp_path / "whole", 6), _params(tmp_path / "halves", 6)):
    np.testing.assert_array_equal(a, b)
  whole, halves = _lines(tmp_path / "whole"), _lines(tmp_path / "halves")
  assert [x["step"] for x in halves] == [1, 2, 3, 4, 5, 6]
  timeless = lambda row: {k: v for k, v in row.items() if not clocks.made(k)}
  assert {"train/loss", "train/grad_norm", "train/lr", "train/accuracy"} <= timeless(
    whole[0]
  ).keys()
  assert list(map(timeless, whole)) == list(map(timeless, halves))
  results = [
    json.loads(x)
    for x in (tmp_path / "halves/metrics.jsonl").read_text().splitlines()
    if "val/loss" in x
  ]
  assert [x["step"] for x in results] == [2, 3, 4, 6]
  assert all({"val/loss", "raw/val/loss"} <= set(x) for x in results)

  capsys.readouterr()
  train.run(cfg, tmp_path / "halves")
  assert "is finished: 6 steps" in capsys.readouterr().out
  described = json.loads((tmp_path / "whole/model.json").read_text())
  assert described["cell"] == "discrete-raster" and described["batch"] == 8
  # What fluid.load and tables of runs need to know is in the folder itself.
  assert described["identity"] == identity.digest(identity.identity(cfg))
  assert described["tokenizer_sha256"] == "abc"
  assert (tmp_path / "whole/text.model").read_bytes() == b"pieces"
  assert described["params"]["total"] == sum(
    a.size for a in _params(tmp_path / "whole", 6)
  )


def test_a_signal_in_an_evaluation_saves_at_once_and_the_evaluation_is_done_again(
  base, tmp_path, monkeypatch
):
  asked, judged = [4], []

  class Judge:
    def __init__(self, context):
      self.track = context.track

    def run(self, params, step, weights="ema"):
      for i in self.track(range(3), "judge", 3):
        if [step] == asked and i == 1:
          os.kill(os.getpid(), signal.SIGTERM)
          time.sleep(0.5)  # For the thread that listens.
          asked.clear()
      judged.append(step)
      yield f"val/{weights}", jax.tree.leaves(params)[0].sum()

  class Other(Judge):
    def run(self, params, step, weights="ema"):
      yield "val/other", step

  monkeypatch.setitem(evals.EVALS, "judge", _config_of("judge", Judge))
  monkeypatch.setitem(evals.EVALS, "other", _config_of("other", Other))
  monkeypatch.setattr(text, "load", lambda *_: None)
  cfg = _with_evals(base, other={"every": 2}, judge={"every": 2, "raw": True})
  cfg = dataclasses.replace(cfg, checkpoint_every=5)

  def results(workdir):
    rows = [json.loads(x) for x in (workdir / "metrics.jsonl").open()]
    return [{k: v for k, v in x.items() if k != "time"} for x in rows if "evals" in x]

  with pytest.raises(preemption.Preempted, match="SIGTERM after step 4 of 6"):
    train.run(cfg, tmp_path / "cut")
  assert checkpoint.restore_params(tmp_path / "cut")[1] == 4
  assert judged == [2, 2]
  assert [x["evals"] for x in results(tmp_path / "cut")] == ["other", "judge", "other"]
  train.run(cfg, tmp_path / "cut")
  assert judged == [2, 2, 4, 4, 6, 6]
  train.run(cfg, tmp_path / "whole")
  assert results(tmp_path / "cut") == results(tmp_path / "whole")

  # After the last step as well: what is not judged is not finished.
  asked.append(6)
  with pytest.raises(preemption.Preempted, match="after step 6 of 6"):
    train.run(cfg, tmp_path / "last")
  assert not (tmp_path / "last/done.json").exists()
  train.run(cfg, tmp_path / "last")
  assert results(tmp_path / "last") == results(tmp_path / "whole")


def test_where_time_is_short_a_save_under_way_is_the_last_one(
  base, tmp_path, monkeypatch
):
  cfg = dataclasses.replace(base, checkpoint_every=3)
  monkeypatch.setattr(preemption.Preemption, "since", 10.0)
  monkeypatch.setattr(checkpoint.Checkpoints, "busy", True)
  asked = iter([False, False, False, False, True])
  monkeypatch.setattr(
    preemption.Preemption, "reached", lambda self: _stopping(self, next(asked))
  )
  said = "after step 4 of 6, that of step 3 is saved"
  with pytest.raises(preemption.Preempted, match=said):
    train.run(cfg, tmp_path / "short", grace=10.0)
  assert checkpoint.restore_params(tmp_path / "short")[1] == 3
  asked = iter([False, True])  # With time enough.
  with pytest.raises(preemption.Preempted, match="after step 4 of 6, which is saved"):
    train.run(cfg, tmp_path / "short", grace=1e4)
  assert checkpoint.restore_params(tmp_path / "short")[1] == 4
  monkeypatch.setattr(checkpoint.Checkpoints, "busy", False)
  asked = iter([False, True])  # With nothing to lose.
  with pytest.raises(preemption.Preempted, match="after step 5 of 6, which is saved"):
    train.run(cfg, tmp_path / "short", grace=10.0)


def test_a_save_that_was_refused_is_not_asked_for_again(base, tmp_path, monkeypatch):
  class Judge:
    def run(self, params, step, weights="ema"):
      yield "val/loss", jax.tree.leaves(params)[0].sum()

  monkeypatch.setitem(evals.EVALS, "judge", _config_of("judge", lambda _: Judge()))
  monkeypatch.setattr(text, "load", lambda *_: None)
  cfg = _with_evals(base, judge={"every": 3})
  cfg = dataclasses.replace(cfg, checkpoint_every=4)
  busy, wait = [True], checkpoint.Checkpoints.wait

  def waited(self):
    busy.clear()
    wait(self)

  # Told to stop after the last step, where an evaluation is due and a save under way.
  asked = iter([False] * 7)
  reached = lambda self: _stopping(self, self.stopping or next(asked, True))
  with monkeypatch.context() as m:
    m.setattr(preemption.Preemption, "reached", reached)
    m.setattr(preemption.Preemption, "since", 10.0)
    m.setattr(checkpoint.Checkpoints, "busy", property(lambda self: bool(busy)))
    m.setattr(checkpoint.Checkpoints, "wait", waited)
    said = "after step 6 of 6, that of step 4 is saved"
    with pytest.raises(preemption.Preempted, match=said):
      train.run(cfg, tmp_path, grace=10.0)
  assert not busy and checkpoint.restore_params(tmp_path)[1] == 4
  assert not (tmp_path / "done.json").exists()
  assert train.run(cfg, tmp_path)["step"] == 6
  assert checkpoint.restore_params(tmp_path)[1] == 6


def test_all_the_time_of_a_run_that_is_requeued_has_a_cause(
  base, tmp_path, monkeypatch
):
  monkeypatch.setattr(clocks, "EVERY", 0.0)
  workdir, folders = tmp_path / "w", []

  @contextlib.contextmanager
  def kept(folder):
    folders.append(folder)
    yield

  def step(self, number, values, do=log.Log.step):
    do(self, number, values)
    if number == 6:
      raise RuntimeError("the machine is gone")

  monkeypatch.setattr(compiled, "kept", kept)
  began = time.time()
  with monkeypatch.context() as m, pytest.raises(RuntimeError, match="is gone"):
    m.setattr(log.Log, "step", step)
    train.run(base, workdir)
  account = json.loads((workdir / "goodput.json").read_text())
  assert account["until"] and account["seconds"]["compile"] > 0
  done = train.run(base, workdir)
  assert folders == [workdir, workdir]  # See compiled_test.
  account = json.loads((workdir / "goodput.json").read_text())
  seconds = account["seconds"]
  # Steps 4 and 5 were done before; the rest of the first start is beyond its account.
  assert seconds["redone"] > 0 and seconds["down"] > 0 and account["until"] is None
  assert sum(seconds.values()) == pytest.approx(time.time() - began, abs=1.0)
  assert done["goodput"] == pytest.approx(account["goodput"], abs=1e-2)
  for row in _lines(workdir):
    shares = {k: v for k, v in row.items() if k == "goodput" or k.startswith("lost/")}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3), row
    assert ("lost/redone" in shares) == (row["step"] > 3)


def _stopping(preempted, value):
  preempted.stopping = value
  return value


def test_a_run_that_gets_nowhere_ends_with_its_own_status(base, tmp_path, monkeypatch):
  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  cfg, starts = (
    dataclasses.replace(base, checkpoint_every=2),
    tmp_path / "w/starts.json",
  )
  with monkeypatch.context() as m:
    m.setattr(checkpoint._Manager, "save", full)
    with pytest.raises(checkpoint.UnsavedError) as error:
      train.run(cfg, tmp_path / "w", starts=3)
  assert exit_code(error.value) == REQUEUE
  counted = json.loads(starts.read_text())
  assert counted == {"saved": 0, "since": 1, "total": 1}
  starts.write_text(json.dumps(counted | {"since": 3}))
  with pytest.raises(WorkdirError, match="3 times in a row .*remove .*starts") as end:
    train.run(cfg, tmp_path / "w", starts=3)
  assert exit_code(end.value) == NO_PROGRESS == 5
  starts.unlink()
  assert train.run(cfg, tmp_path / "w", starts=3)["step"] == 6


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
  base, tmp_path, monkeypatch
):
  real = models.Net.loss

  def loss(self, params, batch, keys, *, train, step):
    out = real(self, params, batch, keys, train=train, step=step)
    # The tokens of this example are part of the fourth batch only.
    bad = (batch["id"] == poisoned)[:, None]
    return out | {"loss": jax.numpy.where(bad, jax.numpy.nan, out["loss"])}

  data = iter(pipeline.loader(base, "train", batch=8, shuffle=True))
  poisoned = int([next(data) for _ in range(4)][3]["id"][0])
  monkeypatch.setattr(models.Net, "loss", loss)
  stop = dataclasses.replace(base, checkpoint_every=1)
  said = rf"train/loss is nan at step 4 \(examples {poisoned}\)"
  with pytest.raises(health.NonFiniteError, match=said):
    train.run(stop, tmp_path)
  assert checkpoint.restore_params(tmp_path)[1] == 3
  assert [x["step"] for x in _lines(tmp_path)] == [1, 2, 3]
  assert not (tmp_path / "done.json").exists()
  report = json.loads((tmp_path / "nonfinite/step_00000004.json").read_text())
  assert report["examples"] == [poisoned] and len(report["batch"]) == 8
  assert {"trunk/blocks", "head/output"} & report["grad_norm"].keys()

  # The same workdir goes on where such steps may be skipped, and the state is kept;
  # the example comes again in the second epoch.
  skip = dataclasses.replace(
    stop, optim=dataclasses.replace(base.optim, max_skipped=2), keep=9
  )
  train.run(skip, tmp_path)
  lines = _lines(tmp_path)
  assert [x["step"] for x in lines] == [1, 2, 3, 4, 5, 6]
  assert [x.get("train/skipped_steps", 0) for x in lines] == [0, 0, 0, 1, 1, 2]
  assert [x["step"] for x in lines if x["train/loss"] is None] == [4, 6]
  for a, b in zip(_params(tmp_path, 3), _params(tmp_path, 4)):
    np.testing.assert_array_equal(a, b)
  assert any((a != b).any() for a, b in zip(_params(tmp_path, 4), _params(tmp_path, 5)))


def test_unknown_evaluator_and_bad_profile_are_refused(base, tmp_path):
  with pytest.raises(config.ConfigError, match="unknown config key 'evals.nope'"):
    _with_evals(base, nope={})
  for bad in ("5", "0:3", "9:3", "a:b"):
    with pytest.raises(config.ConfigError, match="'profile_steps' must be"):
      train.run(dataclasses.replace(base, profile_steps=bad), tmp_path)


CONFIG = """
import ml_collections
from configs import arguments
from fluid import config
from tests import tiny

def get_config(arg=None):
  a = arguments.parse(arg, size=('s', 'm'))
  run = tiny.with_cache(tiny.run(), {cache!r})
  return ml_collections.ConfigDict(config.to_dict(run))
"""


@pytest.fixture(scope="module")
def command(base, tmp_path_factory):
  path = tmp_path_factory.mktemp("configs") / "tiny_config.py"
  path.write_text(CONFIG.format(cache=base.data.cache))

  def call(*args, arg=""):
    env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu")
    args = [a.replace("CONFIG", f"--config={path}{arg}") for a in args]
    return subprocess.run(
      [sys.executable, "-m", "fluid.train", *args],
      capture_output=True, text=True, env=env, cwd=ROOT,
    )  # fmt: skip

  return call


def _one_line(result, *parts):
  assert result.returncode == 2, result.stderr
  lines = [x for x in result.stderr.splitlines() if x.startswith("error:")]
  assert len(lines) == 1 and result.stderr.rstrip().endswith(lines[0]), result.stderr
  assert "Traceback" not in result.stderr
  for part in parts:
    assert part in lines[0], lines[0]


@pytest.mark.parametrize(
  "args, arg, parts",
  [
    (["CONFIG", "--config.stepz=3"], "", ["'stepz'", "'steps'"]),
    (["CONFIG", "--config.model.trunk.widht=3"], "", ["model.trunk.widht'", "'width'"]),
    (["CONFIG", "--config.steps=many"], "", ["--config.steps=many"]),
    (["CONFIG", "--workdir=x"], ":size=zz", ["size='zz'", "s, m"]),
    (["CONFIG", "--workdir=x"], ":sise=s", ["'sise=s'"]),
    (["CONFIG"], "", ["--workdir"]),
    (["--config=no/such.py", "--workdir=x"], "", ["no/such.py"]),
    (["CONFIG", "--config.data.cache=/no/cache", "--workdir=x"], "", ["/no/cache"]),
  ],
)
def test_wrong_input_is_one_line_and_exit_code_2(command, args, arg, parts):
  _one_line(command(*args, arg=arg), *parts)


def test_a_finished_workdir_is_quiet_success(command, base, tmp_path):
  files.write_json(tmp_path / "config.json", config.to_dict(base))
  files.write_json(tmp_path / "done.json", {"step": base.steps})
  result = command("CONFIG", f"--workdir={tmp_path}")
  assert result.returncode == 0 and "is finished: 6 steps" in result.stdout
  assert not result.stderr


def test_a_workdir_of_another_config_is_one_line(command, base, tmp_path):
  other = dataclasses.replace(base, seed=7)
  files.write_json(tmp_path / "config.json", config.to_dict(other))
  result = command("CONFIG", f"--workdir={tmp_path}")
  _one_line(result, "seed (7 there, 0 here)", "another config")
