"""TPU generations: what a device has and what its data sheet promises.

Rates per jax device. Sources: Google Cloud's pages of each version (bf16 peak, HBM size
and bandwidth, interchip bandwidth per chip in one direction, data center network per
host or pod divided by its chips). A TPU7x chip shows up as two devices.
"""

import dataclasses

from fluid import config, flops


@dataclasses.dataclass(frozen=True)
class Chip:
  """Attributes: memory in bytes; hbm, ici and dcn in bytes a second."""

  memory: float
  hbm: float
  ici: float
  dcn: float


CHIPS = {
  "TPU v4": Chip(32 * 2**30, 1.228e12, 0.3e12, 3.1e9),
  "TPU v5 lite": Chip(16 * 2**30, 0.819e12, 0.2e12, 3.1e9),
  "TPU v5": Chip(95 * 2**30, 2.765e12, 0.6e12, 6.25e9),
  "TPU v6 lite": Chip(32 * 2**30, 1.6e12, 0.4e12, 12.5e9),
  "TPU7x": Chip(96 * 2**30, 3.69e12, 0.6e12, 12.5e9),
}


def of(device) -> tuple[Chip, float]:
  """Device -> its chip and its peak in bfloat16 FLOP/s."""
  kind = device.device_kind
  if kind not in CHIPS:
    raise config.ConfigError(
      f"no data sheet for '{kind}'; add it to launch/chips.py: {', '.join(CHIPS)}"
    )
  return CHIPS[kind], flops.peak([device])


def devices(topology: str, slices: int = 1) -> list:
  """Devices to compile for, e.g. of 'v5p:4x4x4'; needs libtpu, not a TPU.

  Raises:
    ConfigError: libtpu is missing, or does not know the topology.
  """
  from jax.experimental import topologies

  try:
    import libtpu  # noqa: F401
  except ImportError:
    raise config.ConfigError(
      "libtpu is not installed; pip install -r requirements-tpu.txt"
    ) from None
  try:
    many = {"num_slices": slices} if slices > 1 else {}
    return topologies.get_topology_desc(topology, "tpu", **many).devices
  except Exception as e:  # libtpu's errors have no common class.
    reason = " ".join(str(e).split())[:160]
    raise config.ConfigError(
      f"topology '{topology}' is unknown (like v5e:8x8, v5p:4x4x4, v6e:16x16): {reason}"
    ) from e
