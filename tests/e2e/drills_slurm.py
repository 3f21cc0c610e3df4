"""A sweep on a real Slurm of two nodes, and everything done to it.

  python -m tests.e2e.drills_slurm --workdir DIR [--short]

Needs the package slurm-wlm and root. Eight runs of two processes behind a tokenizer and
a cache: one fails by design, one is cancelled, one is preempted without grace and one
with, one loses its node to a drain, one is told to stop twice, and the process that
submits is killed while it does. Started again, the sweep ends with six finished, each
equal to its run alone; none was done twice, and no step that was saved was lost.
"""

import argparse
import contextlib
import json
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable

from tests.e2e import slurm
from tests.e2e.lab import ROOT, Failure, NotHere, close, newest, rows

# name -> what is done to it
RUNS = {
  "fails": "exit status 2 by design",
  "cancelled": "scancel in mid-run",
  "preempted": "preempted without grace, two SIGTERM and a kill",
  "graceful": "preempted with grace, one SIGTERM",
  "drained": "its node is drained, and it is told to go",
  "twice": "SIGTERM twice within a second",
  "plain": "nothing",
  "late": "nothing; the process that submits is killed before it",
}
SHORT = ("twice", "plain")
_SWEEP = """
def sweep():
  for name in {names!r}:
    bad = {{"init.workdir": "/nowhere"}} if name == "fails" else {{}}
    yield dict(
      name=name,
      config="tests/e2e/drill_config.py:tokens=continuous,order=random",
      overrides={{"seed": {seeds!r}[name], "mesh.data": -1, "steps": {steps},
                 "checkpoint_every": {steps}, "evals.loss.every": {steps}, **bad}},
    )
"""


