"""Memory on CPUs: huge pages, and an allocator that keeps what it freed.

Outputs of XLA's programs are fresh memory, whose pages the kernel clears one by one as
they are touched: with large pages kept a toy training step takes 0.6 of the time. The
C library reads its settings when a process starts.
"""

import os
import sys
from pathlib import Path

ENV = {
  "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
  "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
  "MALLOC_TOP_PAD_": str(256 << 20),
}


def on_cpu() -> bool:
  """Whether jobs started here will compute on the CPU, judged without importing jax."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  if platforms:
    return platforms == "cpu"
  return not any(Path(p).exists() for p in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio"))


def settle() -> None:
  """Starts this command once more, with these settings, where they help and are not.

  A process of the same number, arguments and files; nothing must have begun yet. Any
  GLIBC_TUNABLES of the user's own, even '', leave it as it is.
  """
  if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ and on_cpu():
    sys.stdout.flush()
    sys.stderr.flush()
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, {**ENV, **os.environ})
