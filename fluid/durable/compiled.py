"""What XLA compiled, kept with the run: a start after the first one does not compile.

It lies in WORKDIR/cache, where jax was not told of another place
(JAX_COMPILATION_CACHE_DIR; empty: of none, as JAX_ENABLE_COMPILATION_CACHE=0 says). jax
writes from process 0 alone, reads from all, and goes on without what it cannot read.
Whoever can write there can have this process run code of theirs.
"""

import contextlib
import hashlib
import pathlib
import platform
from collections.abc import Iterator
from typing import Any

from fluid.console import pages

NAME = "cache"


def folder(workdir: Any) -> str:
  """The cache of a run or a sweep; on CPUs one for each kind, as machine code is."""
  place = f"{workdir}/{NAME}"
  if not pages.on_cpu():
    return place
  kind = hashlib.sha256((platform.machine() + cpu()).encode()).hexdigest()[:12]
  return f"{place}/cpu-{kind}"


def cpu() -> str:
  """What this kind of CPU can do, on a line; '' where that is not known."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  return next((x for x in lines if x.startswith(("flags", "Features"))), "")


@contextlib.contextmanager
def kept(workdir: Any) -> Iterator[None]:
  """In this block jax keeps what it compiles with the run."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  name = "jax_compilation_cache_dir"
  if getattr(jax.config, name) is not None:
    yield
    return
  jax.config.update(name, folder(workdir))
  try:
    yield
  finally:
    jax.config.update(name, None)
    compilation_cache.reset_cache()
