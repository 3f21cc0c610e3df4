"""What XLA compiled for the tests, kept for the next time they run.

In FLUID_TEST_CACHE, by default a folder of the user's cache; 'off' keeps nothing. Most
of a test of models is compilation: with a warm cache it takes about 0.4 of the time.
"""

import hashlib
import os
import pathlib
import platform

import jax

from fluid.durable import compiled

MAPPINGS = 25_000  # Linux allows 65,530.


def keep() -> None:
  """Uses the cache here, and in the processes that tests start."""
  where = os.environ.get("FLUID_TEST_CACHE", "")
  if where == "off" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  root = pathlib.Path(where or pathlib.Path.home() / ".cache" / "fluid-tests")
  options = {
    # Machine code is for one kind of CPU.
    "JAX_COMPILATION_CACHE_DIR": str(root / _machine()),
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  os.environ |= options
  for name, value in options.items():
    old = getattr(jax.config, name.lower())
    jax.config.update(name.lower(), type(old)(value) if old is not None else value)


def forget() -> None:
  """Unloads compiled programs where the process nears the kernel's limit of mappings.

  Each program on a CPU takes dozens of them, and one past the limit is a segmentation
  fault inside LLVM. What was unloaded comes back from the cache.
  """
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > MAPPINGS:
    jax.clear_caches()


def _machine() -> str:
  text = platform.machine() + platform.python_version() + jax.__version__
  text += compiled.cpu()
  return hashlib.sha256(text.encode()).hexdigest()[:12]
