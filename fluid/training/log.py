"""Where a run's numbers are written: metrics.jsonl, TensorBoard, the terminal."""

import contextlib
import json
import math
import os
import pathlib
import time

import jax

from fluid import config, files
from fluid.console import progress
from fluid.parallel import distributed
from fluid.training.clocks import Clocks


class Writer:
  """Appends one JSON line per write to DIR/metrics.jsonl, and to TensorBoard if asked.

  A resumed run drops the lines beyond the step it resumes from, and a last line that a
  kill cut short, so that no step is there twice. Only process 0 writes.

  Attributes:
    kept: the lines of `step` that are there already (on process 0).
  """

  def __init__(self, workdir, *, step: int = 0, tensorboard=False, clock=time.time):
    self._clock = clock
    self._file = self._board = None
    self.kept = []
    if jax.process_index():
      return
    path = pathlib.Path(workdir) / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
      lines = [line for line in path.read_text().splitlines() if _step(line) <= step]
      self.kept = [json.loads(line) for line in lines if _step(line) == step]
      files.write_text(path, "".join(line + "\n" for line in lines))
    self._file = path.open("a")
    if tensorboard:
      try:  # Imports tensorflow: only where it is wanted.
        from clu import metric_writers
      except ImportError as e:
        raise config.ConfigError(
          f"config key 'tensorboard' is True, but {e}; install it or set it to False"
        ) from e
      self._board = metric_writers.SummaryWriter(str(path.parent / "tensorboard"))

  def write(self, step: int, values: dict) -> None:
    """values: name -> number or string; a number that is not finite becomes null."""
    if not self._file:
      return
    plain = {k: v if isinstance(v, str) else float(v) for k, v in values.items()}
    numbers = {k: v for k, v in plain.items() if not isinstance(v, str)}
    line = {"step": int(step), "time": round(self._clock(), 3)} | {
      k: v if math.isfinite(numbers.get(k, 0)) else None for k, v in plain.items()
    }
    try:
      self._file.write(json.dumps(line) + "\n")
      self._file.flush()
    except OSError as e:  # Its own error does not say which file.
      raise OSError(e.errno, e.strerror, self._file.name) from e
    if self._board:
      self._board.write_scalars(int(step), numbers)

  def sync(self) -> None:
    """Returns when all lines are on disk, in the file that has the name."""
    if self._file:
      os.fsync(self._file.fileno())

  def close(self) -> None:
    for out in (self._file, self._board):
      if out:
        with contextlib.suppress(OSError):  # What it could not write, `write` has said.
          out.close()


def _step(line: str) -> float:
  try:
    return json.loads(line)["step"]
  except (ValueError, KeyError, TypeError):
    return math.inf


class Log:
  """What a training loop tells: JSONL, TensorBoard and a line for a human.

  The metrics of a step are read after the next step was dispatched, so the devices
  never wait for the host.

  Attributes:
    images_per_s: mean over this process's steps after the first; None before that.
  """

  def __init__(
    self, cfg: config.Run, workdir, health, clocks: Clocks, *, step, flops, peak
  ):
    """`flops` per image forward, `peak` FLOP/s of all devices, `step` done already.

    `health.check(step, values, report)` sees every step and may stop the run.
    """
    self._cfg, self._rate = cfg, 3 * flops / peak
    self._health = health
    self._writer = Writer(workdir, step=step, tensorboard=cfg.tensorboard)
    self._pending: tuple[int, dict] | None = None
    self._lap = step
    self._images, self._seconds = 0, 0.0
    self._clocks = clocks

  @property
  def images_per_s(self) -> float | None:
    return round(self._images / self._seconds, 3) if self._images else None

  def evaluated(self) -> set[str]:
    """Evaluators whose results are there for the step that the run goes on from.

    All processes call it.
    """
    names = (row["evals"] for row in self._writer.kept if "evals" in row)
    return set(distributed.of_first(" ".join(names)).split())

  def step(self, step: int, values: dict[str, jax.Array]) -> None:
    """Takes the metrics of a step just dispatched, reports those of the one before."""
    self.flush()
    self._pending = step, values

  def first(self, step: int) -> dict[str, float]:
    """The first step, which compiled, is done: rates count from here.

    Returns:
      The seconds that it waited, by cause.
    """
    self._lap, seconds = step, self._clocks.started()
    parts = ", ".join(f"{k} {v:.1f}" for k, v in seconds.items())
    distributed.say(f"first step after {sum(seconds.values()):.1f} s: {parts}")
    return seconds

  def flush(self) -> None:
    """Reports the last step taken; raises what `health` has to say of it."""
    if self._pending is None:
      return
    step, values = self._pending
    self._pending = None
    report = values.get("report", {})
    scalars = {k: v for k, v in values.items() if k != "report"}
    values = {k: float(v) for k, v in jax.device_get(scalars).items()}
    self._health.check(step, values, report)
    every, last = self._cfg.log_every, self._cfg.steps
    if not (step == last or (every and step % every == 0)):
      return
    values |= self._health.counts
    if step > self._lap:  # Without a whole step there is no rate (right after start).
      seconds, wait = self._clocks.lap()
      images = (step - self._lap) * self._cfg.batch
      self._lap = step
      self._images, self._seconds = self._images + images, self._seconds + seconds
      rate = images / seconds
      values |= {"images_per_s": rate, "mfu": rate * self._rate, "input_wait": wait}
      left = progress.clock((last - step) * self._cfg.batch / rate)
      distributed.say(
        f"step {step}/{last}  loss {values['train/loss']:.4f}  {rate:.1f} images/s  "
        f"MFU {rate * self._rate:.1%}  ETA {left}"
      )
    self._writer.write(step, values | self._clocks.shares())

  def sync(self) -> None:
    """Makes sure that what was written is on disk; a checkpoint relies on it."""
    self._writer.sync()

  def results(self, step: int, values: dict) -> None:
    """Writes what an evaluator found."""
    self._writer.write(step, values)
    distributed.say(
      f"step {step}  "
      + "  ".join(
        f"{k} {v if isinstance(v, str) else format(float(v), '.4g')}"
        for k, v in values.items()
      )
    )

  def close(self) -> None:
    self._writer.close()
