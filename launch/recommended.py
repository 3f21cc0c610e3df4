"""Slices for the paper's sizes, and what the compiler said of them.

launch/topologies.json has a report of launch.aot_compile for each row;
`python -m launch.topologies` writes it.
"""

import functools
import json
from pathlib import Path
from typing import Any

from fluid.errors import ConfigError
from launch import hardware

REPORTS = Path(__file__).with_name("topologies.json")
GENERATION = "v5p"  # Where none is asked for.
# Weights over 16 devices, copies of these over the rest: the gathers and scatters of a
# layer stay in a corner of the torus. With the whole slice as one group libtpu turns
# them into all-reduces, and a shard of width / 64 no longer fills its tiles.
SHARDED = {"mesh.data": -1, "mesh.fsdp": 16}
# With memory to spare products are kept: three quarters of the FLOPs of a step with
# remat=block, the default (docs/performance.md).
KEPT = SHARDED | {"model.trunk.remat": "dots"}
# For 16 GiB a device: a sixty-fourth of the optimizer's state.
SPREAD = {"mesh.data": -1, "mesh.fsdp": 64}

# size -> (generation and shape of a slice, slices, what differs from configs/fluid.py).
RECOMMENDED: dict[str, list[tuple[str, int, dict[str, Any]]]] = {
  "166M": [("v5e:4x8", 1, SHARDED), ("v5p:2x2x4", 1, KEPT), ("v6e:4x4", 1, SHARDED)],
  "369M": [("v5e:8x8", 1, SHARDED), ("v5p:2x4x4", 1, KEPT), ("v6e:4x8", 1, SHARDED)],
  "665M": [("v5e:8x8", 1, SHARDED), ("v5p:2x4x4", 1, KEPT), ("v6e:4x8", 1, SHARDED)],
  "1.1B": [
    ("v5e:8x16", 1, SHARDED), ("v5p:4x4x4", 1, KEPT), ("v6e:8x8", 1, SHARDED),
  ],
  "3.1B": [
    ("v5e:16x16", 1, SHARDED), ("v5p:4x4x4", 1, KEPT), ("v6e:8x16", 1, SHARDED),
  ],
  "10.5B": [
    ("v5e:16x16", 1, SPREAD), ("v5p:4x4x8", 1, KEPT), ("v6e:8x16", 1, SHARDED),
    ("v5p:4x4x8", 2, KEPT),
  ],
}  # fmt: skip


def name(size: str, cell: str, topology: str, slices: int) -> str:
  """A row's name; topology as 'v5p:4x4x4'."""
  return f"{size} {cell} on {topology}" + (f" x {slices}" if slices > 1 else "")


def of(size: str, generation: str = GENERATION) -> tuple[hardware.Hardware, dict]:
  """A size -> the first slice recommended of a generation, and what to override."""
  for topology, slices, overrides in RECOMMENDED.get(size, ()):
    if topology.startswith(f"{generation}:"):
      return hardware.parse(f"{topology} x {slices}"), dict(overrides)
  known = sorted({t.split(":")[0] for rows in RECOMMENDED.values() for t, *_ in rows})
  raise ConfigError(
    f"no {generation} slice is recommended for size '{size}' (generations: "
    f"{', '.join(known)}; sizes: {', '.join(RECOMMENDED)}): --topology names one"
  )


def mesh(size: str, asked: hardware.Hardware) -> dict[str, Any]:
  """What to override on a slice that was asked for; {} where it is no row."""
  for topology, slices, overrides in RECOMMENDED.get(size, ()):
    if (f"{asked.kind}:{asked.topology}", asked.slices) == (topology, slices):
      return dict(overrides)
  return {}


@functools.cache
def reports() -> dict[str, dict[str, Any]]:
  """Row -> its report; empty without the file."""
  return json.loads(REPORTS.read_text()) if REPORTS.is_file() else {}
