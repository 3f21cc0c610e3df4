"""Drills: other meshes, several processes, and the loss of one of them."""

import json
import re
import shutil
import signal
import time

import numpy as np
from PIL import Image

from fluid.evals import EVALS
from tests.e2e.lab import Failure, began, close, judged, last_step, newest

MESHES = (
  ("8 devices", 8, ["--config.mesh.data=8"]),
  ("fsdp 2, model 2", 4, ["--config.mesh.fsdp=2", "--config.mesh.model=2"]),
  ("fsdp 4", 4, ["--config.mesh.fsdp=4"]),
  ("1 device", 1, []),
)


def elastic(lab, count):
  """Interrupted again and again, and continued on another mesh each time."""
  for _ in range(count):
    meshes = lab.random.sample(MESHES, len(MESHES))
    workdir, lost, chain = lab.new("elastic"), [], []
    for name, devices, mesh in [*meshes, meshes[0]]:
      before = newest(workdir)
      process = lab.train(workdir, *mesh, devices=devices)
      if len(chain) < len(meshes):
        process.reaches(workdir, before + 10)
        process.signal(signal.SIGTERM)
      process.end(75 if len(chain) < len(meshes) else 0)
      lost.append(before - began(process))
      chain.append(name)
    worst = close(lab.reference, workdir)
    note = f"loss within {worst:.0e} ({', '.join(chain)})"
    yield {"lost": max(lost), "note": note, "survived": True}


def _train(lab, workdir, count, devices):
  args = [*lab.config, f"--workdir={workdir}"]
  return lab.together("fluid.train", count, devices, *args)


def several(count_processes, devices, at=None):
  """Training and evaluation by several processes, which a single one goes on from.

  Args:
    at: the step whose evaluation one of them gets a signal in (None: any step).
  """

  def drill(lab, count):
    for _ in range(count):
      for _ in range(5):  # Until a signal falls into the evaluation.
        workdir = lab.new(f"processes{count_processes}")
        processes = _train(lab, workdir, count_processes, devices)
        processes[0].reaches(workdir, at or lab.random.randrange(10, 30))
        lab.random.choice(processes).signal(signal.SIGTERM)  # One hears it, all stop.
        for p in processes:
          p.end(75)
        saved = newest(workdir)
        if at is None or saved == at and not judged(workdir):
          break
      else:
        raise Failure("no signal of 5 fell into an evaluation")
      if saved != last_step(workdir):
        raise Failure(f"step {last_step(workdir)} was done, step {saved} was saved")
      after = lab.train(workdir)
      after.end()
      worst = close(lab.reference, workdir)
      note = f"loss within {worst:.0e}"
      yield {"lost": saved - began(after), "note": note, "survived": True}

  return drill


def sample(lab, count):
  """The same images and values of every evaluator from two processes as from one."""
  for _ in range(count):
    found = []
    for processes in (2, 1):
      workdir = lab.new(f"sampled{processes}", lab.reference)
      shutil.rmtree(lab.folder / "cache" / "features", ignore_errors=True)
      prompts = ["--prompt=a red circle", "--n=3", f"--out={workdir}/samples"]
      few = ["geneval.n=1", "distribution.examples=8", "images.n=4"]
      evaluate = ["--weights=raw", f"--evals={','.join(EVALS)}"]
      evaluate += [f"--override=evals.{x}" for x in few]
      for module, args in (
        ("fluid.sample", ["--workdir", str(workdir), *prompts]),
        ("fluid.evaluate", ["--workdir", str(workdir), *evaluate]),
      ):
        started = (
          [lab.start(module, *args)]
          if processes == 1
          else lab.together(module, processes, 2, *args)
        )
        for p in started:
          p.end()
      drawn = sorted(workdir.glob("samples/*.png"))
      images = {f.name: np.asarray(Image.open(f)).astype(int) for f in drawn}
      [values] = [json.loads(f.read_text()) for f in workdir.glob("eval/*.json")]
      found.append((images, values["values"]))
    (a, x), (b, y) = found
    if a.keys() != b.keys() or x.keys() != y.keys():
      raise Failure(f"two processes give {[*a, *x]}, one gives {[*b, *y]}")
    for name in a:
      if np.abs(a[name] - b[name]).max() > 1:
        raise Failure(f"{name} differs by {np.abs(a[name] - b[name]).max()}")
    for name in x:
      if "sample/seconds" not in name and not _near(name, x[name], y[name]):
        raise Failure(f"{name} is {x[name]} of two processes, {y[name]} of one")
    note = f"{len(a)} images and {len(x)} values of {len(EVALS)} evaluators equal"
    yield {"note": note, "survived": True}


