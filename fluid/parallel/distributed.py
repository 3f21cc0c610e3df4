"""Several processes that train one model: joining, agreeing, noticing a loss.

Each process runs the same command. On Cloud TPU, Slurm and Open MPI
`--coordinator=auto` finds the others; elsewhere they are told where process 0 listens:

  python -m fluid.train ... --coordinator=HOST:PORT --processes=4 --process=0

On GPUs a process drives one GPU, or all of its machine: never some of them.
"""

import atexit
import contextlib
import ctypes
import functools
import itertools
import os
import pathlib
import re
import signal
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import flags
from jax._src import distributed as service
from jax.experimental import multihost_utils

from fluid import config, files
from fluid.console import cli, progress
from fluid.errors import REQUEUE, exit_code
from fluid.parallel.watch import AGAIN, Watch

JOIN = 300  # Seconds that the first processes wait for the last one.
HEARTBEAT = 20  # Seconds of silence after which a process counts as lost.
_TEXT = 2048  # Bytes that a message between processes is cut to.
_DAYS = 7 * 24 * 3600 * 1000  # A week in milliseconds.
_MEETINGS = itertools.count()  # All processes come to the same ones in one order.
_GONE = f"stopped, since another process of this run is gone (see above); {AGAIN}"
_ALONE = (
  "stopped, since the processes of this run did not find each other (see above): is "
  "the coordinator's address right, is its port free, do the names of the machines "
  "resolve on all of them, were all started within --join_timeout?"
)
# What jax's coordination service and Gloo say where the other end does not answer.
_NO_ANSWER = re.compile(
  r"coordination ?service|heartbeat|barrier failed|gloo|connection (closed|reset)"
  r"|nccl.*remote",
  re.I | re.S,
)


_watch: Watch | None = None
joined_in = 0.0  # Seconds that it took to find the others.


class _JoinError(config.ConfigError):
  """The processes did not find each other."""

  exit_code = REQUEUE  # The others may come late, as where a queue starts them.


class LostError(config.ConfigError):
  """Another process is gone, and this one cannot go on without it.

  Where that process said why, so does this one, and ends as it did.
  """

  def __init__(self):
    text, self.exit_code = _failed()
    super().__init__(text)


def define_flags() -> None:
  """The flags of `join`."""
  if "coordinator" not in flags.FLAGS:
    flags.DEFINE_string(
      "coordinator", "", "Several processes: 'auto' or HOST:PORT of process 0."
    )
    flags.DEFINE_integer("processes", None, "How many there are.", lower_bound=1)
    flags.DEFINE_integer("process", None, "Which this one is, from 0.", lower_bound=0)
    flags.DEFINE_integer(
      "join_timeout", JOIN, "Seconds to wait for the other processes.", lower_bound=1
    )
    flags.DEFINE_integer(
      "heartbeat_timeout",
      HEARTBEAT,
      "Seconds until a silent one is lost.",
      lower_bound=1,
    )


def join_by_flags() -> None:
  """Joins the other processes that the flags name, if any."""
  args = flags.FLAGS
  join(
    args.coordinator,
    args.processes,
    args.process,
    timeout=args.join_timeout,
    heartbeat=args.heartbeat_timeout,
  )


def join(
  coordinator: str,
  processes: int | None = None,
  process: int | None = None,
  *,
  timeout: int = JOIN,
  heartbeat: int = HEARTBEAT,
) -> None:
  """Joins the other processes; call it before anything touches a device.

  Args:
    coordinator: '' (one process), 'auto', or HOST:PORT of process 0.
    processes, process: how many there are, and which one this is (not for 'auto').
    timeout: seconds that they may take to find each other.
    heartbeat: seconds of silence after which one counts as lost.

  Raises:
    ConfigError: the arguments do not fit together, or the others did not come.
  """
  global _watch, joined_in
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
  elif (gpus := _gpus_of_slurm_task(os.environ)) is not None:
    where = {"local_device_ids": gpus}
  _on_abort(_not_joined)
  cli.joined(lost, failed)
  began = time.monotonic()
  try:
    jax.distributed.initialize(
      **where,
      initialization_timeout=timeout,
      heartbeat_timeout_seconds=heartbeat,
      shutdown_timeout_seconds=heartbeat,
    )
  except ValueError as e:
    raise config.ConfigError(
      f"--coordinator={coordinator}: {str(e).splitlines()[0]}"
    ) from e
  except RuntimeError as e:
    raise _JoinError(
      f"--coordinator={coordinator}: the processes did not find each other within "
      f"{timeout} s (--join_timeout): {str(e).splitlines()[0]}"
    ) from e
  _on_abort(_lost)
  joined_in = time.monotonic() - began
  state = service.global_state
  if state.num_processes > 1:
    _watch = Watch(state.client, state.process_id, state.num_processes, _leave)
    atexit.register(_watch.stop)  # Called before jax takes leave of the service.


