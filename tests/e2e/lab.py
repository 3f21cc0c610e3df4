"""What drills are made of: a small run, processes to break, and a reference to compare.

Every process is the real command. Programs come from the compilation cache, so that a
restart takes seconds.
"""

import contextlib
import glob
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from fluid.training import clocks

ROOT = pathlib.Path(__file__).parents[2]
LIMIT = 300.0  # Seconds after which a process that should have ended is a failure.
STEPS = 60


class Failure(Exception):
  """A drill that was not survived."""


class NotHere(Exception):
  """A drill that this machine does not allow; nothing was tried."""


class Process:
  """One command whose output goes to a file."""

  def __init__(self, args: list[str], log: pathlib.Path, env: dict[str, str]):
    self.log = log
    with open(log, "w") as f:
      self._popen = subprocess.Popen(
        args, cwd=ROOT, env=env, stdout=f, stderr=subprocess.STDOUT
      )
    self.pid = self._popen.pid

  @property
  def running(self) -> bool:
    return self._popen.poll() is None

  def said(self) -> str:
    return self.log.read_text(errors="replace")

  def last(self) -> str:
    """The last line that is not the output of a C++ library at its end."""
    lines = [x for x in self.said().splitlines() if x.strip()]
    return lines[-1] if lines else ""

  def signal(self, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
      self._popen.send_signal(number)

  def kill(self) -> None:
    self.signal(signal.SIGKILL)
    self._popen.wait()

  def end(self, code: int | None = 0, limit: float = LIMIT) -> int:
    """Waits; raises Failure unless the exit status is `code` (None: any)."""
    try:
      found = self._popen.wait(limit)
    except subprocess.TimeoutExpired:
      self.kill()
      raise Failure(f"no end after {limit:.0f} s: {self.log}") from None
    if code is not None and found != code:
      raise Failure(f"exit status {found}, not {code}: {self.last()} ({self.log})")
    return found

  def until(self, condition, limit: float = LIMIT) -> bool:
    """Waits for a condition; False where the process ended before it held."""
    end = time.monotonic() + limit
    while self.running:
      if condition():
        return True
      if time.monotonic() > end:
        self.kill()
        raise Failure(f"nothing happened for {limit:.0f} s: {self.log}")
      time.sleep(0.002)
    return False

  def reaches(self, workdir: pathlib.Path, step: int) -> bool:
    """Waits until a step is in metrics.jsonl."""
    return self.until(lambda: last_step(workdir) >= step)


class Lab:
  """A folder with tokenizer, cache and the reference run; everything starts from it."""

  def __init__(self, folder: pathlib.Path, seed: int):
    self.folder = folder
    self.random = random.Random(seed)
    self._number = 0
    self.env = dict(
      {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla")} | os.environ,
      JAX_PLATFORMS="cpu",
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
      PYTHONUNBUFFERED="1",
      TF_CPP_MIN_LOG_LEVEL="1",
      XLA_FLAGS="--xla_backend_optimization_level=0 "
      "--xla_llvm_disable_expensive_passes=true",
    )
    self.config = [
      "--config=tests/e2e/drill_config.py:tokens=continuous,order=random",
      f"--config.tokenizer.path={folder}/tokenizer",
      f"--config.data.cache={folder}/cache",
    ]

  def prepare(self) -> None:
    """Tokenizer, cache and reference, where they are not there yet."""
    for name in ("logs", "runs"):
      shutil.rmtree(self.folder / name, ignore_errors=True)
      (self.folder / name).mkdir(parents=True)
    for module in ("fluid.tokenizers.train", "fluid.prepare"):
      self.start(module, *self.config).end()
    self.train(self.reference).end()

  @property
  def reference(self) -> pathlib.Path:
    return self.folder / "reference"

  def new(self, name: str, like: pathlib.Path | None = None) -> pathlib.Path:
    """A fresh workdir, or a copy of one."""
    self._number += 1
    path = self.folder / "runs" / f"{self._number:03d}-{name}"
    if like:
      shutil.copytree(like, path)
    return path

  def start(self, module: str, *args: str, devices: int = 1) -> Process:
    return self.start_raw([sys.executable, "-m", module, *args], devices=devices)

  def start_raw(self, args: list[str], devices: int = 1) -> Process:
    self._number += 1
    log = self.folder / "logs" / f"{self._number:03d}.log"
    return Process(args, log, dict(self.env, JAX_NUM_CPU_DEVICES=str(devices)))

  def train(self, workdir: pathlib.Path, *more: str, devices: int = 1) -> Process:
    # Killed again and again, before it can save: not what --starts is for.
    args = [*self.config, f"--workdir={workdir}", "--starts=0", *more]
    return self.start("fluid.train", *args, devices=devices)

  def together(self, module: str, count: int, devices: int, *args: str, last: str = ""):
    """The same command as several processes that join.

    Args:
      last: a script in the place of the module, for the last of them.
    """
    with socket.socket() as s:
      s.bind(("localhost", 0))
      port = s.getsockname()[1]
    join = [f"--coordinator=localhost:{port}", f"--processes={count}"]
    whats = [("-m", module)] * (count - 1) + [("-c", last) if last else ("-m", module)]
    return [
      self.start_raw(
        [sys.executable, *what, *args, *join, f"--process={i}"], devices=devices
      )
      for i, what in enumerate(whats)
    ]

  def interrupted(self, name: str, step: int, *more: str, devices=1, times=1):
    """A workdir whose run got SIGTERM at about a step, and the step it saved.

    Several times: within a second, to the end of the process.
    """
    workdir = self.new(name)
    process = self.train(workdir, *more, devices=devices)
    process.reaches(workdir, step)
    for number in range(times):
      if number:
        time.sleep(1 / times)
      process.signal(signal.SIGTERM)
    process.end(75)
    return workdir, newest(workdir)


def rows(workdir: pathlib.Path) -> list[dict]:
  """metrics.jsonl, without what a clock made; a line cut short is left out."""
  out = []
  try:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
  except FileNotFoundError:
    return []
  for line in lines:
    with contextlib.suppress(ValueError):
      out.append({k: v for k, v in json.loads(line).items() if not clocks.made(k)})
  return out


def last_step(workdir: pathlib.Path) -> int:
  return max((r["step"] for r in rows(workdir)), default=0)


def judged(workdir: pathlib.Path) -> list[int]:
  """Steps whose evaluation is in metrics.jsonl."""
  return [r["step"] for r in rows(workdir) if "evals" in r]


def steps(workdir: pathlib.Path) -> list[int]:
  """Complete checkpoints."""
  found = glob.glob(str(workdir / "checkpoints" / "*"))
  return sorted(int(p.rsplit("/", 1)[1]) for p in found if re.fullmatch(r".*/\d+", p))


def newest(workdir: pathlib.Path) -> int:
  return max(steps(workdir), default=0)


def saving(workdir: pathlib.Path) -> list[str]:
  """Checkpoints that are being written."""
  return glob.glob(str(workdir / "checkpoints" / "*tmp*"))


def began(process: Process) -> int | None:
  """The step a run went on from, once it says so."""
  found = re.search(rf"^step (\d+) of {STEPS}, mesh", process.said(), re.M)
  return int(found[1]) if found else None


def same(a: pathlib.Path, b: pathlib.Path) -> bool:
  """Are arrays and metrics of two finished runs bitwise equal?

  The optimizer's arrays are compared by their checksums.
  """
  import jax

  from fluid.durable import checkpoint

  for weights in ("ema", "raw"):
    x, y = (checkpoint.restore_params(w, weights, STEPS)[0] for w in (a, b))
    equal = jax.tree.map(
      lambda m, n: np.asarray(m).tobytes() == np.asarray(n).tobytes(), x, y
    )
    if not all(jax.tree.leaves(equal)):
      return False
  sums = [
    json.loads((w / f"checkpoints/{STEPS}/data/metadata").read_text())["sums"]
    for w in (a, b)
  ]
  return sums[0] == sums[1] and rows(a) == rows(b)


def close(a: pathlib.Path, b: pathlib.Path, tolerance: float = 1e-5) -> float:
  """Largest relative difference of losses; raises Failure above the tolerance."""
  x, y = rows(a), rows(b)
  if [r["step"] for r in x] != [r["step"] for r in y]:
    raise Failure(f"{a} and {b} have other steps in metrics.jsonl")
  worst = max(
    abs(p[k] - q[k]) / max(abs(p[k]), 1e-9)
    for p, q in zip(x, y)
    for k in ("train/loss", "val/loss")
    if k in p
  )
  if worst > tolerance:
    raise Failure(f"losses of {a} and {b} differ by {worst:.2g}")
  return worst
