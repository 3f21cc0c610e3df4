"""What a stage runs on: slices of a TPU, nodes with GPUs, or plain hosts.

As text 'v5p:4x4x8 x 2' (two slices), 'gpu:4x8' (hosts x GPUs), 'cpu:2x1' (hosts x
processes), with ' spot' behind it for machines that may be taken away.
"""

import dataclasses
import math
import re

from fluid.errors import ConfigError

CHIPS_PER_HOST = 4
# Shapes of a slice. 3D ones are any cuboid of 4x4x4 cubes beyond the small ones.
_FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16".split()
_SMALL = "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4".split()


@dataclasses.dataclass(frozen=True)
class Tpu:
  """A generation: names that engines have for it, and the chips of its largest slice.

  Attributes:
    accelerator: prefix of Cloud TPU's accelerator types, which count `cores` a chip.
    gke: value of GKE's node label.
    runtime: image of a TPU VM.
  """

  dimensions: int
  most: int
  accelerator: str
  cores: int
  gke: str
  runtime: str


TPUS = {
  "v4": Tpu(3, 4096, "v4", 2, "tpu-v4-podslice", "tpu-ubuntu2204-base"),
  "v5e": Tpu(2, 256, "v5litepod", 1, "tpu-v5-lite-podslice", "v2-alpha-tpuv5-lite"),
  "v5p": Tpu(3, 6144, "v5p", 2, "tpu-v5p-slice", "v2-alpha-tpuv5"),
  "v6e": Tpu(2, 256, "v6e", 1, "tpu-v6e-slice", "v2-alpha-tpuv6e"),
}


@dataclasses.dataclass(frozen=True)
class Hardware:
  """Where the processes of one stage run.

  Attributes:
    kind: 'cpu', 'gpu', or a key of TPUS.
    topology: of a slice in chips, '4x4x8'; '' unless kind is a TPU.
    slices: TPU slices.
    hosts: machines, of all slices together.
    tasks: processes on each of them.
    gpus: on each of them.
    spot: may be taken away at any time.
  """

  kind: str
  topology: str = ""
  slices: int = 1
  hosts: int = 1
  tasks: int = 1
  gpus: int = 0
  spot: bool = False

  @property
  def tpu(self) -> Tpu | None:
    return TPUS.get(self.kind)

  @property
  def chips(self) -> int:
    """Devices that are paid for: TPU chips or GPUs; hosts where there are none."""
    if self.tpu:
      return self.slices * _chips(self.topology)
    return self.hosts * (self.gpus or 1)

  @property
  def processes(self) -> int:
    return self.hosts * self.tasks

  @property
  def accelerator(self) -> str:
    """Cloud TPU's accelerator type of one slice: 'v5p-128' is v5p:4x4x4."""
    assert self.tpu
    return f"{self.tpu.accelerator}-{self.tpu.cores * _chips(self.topology)}"

  def one_host(self) -> "Hardware":
    """One machine of the same kind with one process, for what is not divided."""
    if self.tpu:
      small = {2: "2x2", 3: "2x2x1"}[self.tpu.dimensions]
      return Hardware(self.kind, small, spot=self.spot)
    return Hardware(self.kind, gpus=min(self.gpus, 1), spot=self.spot)

  def __str__(self) -> str:
    if self.tpu:
      many = f" x {self.slices}" if self.slices > 1 else ""
      text = f"{self.kind}:{self.topology}{many}"
    else:
      text = f"{self.kind}:{self.hosts}x{self.gpus or self.tasks}"
    return text + (" spot" if self.spot else "")


def parse(text: str) -> Hardware:
  """'v5p:4x4x8 x 2 spot' -> Hardware; the module docstring has the forms.

  Raises:
    ConfigError: no such kind, or a shape that it does not come in.
  """
  found = re.fullmatch(
    r"\s*(\w+):(\d+(?:x\d+)+)(?:\s+x\s*([1-9]\d*))?(\s+spot)?\s*", text
  )
  kinds = ", ".join([*TPUS, "gpu", "cpu"])
  if not found or found[1] not in (*TPUS, "gpu", "cpu"):
    raise ConfigError(
      f"topology '{text}' is unknown: like v5p:4x4x4, 'v5p:4x4x8 x 2', gpu:4x8 (hosts "
      f"x GPUs) or cpu:2x1 (hosts x processes); kinds: {kinds}"
    )
  kind, shape, slices, spot = found[1], found[2], int(found[3] or 1), bool(found[4])
  if kind not in TPUS:
    sizes = [int(n) for n in shape.split("x")]
    if len(sizes) != 2 or slices > 1 or 0 in sizes:
      raise ConfigError(f"topology '{text}': {kind} takes hosts x {kind}s, like 2x8")
    hosts, each = sizes
    more = {"gpus": each} if kind == "gpu" else {"tasks": each}
    return Hardware(kind, hosts=hosts, spot=spot, **more)
  if why := _wrong(TPUS[kind], shape):
    raise ConfigError(f"topology '{text}' does not exist: {kind} slices are {why}")
  hosts = slices * max(1, _chips(shape) // CHIPS_PER_HOST)
  return Hardware(kind, shape, slices, hosts, spot=spot)


def _chips(shape: str) -> int:
  return math.prod(int(n) for n in shape.split("x"))


def _wrong(tpu: Tpu, shape: str) -> str:
  """What shapes there are, where this is none of them; else ''."""
  if tpu.dimensions == 2:
    return "" if shape in _FLAT else ", ".join(_FLAT)
  sides = [int(n) for n in shape.split("x")]
  cubes = len(sides) == 3 and not any(n % 4 or not n for n in sides)
  if shape in _SMALL or cubes and sides == sorted(sides) and _chips(shape) <= tpu.most:
    return ""
  return f"{', '.join(_SMALL)}, or multiples of 4 in rising order, {tpu.most} at most"
