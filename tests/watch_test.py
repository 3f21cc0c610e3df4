"""Several processes: the first error is everyone's, and who stands still is named."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from fluid.errors import REQUEUE
from fluid.parallel import watch
from tests.conftest import ROOT


class Store:
  """The key-value store of jax's coordination service, in this process."""

  def __init__(self):
    self.values, self.lock = {}, threading.Lock()

  def key_value_set(self, key, value, allow_overwrite=False):
    with self.lock:
      if key in self.values and not allow_overwrite:
        raise RuntimeError(f"ALREADY_EXISTS: {key}")
      self.values[key] = value

  def key_value_try_get(self, key):
    return self.values[key]

  def key_value_dir_get(self, prefix):
    return [(k, v) for k, v in self.values.items() if k.startswith(prefix)]


@pytest.fixture
def together():
  """Watches of three processes that stand where the list says; and how they end."""
  store, places, ended, made = Store(), [None] * 3, {}, []
  stack = contextlib.ExitStack()

  def start(patience=0.4):
    for n in range(3):
      leave = lambda *why, n=n: ended.setdefault(n, why)
      made.append(watch.Watch(store, n, 3, leave, period=0.02, own=0.05))
      stack.enter_context(made[n].steps(lambda n=n: places[n], patience))
    return made

  yield start, places, ended
  for one in made:
    one.stop()
  stack.close()


def _until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not (found := condition()) and time.monotonic() < end:
    time.sleep(0.01)
  return found


def test_who_makes_no_steps_is_named_and_all_end(together, capfd):
  start, places, ended = together
  places[:] = [(42, "steps"), (40, "input"), (42, "steps")]
  start()
  assert _until(lambda: len(ended) == 3)
  (said,) = set(ended.values())
  assert said[1] == REQUEUE
  assert f"process 1 on {socket.gethostname()} is at step 40 (input)" in said[0]
  assert "0, 2 wait at step 42" in said[0] and "no step for 0 s: process 1" in said[0]
  # The one that stands still shows where.
  assert capfd.readouterr().err.count("most recent call first") >= 1


def test_those_that_make_steps_or_evaluate_go_on(together, capfd):
  start, places, ended = together
  places[:] = [(0, "steps")] * 3
  start()
  for step in range(1, 30):
    places[:] = [(step, "steps")] * 3
    time.sleep(0.02)
  assert not ended
  places[:] = [(30, "steps"), (30, "evaluations"), (30, "steps")]
  warned = f"process 1 on {socket.gethostname()} is at step 30 (evaluations)"
  assert _until(lambda: warned in capfd.readouterr().err)
  assert not ended


def test_who_keeps_the_others_from_the_first_step_is_named(together, capfd):
  """It may copy a cache that they have, so that all go on waiting."""
  start, places, ended = together
  places[:] = [(0, "restore"), (0, "data"), (0, "restore")]
  first, _, third = start()
  with first.waiting(), third.waiting():
    warned = f"process 1 on {socket.gethostname()} is at step 0 (data), and 0, 2 wait"
    assert _until(lambda: warned in capfd.readouterr().err)
  assert not ended


def test_the_first_error_is_that_of_all(together):
  start, places, ended = together
  places[:] = [(1, "steps")] * 3
  first, second, _ = start(patience=0)
  second.fail("its disk is gone", 2)
  first.fail("lost the other", REQUEUE)
  assert _until(lambda: len(ended) == 1)
  host = socket.gethostname()
  assert ended == {2: (f"process 1 on {host}: its disk is gone", 2)}


@pytest.mark.parametrize(
  "places, said, ends",
  [
    (
      {0: (9, "steps"), 1: (7, "steps")},
      "process 1 on h is at step 7, and 0 wait",
      True,
    ),
    ({0: (9, "steps"), 1: (9, "saves")}, "process 1 on h is at step 9 (saves)", True),
    ({0: (9, "evaluations"), 1: (9, "steps")}, "is at step 9 (evaluations)", False),
    ({0: (0, "steps"), 1: (0, "compile")}, "process 1 on h is at step 0 (c", False),
    ({0: (9, "steps"), 1: (9, "steps")}, "all processes wait for the devices", True),
    (
      {i: (8 if i == 9 else 9, "steps") for i in range(20)},
      "process 9 on h is at step 8, and 0-8, 10-19 wait at step 9",
      True,
    ),
    (
      {i: (8, "input" if i < 10 else "steps") for i in range(12)},
      "process 7 on h is at step 8 (input) and 2 more, and 10-11 wait at step 8",
      True,
    ),
  ],
)
def test_verdicts(places, said, ends):
  found = watch.verdict({p: (*place, "h") for p, place in places.items()})
  assert said in found[0] and found[1] == ends


JOINED = """
import sys, time
from fluid import config
from fluid.console import cli
from fluid.parallel import distributed

mode, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])

def main(argv):
  distributed.join(f"localhost:{port}", 2, process)
  if process == 0:
    with distributed.steps(lambda: (41, "steps"), 3.0):
      distributed.meet()
  if mode == "fails":
    raise config.ConfigError("its disk is gone")
  if mode == "breaks":
    raise RuntimeError("a bug")
  with distributed.steps(lambda: (40, "input"), 3.0):
    time.sleep(600)

cli.run(main, argv=sys.argv[:1])
"""


@pytest.mark.parametrize(
  "mode, status, said",
  [
    ("fails", 2, "its disk is gone"),
    ("breaks", 1, "RuntimeError: a bug"),
    ("hangs", REQUEUE, " is at step 40 (input), and 0 wait at step 41"),
  ],
)
def test_process_0_says_last_what_became_of_process_1(tmp_path, mode, status, said):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = str(s.getsockname()[1])
  env = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "1"}
  script = tmp_path / "joined.py"
  script.write_text(JOINED)
  processes = [
    subprocess.Popen(
      [sys.executable, str(script), mode, port, str(n)],
      cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True,
    )
    for n in range(2)
  ]  # fmt: skip
  try:
    errors = [p.communicate(timeout=300)[1] for p in processes]
  finally:
    for p in processes:
      p.kill()
  assert [p.returncode for p in processes] == [status, status], errors
  last = [e.rstrip().splitlines()[-1] for e in errors]
  assert last[0].startswith("error: ") and "process 1 on " in last[0], errors
  assert said in last[0]
