"""Counting what is damaged, and stopping in time; leaving when told to."""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from fluid import config, errors
from fluid.data.packing import BAD
from fluid.durable import lock, workdir
from fluid.parallel import distributed, preemption
from fluid.training import health
from tests import tiny
from tests.conftest import ROOT


def _health(tmp_path, **data):
  cfg = tiny.run(data=config.Data(**data))
  damage = lambda number: [f"text in record {number} of f, id 7"]
  return health.Health(cfg, tmp_path, examples=100, damage=damage)


def _report(kind=None, n=0):
  bad = np.zeros(len(BAD), int)
  if kind:
    bad[BAD.index(kind)] = n
  return {"bad": bad}


def test_damage_is_counted_by_kind_until_the_share_is_passed(tmp_path):
  found = _health(tmp_path, max_bad=0.03)
  found.counts["data/cut_captions"] = cut = 50  # Shortened, not left out.
  values = {"train/loss": 1.0}
  found.check(1, values, _report("text", 2))
  found.check(2, values, _report())
  found.check(3, values, _report("image", 1))  # 3 of an epoch of 100.
  skipped = {"data/skipped_text": 2, "data/skipped_image": 1}
  assert found.counts == {"data/cut_captions": cut} | skipped
  with pytest.raises(health.BadDataError, match="4 damaged .*record 3 of f, id 7"):
    found.check(4, values, _report("text", 1))
  again = _health(tmp_path, max_bad=0.03)
  again.check(50, values, _report("text", 12))  # 3 % of the 400 seen.
  with pytest.raises(health.BadDataError):
    again.check(51, values, _report("text", 1))


def test_one_signal_asks_and_handlers_come_back():
  before = signal.getsignal(signal.SIGTERM)
  with preemption.Preemption() as asked:
    assert not asked.reached()
    os.kill(os.getpid(), signal.SIGTERM)
    end = time.monotonic() + 5
    while not asked.reached() and time.monotonic() < end:
      time.sleep(0.01)
    assert asked.reached() and asked.stopping and asked.reason == "SIGTERM"
  assert signal.getsignal(signal.SIGTERM) is before


SIGNALS = """
import os, signal, sys, time
from fluid.parallel import preemption
with preemption.Preemption() as asked:
  for name in sys.argv[1:]:
    os.kill(os.getpid(), signal.Signals[name])
    time.sleep(0.2)
  print(asked.reached(), asked.reason)
"""


@pytest.mark.parametrize("sent", ["SIGTERM SIGTERM SIGINT SIGTERM", "SIGINT SIGTERM"])
@pytest.mark.parametrize("again", [False, True])
def test_only_a_second_ctrl_c_ends_the_process(sent, again):
  sent = sent.split() + ["SIGINT"] * again
  env = dict(os.environ, PYTHONPATH=str(ROOT))
  command = [sys.executable, "-c", SIGNALS, *sent]
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  assert ("at once, by a second SIGINT" in done.stderr) == again
  assert done.returncode == (errors.REQUEUE if again else 0)
  assert done.stdout == ("" if again else f"True {sent[0]}\n")