class Drill:
  """A cluster, a sweep on it, and the commands of a user."""

  def __init__(self, folder: pathlib.Path, cluster: slurm.Cluster, names, steps: int):
    self.folder, self.cluster, self.names = folder, cluster, names
    self.workdir = folder / "sweep"
    self.config = folder / "drill.py"
    seeds = {name: 1 + list(RUNS).index(name) for name in names}
    self.config.write_text(_SWEEP.format(names=tuple(names), seeds=seeds, steps=steps))
    self.env = cluster.env | {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "1",
      "XLA_FLAGS": "--xla_backend_optimization_level=0 "
      "--xla_llvm_disable_expensive_passes=true",
    }
    self.saved: dict[str, int] = {}

  def say(self, text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

  def launch(self, module: str, *args: str, code: int | None = 0) -> str:
    argv = [sys.executable, "-m", f"launch.{module}", *args]
    argv += ["--workdir", str(self.workdir)]
    done = subprocess.run(argv, cwd=ROOT, env=self.env, capture_output=True, text=True)
    if code is not None and done.returncode != code:
      raise Failure(f"{module}: status {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout

  def submit(self, *more: str, code: int | None = 0, partition="main") -> str:
    return self.launch("sweep", *self.arguments(partition), *more, code=code)

  def arguments(self, name: str = "main") -> list[str]:
    partition = ["--set", f"partition={name}"]
    return ["--config", str(self.config), "--on", "slurm", "--topology", "cpu:2x1",
            "--plain", *partition]  # fmt: skip

  def status(self) -> dict[str, dict]:
    rows = json.loads(self.launch("status", "--json", code=None))
    return {r["stage"].removeprefix("run/"): r for r in rows}

  def job(self, name: str) -> str:
    return json.loads((self.workdir / f"jobs/{name}/job.json").read_text())["job"]

  def run_of(self, name: str) -> pathlib.Path:
    return self.workdir / "runs" / name

  def until(self, what: str, condition: Callable[[], bool], seconds=1800.0):
    end = time.monotonic() + seconds
    while not condition():
      self.cluster.soon()
      if time.monotonic() > end:
        raise Failure(f"not within {seconds:.0f} s: {what}; {self.status()}")
      time.sleep(0.2)

  def at_work(self, names: Iterable[str], step: int = 2) -> str:
    """Waits for one of the runs to be beyond a step: signals then meet it at work."""
    found: list[str] = []

    def there():
      for name in names:
        if finished(self, [name]):
          raise Failure(f"{name} finished before anything was done to it")
        if max((r["step"] for r in rows(self.run_of(name))), default=0) >= step:
          found.append(name)
      return bool(found)

    self.until(f"{', '.join(names)} at step {step}", there)
    return found[0]

  def keeps(self, name: str, what: str) -> None:
    """Notes which step a run has saved: it may not go on before that."""
    self.saved[name] = newest(self.run_of(name))
    self.say(f"{name}: {what}, step {self.saved[name]} is saved")

  def began(self, name: str) -> int:
    """The step that a run went on from last."""
    log = (self.workdir / f"logs/{name}.log").read_text()
    return int(re.findall(r"^step (\d+) of \d+, mesh", log, re.M)[-1])


def short(drill: Drill) -> list[tuple[str, str]]:
  """Two runs, one of which hears SIGTERM twice within a second."""
  drill.submit()
  drill.at_work(["twice"])
  twice(drill)
  drill.until("both finished", lambda: finished(drill, SHORT))
  return [check(drill, name) for name in SHORT]


def twice(drill: Drill) -> None:
  job = drill.job("twice")
  for _ in range(2):
    drill.cluster.call("scancel", "--signal=TERM", job)
    time.sleep(0.5)
  folder = drill.run_of("twice")
  drill.until("twice saved", lambda: newest(folder) > 0)
  drill.keeps("twice", "SIGTERM twice within a second")
  drill.until("twice again", lambda: _starts(folder) == 2)


def _starts(folder: pathlib.Path) -> int:
  with contextlib.suppress(OSError, ValueError):
    return json.loads((folder / "starts.json").read_text())["total"]
  return 0


def finished(drill: Drill, names) -> bool:
  return all((drill.run_of(n) / "done.json").exists() for n in names)


def check(drill: Drill, name: str) -> tuple[str, str]:
  """A run against the same one alone; -> (name, what was found).

  That has one process with as many devices: sums are then of the same two halves, so
  that hundreds of steps stay together.
  """
  alone = drill.folder / "alone" / name
  record = next(
    r for r in json.loads((drill.workdir / "sweep.json").read_text())
    if r["name"] == name and r["kind"] == "run"
  )  # fmt: skip
  argv = [sys.executable, "-m", "fluid.train", f"--config={record['config']}"]
  argv += [f"--config.{k}={v}" for k, v in record["overrides"].items()]
  env = drill.env | {"JAX_COMPILATION_CACHE_DIR": str(drill.folder / "xla")}
  env |= {"JAX_NUM_CPU_DEVICES": "2"}
  done = subprocess.run(
    [*argv, f"--workdir={alone}"], cwd=ROOT, env=env, capture_output=True, text=True
  )
  if done.returncode:
    raise Failure(f"{name} alone: {done.stderr}")
  worst = close(alone, drill.run_of(name))
  steps = [r["step"] for r in rows(drill.run_of(name)) if "train/loss" in r]
  if steps != sorted(set(steps)):
    raise Failure(f"{name} has steps more than once")
  if drill.began(name) < drill.saved.get(name, 0):
    raise Failure(f"{name} had saved step {drill.saved[name]}, and lost it")
  starts = _starts(drill.run_of(name))
  return name, f"finished, {starts} starts, loss within {worst:.0e} of the run alone"


def whole(drill: Drill) -> list[tuple[str, str]]:
  """All that the module's text says."""
  cluster = drill.cluster
  # Killed while it submits, after some of the jobs are in the queue.
  drill.submit("--only", "graceful", partition="soft")
  argv = [sys.executable, "-m", "launch.sweep", *drill.arguments()]
  process = subprocess.Popen(
    [*argv, "--workdir", str(drill.workdir)], cwd=ROOT, env=drill.env,
    stdout=subprocess.DEVNULL,
  )  # fmt: skip
  jobs = drill.workdir / "jobs"
  while len(list(jobs.glob("*/job.json"))) < 5 and process.poll() is None:
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  queued = len(cluster.call("squeue", "-h", "-o", "%i").split())
  drill.say(f"the submitting process was killed with {queued} jobs in the queue")
  drill.submit(code=None)
  names = cluster.call("squeue", "-h", "-o", "%j").split()
  if len(names) != len(set(names)):
    raise Failure(f"a job is in the queue twice: {names}")

  def preempt(name: str):
    # Needs both nodes alone: whatever runs there has to go.
    other = cluster.call(
      "sbatch", "--parsable", "-p", "high", "-N2", "-c2", "-o", "/dev/null",
      "--wrap", "sleep 1",
    )  # fmt: skip
    drill.until(f"{name} preempted", lambda: cluster.state(other) == "COMPLETED")
    drill.keeps(name, "preempted")

  def drain(name: str):
    node = slurm.NODES[1]
    state = ("State=DRAIN", "Reason=drill")
    cluster.call("scontrol", "update", f"NodeName={node}", *state)
    cluster.call("scancel", "--signal=TERM", drill.job(name))
    drill.until(f"{name} saves", lambda: newest(drill.run_of(name)) > 0)
    cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
    drill.keeps(name, "its node was drained, and is back")

  def cancel(name: str):
    drill.launch("stop", name)
    drill.say(f"{name}: by launch.stop")

  # Each as soon as the queue has it at work.
  todo = {"graceful": preempt, "cancelled": cancel, "preempted": preempt,
          "drained": drain, "twice": lambda _: twice(drill)}  # fmt: skip
  while todo:
    name = drill.at_work(todo)
    todo.pop(name)(name)
  left = [n for n in drill.names if n not in ("fails", "cancelled")]

  def over():
    return finished(drill, left)

  drill.until("six finished", over, seconds=3600)
  drill.until(
    "the queue is empty", lambda: not cluster.call("squeue", "-h", "-o", "%i")
  )
  before = {n: _starts(drill.run_of(n)) for n in drill.names}
  drill.submit(code=1)
  if cluster.call("squeue", "-h", "-o", "%i"):
    raise Failure("started again, the sweep submitted what was over")
  states = drill.status()
  want = dict.fromkeys(left, "finished") | {"fails": "failed", "cancelled": "cancelled"}
  found = {n: states[n]["state"] for n in drill.names}
  if found != want:
    raise Failure(f"{found}, not {want}")
  if before != {n: _starts(drill.run_of(n)) for n in drill.names}:
    raise Failure("something was run twice")
  out = [check(drill, n) for n in left]
  out += [(n, f"{found[n]}: {states[n]['note']}") for n in ("fails", "cancelled")]
  return out


def run(folder: pathlib.Path, *, brief: bool) -> list[tuple[str, str]]:
  """-> (run, what became of it) of each.

  Raises:
    NotHere: there is no Slurm here.
    Failure: something was not as it should.
  """
  if why := slurm.missing():
    raise NotHere(why)
  folder.mkdir(parents=True, exist_ok=True)
  with slurm.cluster(folder / "slurm") as cluster:
    names, steps = (SHORT, 300) if brief else (tuple(RUNS), 3000)
    drill = Drill(folder, cluster, names, steps)
    return short(drill) if brief else whole(drill)


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m tests.e2e.drills_slurm")
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--short", action="store_true", help="two runs, for CI")
  args = parser.parse_args(argv)
  start = time.monotonic()
  try:
    found = run(args.workdir.resolve(), brief=args.short)
  except NotHere as e:
    print(f"not tried: {e}")
    return 0
  except Failure as e:
    print(f"NOT SURVIVED: {e}")
    return 1
  print("| run | what was done to it | afterwards |\n|---|---|---|")
  for name, text in found:
    print(f"| {name} | {RUNS[name]} | {text} |")
  print(f"{time.monotonic() - start:.0f} s")
  return 0


if __name__ == "__main__":
  sys.exit(main())
