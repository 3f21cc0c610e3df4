"""Timings that can be compared: variants in turn, medians, the machine's own peak.

Clock rates and neighbours change; a ratio of two numbers is only taken from one run in
which both were measured in turn.
"""

import json
import pathlib
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

MATMUL = 2048


def interleave(
  variants: dict[str, Callable[[], Any]], *, rounds: int = 7, warmup: int = 2
) -> dict[str, list[float]]:
  """Seconds of each call, variants in turn; a variant's call waits for its result."""
  times: dict[str, list[float]] = {name: [] for name in variants}
  for i in range(warmup + rounds):
    for name, run in variants.items():
      start = time.perf_counter()
      run()
      if i >= warmup:
        times[name].append(time.perf_counter() - start)
    print(f"round {i + 1} of {warmup + rounds}", file=sys.stderr, flush=True)
  return times


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
