"""Several processes that train one model: joining, agreeing, noticing a loss.

Each process runs the same command. On Cloud TPU, Slurm and Open MPI
`--coordinator=auto` finds the others; elsewhere they are told where process 0 listens:

  python -m fluid.train ... --coordinator=HOST:PORT --processes=4 --process=0
"""

import ctypes
import functools
import itertools
import os
import pathlib
import re
import signal
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from jax._src import distributed as service
from jax.experimental import multihost_utils

from fluid import config, files
from fluid.console import cli, progress
from fluid.errors import REQUEUE

HEARTBEAT = 20  # Seconds of silence after which a process counts as lost.
_TEXT = 2048  # Bytes that a message between processes is cut to.
_DAYS = 7 * 24 * 3600 * 1000  # A week in milliseconds.
_MEETINGS = itertools.count()  # All processes come to the same ones in one order.
_GONE = (
  "stopped, since another process of this run is gone (see above); start all of them "
  "again: the run goes on from its last checkpoint"
)
# What jax's coordination service and Gloo say where the other end does not answer.
_NO_ANSWER = re.compile(
  r"coordination ?service|heartbeat|barrier failed|gloo|connection (closed|reset)"
  r"|nccl.*remote",
  re.I | re.S,
)


class _JoinError(config.ConfigError):
  """The processes did not find each other."""


class LostError(config.ConfigError):
  """Another process is gone, and this one cannot go on without it."""

  exit_code = REQUEUE

  def __init__(self):
    super().__init__(_GONE)


def define_flags() -> None:
  """--coordinator, --processes and --process, of `join`."""
  if "coordinator" not in flags.FLAGS:
    flags.DEFINE_string(
      "coordinator", "", "Several processes: 'auto' or HOST:PORT of process 0."
    )
    flags.DEFINE_integer("processes", None, "How many there are.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Which this one is, from 0.", lower_bound=0)


def join_by_flags() -> None:
  """Joins the other processes that the flags name, if any."""
  args = flags.FLAGS
  join(args.coordinator, args.processes, args.process)


def join(
  coordinator: str, processes: int | None = None, process: int | None = None
) -> None:
  """Joins the other processes; call it before anything touches a device.

  Args:
    coordinator: '' (one process), 'auto', or HOST:PORT of process 0.
    processes, process: how many there are, and which one this is (not for 'auto').

  Raises:
    ConfigError: the arguments do not fit together, or the others did not come.
  """
  if not coordinator:
    if processes is not None or process is not None:
      raise config.ConfigError("--processes and --process need --coordinator=HOST:PORT")
    return
  where: dict = {}
  if coordinator != "auto":
    if processes is None or process is None or not 0 <= process < processes:
      raise config.ConfigError(
        f"--coordinator={coordinator} needs --processes=N and --process=0 to N - 1"
      )
    where = {
      "coordinator_address": coordinator,
      "num_processes": processes,
      "process_id": process,
    }
  _on_abort()
  cli.joined(lost)
  try:
    jax.distributed.initialize(
      **where,
      heartbeat_timeout_seconds=HEARTBEAT,
      shutdown_timeout_seconds=HEARTBEAT,
    )
  except (RuntimeError, ValueError) as e:
    raise _JoinError(
      f"--coordinator={coordinator}: the processes did not find each other: "
      f"{str(e).splitlines()[0]}"
    ) from e


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _lost(number):
  del number
  os.write(2, f"error: {_GONE}\n".encode())
  os._exit(REQUEUE)


def _on_abort() -> None:
  # Where a process is lost, jax ends the others from a thread of its own by SIGABRT,
  # with a stack trace and no chance for Python to say what it means.
  ctypes.CDLL(None).signal(signal.SIGABRT, _lost)


def lost(error: BaseException | None) -> LostError | None:
  """What an error means if its cause is that a process that had joined is gone."""
  while error is not None:
    if isinstance(error, _JoinError):
      return None
    if isinstance(error, jax.errors.JaxRuntimeError) and _NO_ANSWER.search(str(error)):
      return LostError()
    error = error.__cause__ or error.__context__
  return None


def meet() -> None:
  """Waits until all processes are here, however long one of them works.

  A collective is no place to wait in: on CPUs XLA gives it up after half an hour.
  """
  if jax.process_count() > 1:
    client = service.global_state.client
    assert client is not None
    client.wait_at_barrier(f"fluid/{next(_MEETINGS)}", _DAYS)


def first(action: Callable[[], None]) -> None:
  """Runs `action` on process 0; what it raises for the user, all processes raise."""
  error = None
  if jax.process_index() == 0:
    try:
      action()
    except (config.ConfigError, OSError) as e:
      error = e
  said = of_first(config.one_line(error) if error else "")
  if error:
    raise error
  if said:
    raise config.ConfigError(said)


def of_first(text: str) -> str:
  """The text of process 0 on every process, cut to 2048 bytes; all of them call it."""
  if jax.process_count() == 1:
    return text
  meet()
  raw, out = text.encode()[:_TEXT], np.zeros(_TEXT, np.uint8)
  out[: len(raw)] = np.frombuffer(raw, np.uint8)
  out = multihost_utils.broadcast_one_to_all(out)
  return bytes(out[out > 0]).decode(errors="replace")


def say(line: str) -> None:
  """Prints a line, on process 0."""
  if jax.process_index() == 0:
    print(line, flush=True)


def write_json(path: pathlib.Path, value) -> None:
  """Replaces a file in one step; only process 0 writes."""
  if jax.process_index() == 0:
    files.write_json(path, value)


# Work that all processes do, of which one speaks.
track = functools.partial(progress.track, say=say)


def everyone(good: bool) -> bool:
  """Whether it is good on every process; all of them call it."""
  if jax.process_count() == 1:
    return good
  meet()
  return bool(multihost_utils.process_allgather(np.array(good)).all())
