"""What a shard holds, counted while it is written.

SPLIT-00012.summary.json lies beside the shard. Of these a split's part of metadata.json
is made: whoever writes shards reads no record again, and none that another has written.

N records.
"""

import base64
import collections
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from fluid import config, files
from fluid.data import packing, records

ENDING = ".summary.json"


class Row(NamedTuple):
  """What is counted of an example.

  Attributes:
    bad: entry of packing.KINDS; '' for none.
    hash: of its image; 0 for none.
    captions: that it has; 0 of a bad one.
    cut: of these, how many were too long.
    mirrored: it has its mirror image.
  """

  bad: str
  hash: int
  captions: int
  cut: int
  mirrored: bool


def row(example: dict[str, Any]) -> Row:
  """Of an example, as it is given to packing.pack or comes from packing.unpack."""
  said = [] if "bad" in example else packing.texts(example)
  return Row(
    example.get("bad", ""),
    example.get("hash", 0),
    len(said),
    sum("cut" in text for text in said),
    "mirror" in example,
  )


def place(shard: pathlib.Path) -> pathlib.Path:
  """Where the summary of a shard lies."""
  return shard.with_name(shard.name.removesuffix(records.SHARD) + ENDING)


def write(shard: pathlib.Path, rows: list[Row]) -> None:
  """Writes the summary of a shard that is complete, of its N rows."""
  kinds = collections.Counter(r.bad for r in rows if r.bad)
  left_out = np.array([r.bad in packing.FILTERED for r in rows])
  hashes = np.array([r.hash for r in rows], "<u8")
  content = {
    "records": len(rows),
    "bytes": shard.stat().st_size,
    "sha256": files.sha256(shard),
    "bad": dict(sorted(kinds.items())),
    "captions": max(r.captions for r in rows),
    "cut_captions": sum(r.cut for r in rows),
    "mirrored": sum(r.mirrored for r in rows),
  }
  if left_out.any():
    content["unused"] = records.bitmap(left_out)
  if hashes.any():
    content["hashes"] = base64.b64encode(hashes.tobytes()).decode()
  files.write_json(place(shard), content)


def read(shard: pathlib.Path) -> dict[str, Any] | None:
  """The summary of a shard; None where there is none that can be read."""
  try:
    return json.loads(place(shard).read_text("utf-8"))
  except (FileNotFoundError, ValueError):
    return None


def describe(
  data: config.Data, split: str, shards: list[pathlib.Path]
) -> dict[str, Any]:
  """What metadata.json says of a split, of the summaries of all its shards.

  Raises:
    RecordError: one of them is missing.
  """
  found = [_read(path) for path in shards]
  total = lambda name: sum(s[name] for s in found)
  kinds: collections.Counter[str] = collections.Counter()
  for one in found:
    kinds.update(one["bad"])
  filtered = {k: n for k, n in kinds.items() if k in packing.FILTERED}
  # A small folder may have nothing to hold out.
  left_out = np.concatenate([np.zeros(0, bool), *map(_left_out, found)])
  if any("hashes" in one for one in found):
    again = _repeated(np.concatenate([*map(_hashes, found)]))
    filtered |= {packing.DUPLICATE: int(again.sum())} if again.any() else {}
    left_out |= again
  keys = "records", "bytes", "sha256"
  named = [{"name": p.name} | {k: s[k] for k in keys} for p, s in zip(shards, found)]
  ends = np.cumsum([s["records"] for s in named])
  for shard, rows in zip(named, np.split(left_out, ends[:-1])):
    if rows.any():
      shard["unused"] = records.bitmap(rows)
  content: dict[str, Any] = {
    "count": len(left_out),
    "cut_captions": total("cut_captions"),
    "skipped": {k: n for k, n in kinds.items() if k in packing.BAD},
    "shards": named,
  }
  if filtered:
    content["filtered"] = filtered
  if (most := max((s["captions"] for s in found), default=0)) > 1:
    content["captions"] = most
  if data.flips and split == "train":
    usable, mirrored = len(left_out) - kinds.total(), total("mirrored")
    content |= {"mirrored": mirrored, "unmirrored": usable - mirrored}
  return content


def _read(shard: pathlib.Path) -> dict[str, Any]:
  if (found := read(shard)) is None:
    raise records.RecordError(f"{place(shard)} is missing: start fluid.prepare again")
  return found


def _left_out(summary: dict[str, Any]) -> np.ndarray:
  """Bools [N]."""
  n = summary["records"]
  own = summary.get("unused")
  return records.from_bitmap(own, n) if own else np.zeros(n, bool)


def _hashes(summary: dict[str, Any]) -> np.ndarray:
  """uint64 [N]; 0 is none."""
  if "hashes" in summary:
    return np.frombuffer(base64.b64decode(summary["hashes"]), "<u8")
  return np.zeros(summary["records"], np.uint64)


def _repeated(hashes: np.ndarray) -> np.ndarray:
  """Which of hashes [N] uint64 were there before; 0 is none."""
  _, first = np.unique(hashes, return_index=True)
  out = hashes != 0
  out[first] = False
  return out
