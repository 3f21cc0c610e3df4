"""What a compiled program sends between devices, read from its HLO text.

Loops are counted as often as they run: a scanned layer's collectives once per layer.
"""

import dataclasses
import math
import re
from collections import defaultdict

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_WIDTH = {"pred": 8, "bf16": 16, "token": 0}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_OP = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_CALLS = re.compile(
  r"(?:calls|to_apply|branch_computations|called_computations)="
  r"\{?((?:%?[\w.\-]+(?:, )?)+)"
)


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Attributes: count of executions; bytes of the arrays; link_bytes that one device
  sends for them in a ring."""

  count: int = 0
  bytes: int = 0
  link_bytes: float = 0.0

  def __add__(self, other):
    return Traffic(
      self.count + other.count,
      self.bytes + other.bytes,
      self.link_bytes + other.link_bytes,
    )


def collectives(text: str) -> dict[str, Traffic]:
  """HLO text of a compiled program -> kind -> traffic of one device in one run."""
  bodies, entry = _computations(text)
  totals: dict[str, Traffic] = defaultdict(Traffic)

  def walk(name, times):
    for line in bodies.get(name, ()):
      op = _OP.match(line)
      if not op:
        continue
      shape, kind = op.groups()
      if kind == "while":
        body = re.search(r"body=%?([\w.\-]+)", line)[1]
        walk(body, times * _trips(line, bodies))
        continue
      pairs = kind in ("all-gather-start", "collective-permute-start")
      kind = kind.removesuffix("-start")
      if kind in KINDS:
        size, group = _bytes(shape, pairs), _group(line)
        if kind == "reduce-scatter":
          size *= group
        # A ring sends all but one's own share; a sum goes round twice.
        share = 1.0 if kind == "collective-permute" else (group - 1) / group
        link = size * share * (2 if kind == "all-reduce" else 1)
        totals[kind] += Traffic(times, times * size, times * link)
      else:
        for called in _CALLS.findall(line):
          for name in re.findall(r"[\w.\-]+", called):
            walk(name, times)

  walk(entry, 1)
  return dict(totals)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  bodies, entry, lines = {}, "", None
  for line in text.splitlines():
    start = _COMPUTATION.match(line)
    if start:
      lines = bodies.setdefault(start[1], [])
      entry = start[1] if line.startswith("ENTRY") else entry
    elif line.startswith("}"):
      lines = None
    elif lines is not None:
      lines.append(line.strip())
  return bodies, entry


def _trips(line: str, bodies: dict) -> int:
  """Iterations of a while: its known count, or the bound in its condition."""
  known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
  if known:
    return int(known[1])
  condition = bodies[re.search(r"condition=%?([\w.\-]+)", line)[1]]
  bounds = [
    int(c) for text in condition for c in re.findall(r" constant\((\d+)\)", text)
  ]
  return max(bounds, default=1)


def _bytes(shape: str, pairs: bool) -> int:
  """Bytes of the results: all of a tuple, its second half if operands come first."""
  sizes = []
  for kind, dims in _SHAPE.findall(shape):
    if kind in ("S", "T") or pairs and kind == "u32" and not dims:
      continue  # Memory space and tiling of a layout; handles of a permutation.
    digits = re.search(r"\d+", kind)
    bits = _WIDTH.get(kind, int(digits[0]) if digits else 0)
    sizes.append(math.prod(int(d) for d in dims.split(",") if d) * bits // 8)
  return sum(sizes[len(sizes) // 2 :] if pairs else sizes)


def _group(line: str) -> int:
  """Devices that take part together."""
  if m := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
    return int(m[2])
  if m := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
    sizes = dict(re.findall(r"'([\w]+)'=(\d+)", m[1]))
    return math.prod(int(sizes[a]) for a in re.findall(r"'([\w]+)'", m[2]))
  if m := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
    return len(m[1].split(","))
  return 2