def _near(name, x, y):
  # Distances subtract large sums of features, which are batched differently.
  tolerance = 3e-4 if re.search("kid|fd", name) else 1e-5
  return x == y or isinstance(x, float) and abs(x - y) <= tolerance * abs(y)


def _goes_on(lab, workdir, note):
  """Starts a run again, to its end; -> what became of it, after `note`."""
  before = last_step(workdir)
  after = lab.train(workdir)
  after.end()
  worst = close(lab.reference, workdir)
  note = f"{note}, loss within {worst:.0e}"
  return {"lost": before - began(after), "note": note, "survived": True}


def lose_one(lab, count):
  """Kill -9 of one process of two: the other says so and stops within a minute."""
  for number in range(count):
    workdir = lab.new("lost")
    processes = _train(lab, workdir, 2, 1)
    at = lab.random.randrange(6, 20)
    processes[0].reaches(workdir, at)
    victim = processes.pop(number % 2)
    victim.kill()
    start = time.monotonic()
    processes[0].end(75, limit=60)
    seconds = time.monotonic() - start
    if "another process of this run is gone" not in processes[0].last():
      raise Failure(f"no clear last line: {processes[0].last()}")
    yield _goes_on(lab, workdir, f"stopped after {seconds:.0f} s")


BROKEN = """
import runpy, time
from fluid import config
from fluid.data.feed import Feed

def next(self, do=Feed.next, seen=[]):
  seen.append(self)
  if len(seen) == {at}:
    {act}
  return do(self)

Feed.next = next
runpy.run_module("fluid.train", run_name="__main__", alter_sys=True)
"""


def broken(act, status, said):
  """What one process of two does for its own; both end, and process 0 says why."""

  def drill(lab, count):
    for _ in range(count):
      workdir, at = lab.new("broken"), lab.random.randrange(6, 20)
      args = [*lab.config, f"--workdir={workdir}", "--hang_timeout=5"]
      script = BROKEN.format(at=at, act=act)
      processes = lab.together("fluid.train", 2, 1, *args, last=script)
      for p in processes:
        p.end(status)
      if not re.search(f"^error: .*process 1 on .*{said}", processes[0].last()):
        raise Failure(f"no clear last line: {processes[0].last()}")
      yield _goes_on(lab, workdir, "named in the last line")

  return drill


DRILLS = {
  "continued on other meshes": (elastic, 2, 0),
  "2 processes x 2 devices, SIGTERM to one": (several(2, 2), 1, 1),
  "2 processes, SIGTERM in an evaluation": (several(2, 1, at=18), 1, 0),
  "4 processes x 2 devices, SIGTERM to one": (several(4, 2), 1, 0),
  "sampling and evaluation by 2 processes": (sample, 1, 0),
  "kill -9 of one process of two": (lose_one, 2, 0),
  "one process of two stands still": (
    broken("time.sleep(600)", 75, r"is at step \d+ \(input\), and 0 wait"),
    1,
    0,
  ),
  "one process of two has an error": (
    broken("raise config.ConfigError('its own')", 2, "its own"),
    1,
    0,
  ),
}
