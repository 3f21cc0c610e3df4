"""When to save and leave: SIGTERM or Ctrl-C, to this process or to another one.

  with Preemption() as preemption:
    while True:
      if preemption.reached(): save, raise Preempted

SIGTERM saves however often it comes: a scheduler sends it to a job and to its steps,
which pass it on. Ctrl-C twice ends the process at once, whatever it is doing.
"""

import ctypes
import os
import signal
import threading
import time

import jax
from jax.experimental import multihost_utils

from fluid import config
from fluid.errors import REQUEUE

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preempted(config.ConfigError):
  """The run was told to stop; what it did is saved."""

  label = "stopped"
  exit_code = REQUEUE


class Preemption:
  """Listens for signals in a thread of its own, so that they count during a compile.

  Several processes stop at one place: jax's coordination service hands the signal on
  and agrees on it. It knows of SIGTERM alone.

  Attributes:
    reason: what asked to stop.
    asked: whether a signal came to this process.
    stopping: the last answer of `reached`.
    since: seconds since it was asked, or since it heard that another one was; 0 before.
  """

  def __init__(self):
    self.reason = "a signal to another process"
    self.stopping = self.asked = False
    self._calls, self._when = 0, 0.0

  def __enter__(self):
    self._main = threading.current_thread() is threading.main_thread()
    if not self._main:  # A notebook's worker: signals belong to its main thread.
      return self
    self._joined = jax.distributed.is_initialized()
    self._notify = _native_handler() if self._joined else None
    self._read, self._write = os.pipe()
    os.set_blocking(self._write, False)
    self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
    self._before = {n: signal.signal(n, lambda *_: None) for n in SIGNALS}
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *error):
    if not self._main:
      return
    signal.set_wakeup_fd(self._wakeup)
    for number, handler in self._before.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)
    os.write(self._write, b"\0")
    self._thread.join()
    os.close(self._read), os.close(self._write)

  def _listen(self):
    heard = set()
    while number := os.read(self._read, 1)[0]:
      if number not in SIGNALS:
        continue
      if number in heard:
        if number == signal.SIGINT:
          os.write(2, b"stopped: at once, by a second SIGINT\n")
          os._exit(REQUEUE)
        continue
      name = signal.Signals(number).name
      again = "; again: at once" if number == signal.SIGINT else ""
      os.write(2, f"{name}: saves and stops{again}\n".encode())
      if not heard:
        self._when = time.monotonic()
        self.asked, self.reason = True, name
        if self._notify:
          self._notify(signal.SIGTERM)
      heard.add(number)

  def reached(self) -> bool:
    """Whether to save and stop now, and from then on.

    Every process calls it at the same places, as between steps and between batches of
    an evaluation, and all get the same answer there.
    """
    if self.stopping:
      return True
    self.stopping = self.asked
    if jax.distributed.is_initialized():
      self._calls += 1
      self.stopping = multihost_utils.reached_preemption_sync_point(self._calls)
    if self.stopping:
      self._when = self._when or time.monotonic()
    return self.stopping

  @property
  def since(self) -> float:
    return time.monotonic() - self._when if self._when else 0.0


def _native_handler():
  # jax.distributed's own handler of SIGTERM is C++; Python can only put it aside.
  libc = ctypes.CDLL(None)
  libc.signal.restype = ctypes.c_void_p
  libc.signal.argtypes = ctypes.c_int, ctypes.c_void_p
  address = libc.signal(signal.SIGTERM, None)
  if not address or address == 1 or address == ctypes.c_void_p(-1).value:
    return None
  return ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
