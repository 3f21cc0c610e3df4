"""Drills: other meshes, several processes, and the loss of one of them."""

import signal
import time

import numpy as np
from PIL import Image

from tests.e2e.lab import Failure, began, close, last_step, newest, rows

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


def several(count_processes, devices):
  """Training and evaluation by several processes, which a single one goes on from."""

  def drill(lab, count):
    for _ in range(count):
      workdir = lab.new(f"processes{count_processes}")
      processes = _train(lab, workdir, count_processes, devices)
      at = lab.random.randrange(10, 30)
      processes[0].reaches(workdir, at)
      lab.random.choice(processes).signal(signal.SIGTERM)  # One hears it, all stop.
      for p in processes:
        p.end(75)
      saved = newest(workdir)
      if saved != last_step(workdir):
        raise Failure(f"step {last_step(workdir)} was done, step {saved} was saved")
      after = lab.train(workdir)
      after.end()
      worst = close(lab.reference, workdir)
      note = f"loss within {worst:.0e}"
      yield {"lost": saved - began(after), "note": note, "survived": True}

  return drill


def sample(lab, count):
  """The same images and the same evaluation from two processes as from one."""
  for _ in range(count):
    found = []
    for processes in (1, 2):
      workdir = lab.new(f"sampled{processes}", lab.reference)
      out = workdir / "samples"
      prompts = ["--prompt=a red circle", "--n=3", f"--out={out}"]
      evaluate = ["--workdir", str(workdir), "--evals=loss", "--weights=raw"]
      for module, args in (
        ("fluid.sample", ["--workdir", str(workdir), *prompts]),
        ("fluid.evaluate", evaluate),
      ):
        started = (
          [lab.start(module, *args)]
          if processes == 1
          else lab.together(module, processes, 2, *args)
        )
        for p in started:
          p.end()
      images = [np.asarray(Image.open(f)) for f in sorted(out.glob("0*.png"))]
      found.append((np.stack(images).astype(int), rows(workdir)[-1]["raw/val/loss"]))
    (a, x), (b, y) = found
    if np.abs(a - b).max() > 1 or abs(x - y) > 1e-5 * x:
      raise Failure(f"images differ by {np.abs(a - b).max()}, losses by {abs(x - y)}")
    yield {"note": "images and loss equal", "survived": True}


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
    before = last_step(workdir)
    after = lab.train(workdir)
    after.end()
    worst = close(lab.reference, workdir)
    note = f"stopped after {seconds:.0f} s, loss within {worst:.0e}"
    yield {"lost": before - began(after), "note": note, "survived": True}


DRILLS = {
  "continued on other meshes": (elastic, 2, 0),
  "2 processes x 2 devices, SIGTERM to one": (several(2, 2), 1, 1),
  "4 processes x 1 device, SIGTERM to one": (several(4, 1), 1, 0),
  "sampling and evaluation by 2 processes": (sample, 1, 0),
  "kill -9 of one process of two": (lose_one, 2, 0),
}
