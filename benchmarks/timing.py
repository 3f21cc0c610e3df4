"""Timings that can be compared: variants in turn, medians, the machine's own peak.

Clock rates and neighbours change; a ratio of two numbers is only taken from one run in
which both were measured in turn.
"""

import json
import pathlib
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fluid.console.cli import UserError

MATMUL = 2048


def interleave(
  variants: dict[str, Callable[[], Any]],
  *,
  rounds: int = 7,
  warmup: int = 2,
  lead: int = 0,
) -> dict[str, list[float]]:
  """Seconds of each call, variants in turn; a variant's call waits for its result.

  Args:
    lead: calls before each timed one, of what is repeated where it is used: memory that
      a machine took back while others ran is had again. A step of LlamaGen-B after
      four seconds of rest takes up to 1.5 times as long as one after another.
  """
  times: dict[str, list[float]] = {name: [] for name in variants}
  for i in range(warmup + rounds):
    for name, run in variants.items():
      for _ in range(lead):
        run()
      start = time.perf_counter()
      run()
      if i >= warmup:
        times[name].append(time.perf_counter() - start)
    print(f"round {i + 1} of {warmup + rounds}", file=sys.stderr, flush=True)
  return times


class Apart:
  """A call that is made in a process of its own, which waits between calls.

  Two frameworks in one process take each other's freed memory, and their threads are
  in each other's way.

  Args:
    args: of the command, whose last word on it is `serve`.
  """

  def __init__(self, args: list[str]):
    self._process = subprocess.Popen(
      [sys.executable, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    self._answer()

  def __call__(self) -> None:
    print(file=self._process.stdin, flush=True)
    self._answer()

  def _answer(self) -> dict:
    said = self._process.stdout.readline()
    if not said:
      status = self._process.wait()
      raise UserError(f"what is timed beside it ended with status {status}, see above")
    return json.loads(said)

  def close(self) -> int:
    """Ends it; the peak bytes of its process."""
    self._process.stdin.close()
    found = self._answer()["peak_memory_bytes"]
    self._process.wait()
    return found


def serve(call: Callable[[], Any]) -> None:
  """Makes a call for each line of stdin, as `Apart` asks for them."""
  out, sys.stdout = sys.stdout, sys.stderr  # Of answers alone.
  print("{}", file=out, flush=True)
  for _ in sys.stdin:
    call()
    print("{}", file=out, flush=True)
  print(json.dumps({"peak_memory_bytes": peak_memory()}), file=out, flush=True)


def summary(seconds: list[float]) -> dict[str, float]:
  """Median, and the spread as half the distance between the quartiles."""
  q = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
  return {
    "median_s": statistics.median(seconds),
    "spread_s": (q[2] - q[0]) / 2,
    "rounds": len(seconds),
  }


def matmul(dtype: str) -> tuple[Callable[[], Any], int]:
  """A product of squares with float32 sums -> (call, FLOPs): the machine's peak."""
  a = jnp.ones((MATMUL, MATMUL), dtype)
  run = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32))
  return lambda: run(a).block_until_ready(), 2 * MATMUL**3


def peak_memory() -> int:
  """Largest resident size of this process so far, in bytes."""
  status = pathlib.Path("/proc/self/status")
  if status.exists():  # getrusage would count the process that started this one.
    return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) * 1024
  scale = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def write(path: str | None, report: dict) -> None:
  """Prints the report as JSON; writes it to `path` if one is given."""
  text = json.dumps(report, indent=2)
  print(text)
  if path:
    pathlib.Path(path).write_text(text + "\n")
