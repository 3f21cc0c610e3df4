"""Averages, where numbers are written, and how long steps take.

`Mean` is the one place where a loss or a metric is averaged, in training, accumulation
and evaluation: sums and counts are added up, and divided once.
"""

import contextlib
import json
import math
import os
import pathlib
import time

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mean:
  """A weighted mean that has not been divided yet: Means add up exactly."""

  sum: jax.Array
  count: jax.Array

  @classmethod
  def of(cls, values: jax.Array, weights: jax.Array | None = None) -> "Mean":
    """Sums values [...] under weights (same leading axes; default: all 1), float32."""
    values = values.astype(jnp.float32)
    w = jnp.ones_like(values) if weights is None else weights.astype(jnp.float32)
    w = w.reshape(w.shape + (1,) * (values.ndim - w.ndim))
    # A masked value may be NaN (padding); it must not get into the sum as 0 * NaN.
    kept = jnp.where(w != 0, values * w, 0.0)
    return cls(kept.sum(), jnp.broadcast_to(w, values.shape).sum())

  def __add__(self, other: "Mean") -> "Mean":
    return Mean(self.sum + other.sum, self.count + other.count)

  @property
  def value(self) -> jax.Array:
    """The mean; 0 where nothing was counted."""
    return self.sum / jnp.maximum(self.count, 1e-30)


class Writer:
  """Appends one JSON line per write to DIR/metrics.jsonl, and to TensorBoard if asked.

  A resumed run drops the lines beyond the step it resumes from, and a last line that a
  kill cut short, so that no step is there twice. Only process 0 writes.
  """

  def __init__(self, workdir, *, step: int = 0, tensorboard=False, clock=time.time):
    self._clock = clock
    self._file = self._board = None
    if jax.process_index():
      return
    path = pathlib.Path(workdir) / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
      kept = [line for line in path.read_text().splitlines() if _step(line) <= step]
      scratch = path.with_suffix(".tmp")
      scratch.write_text("".join(line + "\n" for line in kept))
      os.replace(scratch, path)
    self._file = path.open("a")
    if tensorboard:
      from clu import metric_writers  # Imports tensorflow: only where it is wanted.

      self._board = metric_writers.SummaryWriter(str(path.parent / "tensorboard"))

  def write(self, step: int, values: dict) -> None:
    """values: name -> number or string; a number that is not finite becomes null."""
    if not self._file:
      return
    plain = {k: v if isinstance(v, str) else float(v) for k, v in values.items()}
    numbers = {k: v for k, v in plain.items() if not isinstance(v, str)}
    line = {"step": int(step), "time": round(self._clock(), 3)} | {
      k: None if k in numbers and not math.isfinite(v) else v for k, v in plain.items()
    }
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    if self._board:
      self._board.write_scalars(int(step), numbers)

  def close(self) -> None:
    for out in (self._file, self._board):
      if out:
        out.close()


def _step(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):
    return math.inf


class Timer:
  """Rates between log points; evaluation and checkpoints are kept out of them.

  Attributes:
    excluded, waited: seconds since the last `lap`, outside training and for input.
  """

  def __init__(self, clock=time.perf_counter):
    self._clock = clock
    self._last = clock()
    self.excluded = self.waited = 0.0

  @contextlib.contextmanager
  def exclude(self):
    """Time in this block does not count as training."""
    start = self._clock()
    yield
    self.excluded += self._clock() - start

  @contextlib.contextmanager
  def wait(self):
    """Time in this block is waiting for input."""
    start = self._clock()
    yield
    self.waited += self._clock() - start

  def lap(self) -> tuple[float, float]:
    """Seconds of training since the last lap, and the share spent waiting."""
    now = self._clock()
    seconds = max(now - self._last - self.excluded, 1e-9)
    share = self.waited / seconds
    self._last, self.excluded, self.waited = now, 0.0, 0.0
    return seconds, share


def progress(
  step: int, steps: int, loss: float, images_per_s: float, mfu: float, batch: int
) -> str:
  """One line for a human: step, loss, images/s, MFU, time to go."""
  left = int((steps - step) * batch / images_per_s)
  eta = f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"
  return (
    f"step {step}/{steps}  loss {loss:.4f}  {images_per_s:.1f} images/s  "
    f"MFU {mfu:.1%}  ETA {eta}"
  )