def _gpus_of_slurm_task(env) -> list[int] | None:
  """Which of the GPUs that it sees a task of Slurm drives; None: jax's choice.

  jax gives task n of a machine its n-th GPU, however many there are.

  Raises:
    ConfigError: GPUs would be left over.
  """
  if "SLURM_PROCID" not in env or "JAX_LOCAL_DEVICE_IDS" in env:
    return None
  seen = env.get("CUDA_VISIBLE_DEVICES", env.get("SLURM_STEP_GPUS", ""))
  gpus = len([x for x in seen.split(",") if x.strip()])
  # '2(x3),1': tasks of each node, from the first on.
  counts = [
    int(n)
    for n, times in re.findall(
      r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")
    )
    for _ in range(int(times or 1))
  ]
  node = int(env.get("SLURM_NODEID", 0))
  tasks = counts[node] if node < len(counts) else 1
  if gpus <= 1:  # None, or --gpus-per-task has hidden the others.
    return [0] if gpus else None
  if tasks == 1:
    return list(range(gpus))
  if tasks != gpus:
    raise config.ConfigError(
      f"{tasks} tasks of Slurm on a machine of {gpus} GPUs would leave some idle: "
      f"start one (--ntasks-per-node=1) or {gpus}"
    )
  return None


def _failed() -> tuple[str, int]:
  """What the first process that failed said, and its exit status."""
  return (_watch and _watch.failed) or (_GONE, REQUEUE)


def _leave(text: str, status: int) -> None:
  os.write(2, f"error: {text}\n".encode())
  os._exit(status)


def _saying(why: Callable[[], tuple[str, int]]):
  return ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: _leave(*why()))


_not_joined, _lost = _saying(lambda: (_ALONE, REQUEUE)), _saying(_failed)


def _on_abort(handler) -> None:
  # Where a process is lost or never comes, jax ends the others by SIGABRT, from a
  # thread of its own, with a stack trace and no chance for Python to say what it means.
  ctypes.CDLL(None).signal(signal.SIGABRT, handler)


def failed(error: BaseException, status: int) -> None:
  """Tells the other processes what this one ends by, if none has before it."""
  ends = getattr(error, "label", "error") == "error"  # And is not told to stop.
  if _watch and ends and not isinstance(error, LostError):
    text = config.one_line(error)
    known = isinstance(error, config.ConfigError | OSError)
    _watch.fail(text if known else f"{type(error).__name__}: {text}", status)


def steps(where: Callable[[], tuple[int, str]], patience: float):
  """A block in which processes make steps together: see `watch.Watch.steps`."""
  return _watch.steps(where, patience) if _watch else contextlib.nullcontext()


def waiting():
  """A block in which this process waits for the others: see `watch.Watch.waiting`."""
  return _watch.waiting() if _watch else contextlib.nullcontext()


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
    with waiting():
      client.wait_at_barrier(f"fluid/{next(_MEETINGS)}", _DAYS)


def first(action: Callable[[], None]) -> None:
  """Runs `action` on process 0; what it raises for the user, all processes raise."""
  error = None
  if jax.process_index() == 0:
    try:
      action()
    except (config.ConfigError, OSError) as e:
      error = e
  said = of_first(f"{exit_code(error)} {config.one_line(error)}" if error else "")
  if error:
    raise error
  if said:
    code, _, text = said.partition(" ")
    other = config.ConfigError(text)
    other.exit_code = int(code)  # type: ignore[attr-defined]
    raise other


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