HOLD = """
import pathlib, sys, time
from fluid.durable import lock
held = lock.lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_has_one_owner_until_that_dies(tmp_path):
  env = dict(os.environ, PYTHONPATH=str(ROOT))
  owner = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)], env=env, stdout=subprocess.PIPE
  )
  assert owner.stdout.readline() == b"held\n"
  try:
    for wait in (0, 600):  # One that is seen to live is not waited for.
      with pytest.raises(
        config.ConfigError, match=f"in use by process {owner.pid} on"
      ) as e:
        lock.lock(tmp_path, wait=wait)
      assert errors.exit_code(e.value) == 2
    assert lock.owner(tmp_path) == owner.pid
  finally:
    owner.kill()
    owner.wait()
  os.close(lock.lock(tmp_path))


@pytest.mark.parametrize(
  "left",
  [
    "7 on elsewhere",  # As it was written before.
    "7 on elsewhere\nboot pid:[1]",
    # A container with this host's name, in which the number is another process.
    f"{os.getpid()} on {socket.gethostname()}\nboot pid:[1]",
  ],
  ids=["other host, old form", "other host", "other container"],
)
def test_the_lock_of_a_lost_machine_is_waited_for(tmp_path, left, monkeypatch, capsys):
  """NFS keeps it for a while: flocks of two descriptors exclude each other as well."""
  run, who = tiny.run(), left.partition("\n")[0]
  held = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
  fcntl.flock(held, fcntl.LOCK_EX)
  os.write(held, f"{left}\n".encode())
  assert lock.owner(tmp_path) is None
  monkeypatch.setattr(workdir, "LOST", 0.1)
  with workdir.Workdir(tmp_path) as folder:
    with pytest.raises(lock.AwayError, match=f"in use by process {who}.*remove"):
      folder.claim(run)
  assert lock.AwayError.exit_code == errors.REQUEUE
  assert f"for {tmp_path}, which process {who}" in capsys.readouterr().err
  monkeypatch.setattr(workdir, "LOST", 60)
  threading.Timer(0.2, os.close, [held]).start()
  with workdir.Workdir(tmp_path) as folder:
    folder.claim(run)
    assert lock.owner(tmp_path) == os.getpid()


@pytest.mark.parametrize(
  "tasks, node, seen, want",
  [
    ("1(x4)", 2, "0,1,2,3,4,5,6,7", list(range(8))),  # One drives all of a node,
    ("8(x2)", 0, "0,1,2,3,4,5,6,7", None),  # or eight one each, by jax's own rule.
    ("8(x2)", 0, "3", [0]),  # --gpus-per-task: the others are hidden.
    ("1,8", 0, "0,1", [0, 1]),
    ("1,2", 1, "0,1", None),
    ("2(x3),1", 3, "", None),
    ("4", 0, "0,1,2,3,4,5,6,7", "4 tasks of Slurm on a machine of 8 GPUs"),
    ("2(x3),3", 3, "0,1", "3 tasks of Slurm on a machine of 2 GPUs"),
  ],
)
def test_no_gpu_of_a_node_is_left_idle(tasks, node, seen, want):
  env = {"SLURM_PROCID": "0", "SLURM_STEP_TASKS_PER_NODE": tasks}
  env |= {"SLURM_NODEID": str(node), "CUDA_VISIBLE_DEVICES": seen}
  if isinstance(want, str):
    with pytest.raises(config.ConfigError, match=want):
      distributed._gpus_of_slurm_task(env)
    return
  assert distributed._gpus_of_slurm_task(env) == want
  assert distributed._gpus_of_slurm_task(env | {"JAX_LOCAL_DEVICE_IDS": "0"}) is None
  assert distributed._gpus_of_slurm_task({"CUDA_VISIBLE_DEVICES": seen}) is None


def test_processes_that_do_not_find_each_other_say_so():
  code = (
    "from fluid.console import cli; from fluid.parallel import distributed\n"
    "cli.run(lambda a: distributed.join('localhost:1', 2, 1, timeout=2), ['x'])"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.returncode == errors.REQUEUE, done.stderr
  assert "did not find each other" in done.stderr and "is gone" not in done.stderr


def test_a_status_tells_what_passes_from_what_is_wrong(tmp_path):
  def raised(cause, **how):
    try:
      try:
        raise cause
      except OSError as e:
        raise config.ConfigError("x") from (None if how else e)
    except config.ConfigError as error:
      return error

  for number in (errno.ESTALE, errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.ETIMEDOUT):
    assert errors.exit_code(OSError(number, "x")) == errors.REQUEUE
    assert errors.exit_code(raised(OSError(number, "x"))) == errors.REQUEUE
    assert errors.exit_code(raised(OSError(number, "x"), hidden=True)) == 2
  for number in (errno.ENOENT, errno.EACCES, errno.EROFS, errno.ENOTDIR):
    assert errors.exit_code(OSError(number, "x")) == 2
  assert errors.exit_code(health.NonFiniteError("x")) == 3
  assert errors.exit_code(distributed.LostError()) == errors.REQUEUE


def test_starts_are_counted_until_a_checkpoint_comes(tmp_path):
  folder = workdir.Workdir(tmp_path)
  count = lambda: folder.count_start(2)
  count(), count()
  with pytest.raises(workdir.NoProgressError, match="started 2 times in a row"):
    count()
  (tmp_path / "saved.json").write_text('{"step": 7}')
  count(), count()
  with pytest.raises(workdir.NoProgressError, match="of step 7"):
    count()
  folder.count_start(0)
  assert json.loads((tmp_path / "starts.json").read_text())["total"] == 5


def test_a_copy_says_what_it_is_a_copy_of(monkeypatch):
  monkeypatch.setenv("FLUID_COMMIT", "abc+def")
  assert workdir.commit() == {"commit": "abc", "commit_clean": False}
  monkeypatch.setenv("FLUID_COMMIT", "abc")
  assert workdir.commit() == {"commit": "abc", "commit_clean": True}


def test_wrong_ways_to_join_are_one_line():
  for args in (("", 2, 0), ("localhost:1", 2, None), ("localhost:1", 2, 2)):
    with pytest.raises(config.ConfigError, match="--coordinator"):
      distributed.join(*args)


@pytest.mark.parametrize(
  "said, gone",
  [
    ("INTERNAL: Barrier failed because: task is set to ERROR", True),
    ("UNAVAILABLE: Task 1 heartbeat timeout.", True),
    ("Gloo all-reduce failed: Connection closed by peer [::1]:1", True),
    ("NCCL operation failed: remote process exited or there was a network error", True),
    ("RESOURCE_EXHAUSTED: out of memory", False),
  ],
)
def test_an_error_of_a_lost_process_is_known(said, gone):
  error = config.ConfigError("checkpoint cannot be written")
  error.__cause__ = jax.errors.JaxRuntimeError(said)
  found = distributed.lost(error)
  assert (found is not None) == gone
  assert not gone or found.exit_code == errors.REQUEUE
  wrong = distributed._JoinError("--coordinator=x: not found")
  wrong.__cause__ = jax.errors.JaxRuntimeError("CoordinationService/RegisterTask")
  assert distributed.lost(wrong) is None


def test_what_process_0_cannot_do_is_raised():
  def refuse():
    raise config.ConfigError("no")

  with pytest.raises(config.ConfigError, match="no"):
    distributed.first(refuse)
  assert distributed.everyone(True) and not distributed.everyone(False)


def test_reports_are_json_whatever_the_numbers(tmp_path):
  cfg = dataclasses.replace(tiny.run(), optim=config.Optim(max_skipped=1))
  found = health.Health(cfg, tmp_path, examples=9, damage=lambda n: [])
  report = {
    "id": np.array([4, 5]),
    "loss": np.array([np.inf, 1.0]),
    "grad_norm": {"head/net": jax.numpy.float32(np.nan)},
  }
  found.check(2, {"train/loss": np.nan}, report)
  said = json.loads((tmp_path / "nonfinite/step_00000002.json").read_text())
  assert said["examples"] == [4] and said["grad_norm"] == {"head/net": "nan"}
  with pytest.raises(health.NonFiniteError, match="step 3 .examples 4., after 1 steps"):
    found.check(3, {"train/loss": np.nan}, report)
