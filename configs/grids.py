"""Sweeps as tables: what `analysis.plan --sweep` writes is rows for `runs`."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def runs(
  config: str, rows: Iterable[tuple], common: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
  """Rows (name, cell, size, layers, width, heads, steps, warmup) -> entries of a sweep.

  Args:
    config: the module that get_config is of, such as configs/toy.py.
    rows: warmup None leaves the config's; each run is evaluated four times.
    common: overrides of all runs.
  """
  for name, cell, size, layers, width, heads, steps, warmup in rows:
    tokens, _, order = cell.partition("-")
    overrides = dict(common or {}) | {
      "model.size": size,
      "model.trunk.layers": layers,
      "model.trunk.width": width,
      "model.trunk.heads": heads,
      "steps": steps,
      "eval_every": max(1, steps // 4),
      "checkpoint_every": max(1, steps // 4),
    }
    if warmup is not None:
      overrides["optim.warmup"] = warmup
    config_of = f"{config}:tokens={tokens},order={order}"
    yield dict(name=name, config=config_of, overrides=overrides)
