"""Metrics of two sets of images: features of both, a number of each metric, its record.

A record says all that a number hangs on: how many images, which network and resize,
width, seed, protocol.

N images, D features.
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from fluid import config
from fluid.config import identity
from fluid.console import progress
from fluid.evals import features as feature_nets
from fluid.evals import parts
from fluid.evals.metrics import (
  METRICS,
  PROTOCOLS,
  Metric,
  Protocol,
  Side,
  frechet,
  parse,
)
from fluid.evals.sets import ImageSet

REPLACED = "replaced"  # Kept beside features: ImageSet.replaced.


@dataclasses.dataclass(frozen=True)
class Sides:
  """Both sets in one network: its name, and by output its width and the features."""

  network: str
  widths: Mapping[str, int]
  judged: Mapping[str, Side]
  real: Mapping[str, Side]


def check(names: Sequence[str], x: ImageSet, y: ImageSet | None) -> None:
  """Raises ConfigError for metrics that cannot be had of two sets, before any work."""
  for name in names:
    _check(name, parse(name)[0], x, y)


def possible(x: ImageSet, y: ImageSet | None) -> list[str]:
  """Names of all metrics of two sets, on their usual networks and on EffNet.

  Pixels are compared where that is asked for by name alone: two sets of as many images
  are rarely pairs.
  """
  out = []
  whole = y is not None and y.images is not None
  for name, metric in METRICS.items():
    # Files of statistics are of Inception's.
    given = y is not None and metric.output in y.statistics
    real = metric.needs == "real" and (whole or given and metric.network == "Inception")
    images = metric.needs == "images" and whole
    texts = metric.needs == "texts" and len(x.texts) == len(x)
    if real or images or texts or not metric.needs:
      if name != "kid_subsets":
        out.append(name)
  own = ("kid", "fd", "vendi")
  return out + [f"{name}@EffNet" for name in own if name in out]


def measure(
  names: Sequence[str],
  x: ImageSet,
  y: ImageSet | None = None,
  *,
  protocol: str = "torch_fidelity",
  seed: int = 0,
  cache: str | pathlib.Path | None = None,
  batch: int = 0,
  missing: str = "raise",
  usual: int = 0,
  track=progress.silent,
) -> list[dict]:
  """Measures a set, most metrics against another.

  Args:
    names: of METRICS, with networks; each network runs once.
    x: the set judged.
    y: the real one.
    protocol: entry of PROTOCOLS.
    seed: of bootstraps and draws.
    cache: folder where features are kept, so that work that ended early goes on.
    batch: images per call of a network, see features.extract.
    missing: 'raise', or 'say' so in the record where a network's weights are not
      there.
    usual: images that published numbers are of (0: the protocol's).
    track: see progress.track.

  Returns:
    Records, JSON-able, in the order of the names.

  Raises:
    ConfigError: an unknown name, no second set, statistics of another network or
      width, too few images.
  """
  if protocol not in PROTOCOLS:
    raise config.ConfigError(
      f"unknown protocol '{protocol}'; choose from {', '.join(PROTOCOLS)}"
    )
  asked = [parse(name) for name in names]
  check(names, x, y)
  usual = usual or PROTOCOLS[protocol].images
  # Each network's outputs of each set, all at once.
  wanted: dict[str, dict[str, None]] = {}
  for metric, _ in asked:
    wanted.setdefault(metric.network, {})[metric.output] = None
  sides: dict[str, Any] = {}
  for network, outputs in wanted.items():
    try:
      sides[network] = _sides(
        network, tuple(outputs), asked, x, y, PROTOCOLS[protocol], cache, batch, track
      )
    except feature_nets.MissingWeights as e:
      if missing == "raise":
        raise
      sides[network] = e
  records = []
  for metric, name in asked:
    found = sides[metric.network]
    if isinstance(found, Exception):
      records.append({"metric": name, "value": None, "missing": str(found)})
      continue
    try:
      records += _records(name, metric, found, x, y, protocol, seed, usual)
    except config.ConfigError as e:
      if missing == "raise":
        raise
      records.append({"metric": name, "value": None, "missing": str(e)})
  return records


def networks(names: Sequence[str], protocol: str, y: ImageSet | None = None) -> None:
  """Loads all networks of some metrics: what is missing is said before any work.

  And so is that statistics of `y` are of others.
  """
  for metric, _ in map(parse, names):
    if metric.network:
      net = _load(metric.network, PROTOCOLS[protocol])
      if y is not None and metric.needs == "real" and metric.output in y.statistics:
        _same(net, metric.output, y)


def _load(network: str, protocol: Protocol) -> feature_nets.FeatureNet:
  options = {"resize": protocol.resize} if network == "Inception" else {}
  return feature_nets.load(network, **options)


def statistics(
  x: ImageSet, protocol: str, *, cache=None, batch: int = 0, track=progress.silent
):
  """Statistics of Inception's features of a set, by output; and the network."""
  net = _load("Inception", PROTOCOLS[protocol])
  outputs = ("pool", "spatial")
  found = _features(net, x, outputs, cache=cache, batch=batch, track=track)
  return {o: frechet.Statistics().add(found[o]) for o in outputs}, net


def _check(name: str, metric: Metric, x: ImageSet, y: ImageSet | None) -> None:
  if x.images is None:
    raise config.ConfigError(
      f"metric '{name}': {x.name} has statistics alone; the set that is judged must "
      "have its images"
    )
  if metric.needs == "texts" and len(x.texts) != len(x):
    raise config.ConfigError(
      f"metric '{name}' needs the text of each image, and {x.name} has "
      f"{len(x.texts) or 'none'}; give a folder that fluid.sample wrote"
    )
  if metric.needs not in ("real", "images", "pairs"):
    return
  if y is None:
    raise config.ConfigError(f"metric '{name}' compares two sets; name the second")
  if y.images is None and metric.needs != "real":
    raise config.ConfigError(
      f"metric '{name}' needs the images of the second set; {y.name} has statistics "
      "alone"
    )
  if metric.needs == "pairs" and len(x) != len(y):
    raise config.ConfigError(
      f"metric '{name}' is of pairs, but {x.name} has {len(x)} images and {y.name} "
      f"{len(y)}"
    )
  if metric.needs == "pairs" and x.names and y.names and x.names != y.names:
    a, b = next((a, b) for a, b in zip(x.names, y.names) if a != b)
    raise config.ConfigError(
      f"metric '{name}' is of pairs, but {x.name} has {a} where {y.name} has {b}: "
      "name files alike"
    )


def _sides(network, outputs, asked, x, y, protocol, cache, batch, track) -> Sides:
  """Features of both sets."""
  if not network:
    one, other = ({"pool": Side(images=s.images)} for s in (x, y))
    return Sides("", {"pool": 0}, one, other)
  net = _load(network, protocol)
  if unknown := [o for o in outputs if o not in net.outputs]:
    raise config.ConfigError(
      f"feature network '{network}' has no output '{unknown[0]}'; it has "
      f"{', '.join(net.outputs)}"
    )
  own = [m for m, _ in asked if m.network == network]
  of = functools.partial(_features, net, cache=cache, batch=batch, track=track)
  found = of(x, outputs)
  judged = {o: Side(found[o], images=x.images) for o in outputs}
  if any(m.needs == "texts" for m in own):
    texts = cast(feature_nets.TextNet, net).texts(x.texts)
    for side in judged.values():
      side.texts = texts
  real: dict[str, Side] = {o: Side() for o in outputs}
  of_y = []
  for output in dict.fromkeys(m.output for m in own if m.needs in ("real", "images")):
    needs = {m.needs for m in own if m.output == output}
    if "real" in needs and output in y.statistics:
      _same(net, output, y)
      real[output].given = y.statistics[output]
      needs.discard("real")
    if needs & {"real", "images"}:
      if y.images is None:
        raise config.ConfigError(
          f"{y.name} has no statistics of '{output}' and no images"
        )
      of_y.append(output)
  for output, rows in (of(y, tuple(of_y)) if of_y else {}).items():
    real[output].features = rows
  return Sides(net.name, net.outputs, judged, real)


def _same(net, output: str, y: ImageSet) -> None:
  """Refuses statistics of another network, resize or width."""
  said = y.made_with.get("features", net.name)
  if said != net.name:
    raise config.ConfigError(
      f"{y.name} has statistics of '{said}', but '{net.name}' is asked for; use the "
      "same protocol for both"
    )
  if (d := y.statistics[output].width) != net.outputs[output]:
    raise config.ConfigError(
      f"{y.name} has statistics of {d} features, but '{output}' of {net.name} has "
      f"{net.outputs[output]}"
    )


def _features(net, images: ImageSet, outputs, *, cache, batch, track):
  """Output -> [N, D], part by part where they are kept."""
  assert images.images is not None
  run = functools.partial(feature_nets.extract, net, batch=batch, track=track)
  if cache is None or not images.digest:
    found = run(images.images, outputs)
  else:
    made = {"net": net.name, "weights": net.digest, "outputs": outputs}
    folder = pathlib.Path(cache) / identity.digest(made | {"images": images.digest})
    size, kept = parts.PART, []
    for i in range(0, len(images), size):
      # Inside: images of a part that is kept are not asked for.
      def part(i=i):
        rows = run(images.images[i : i + size], outputs)
        there = {k: v for k, v in images.replaced.items() if i <= k < i + size}
        return rows | {REPLACED: np.array(json.dumps(there))}

      kept.append(feature_nets.cached(folder / f"{i // size:05d}.npz", part))
      there = json.loads(str(kept[-1].get(REPLACED, "{}")))
      images.replaced.update({int(k): v for k, v in there.items()})
    found = {o: np.concatenate([p[o] for p in kept]) for o in outputs}
  for output, rows in found.items():
    if bad := int((~np.isfinite(rows)).any(1).sum()):
      raise config.ConfigError(
        f"{bad} images of {images.name} have features ('{output}' of {net.name}) that "
        "are not finite; look at the weights"
      )
  return found


def _records(name, metric, sides: Sides, x, y, protocol, seed, usual):
  side, other = sides.judged[metric.output], sides.real[metric.output]
  try:
    values = metric.compute(side, other, PROTOCOLS[protocol], seed)
  except ValueError as e:
    against = f" against {y.name}" if y is not None else ""
    raise config.ConfigError(f"metric '{name}' of {x.name}{against}: {e}") from e
  base, at, network = name.partition("@")
  for found in values:
    record: dict[str, Any] = {
      "metric": f"{found.suffix or base}{at}{network}",
      "value": found.value if math.isfinite(found.value) else None,
      "images": len(x),
    }
    if found.lo is not None and found.hi is not None:
      if math.isfinite(found.lo) and math.isfinite(found.hi):
        record |= {"lo": found.lo, "hi": found.hi}
    if metric.needs in ("real", "images", "pairs"):
      of_file = metric.needs == "real" and other.given is not None
      record["real"] = "statistics" if of_file else len(y)
      record["against"] = y.name
    if sides.network:
      record |= {"features": sides.network, "width": sides.widths[metric.output]}
    if metric.network == "Inception":
      record["protocol"] = protocol
    record |= dict(found.said)
    if notes := _notes(metric, record, usual, x, y):
      record["notes"] = notes
    yield record


def _notes(metric, record, usual: int, x, y) -> list[str]:
  """What keeps a number from being compared with published ones."""
  notes, n = [], record["images"]
  if metric.network == "Inception" and n != usual:
    notes.append(f"published numbers are of {usual} images, this of {n}")
  if metric.needs == "real" and n <= record["width"]:
    notes.append("fewer images than features: its bias is larger than most differences")
  for images in filter(None, (x, y if "real" in record else None)):
    if bad := images.replaced:
      why = bad[min(bad)]
      notes.append(
        f"{len(bad)} of {len(images)} images ({images.name}) are bad, and the next "
        f"were taken in their place; the first: {why}"
      )
  return notes


def table(records: Sequence[Mapping]) -> str:
  """Records as lines: name, value, interval, what it is of."""
  lines = []
  for r in records:
    if "missing" in r:
      what = "weights missing" if r["missing"].startswith("network ") else "none"
      lines.append(f"{r['metric']:24}{what}: {r['missing']}")
      continue
    value = "none" if r["value"] is None else f"{r['value']:.6g}"
    interval = f" [{r['lo']:.4g}, {r['hi']:.4g}]" if "lo" in r else ""
    of = [f"{r['images']} images"]
    if "real" in r:
      of.append(f"{r['real']} real")
    if "features" in r:
      of.append(f"{r['features']}, {r['width']} features")
    for key in ("std", "splits", "k", "size", "scale", "seed", "protocol"):
      if r.get(key) is not None:
        shown = f"{r[key]:.4g}" if isinstance(r[key], float) else r[key]
        of.append(f"{key} {shown}")
    lines.append(f"{r['metric']:24}{value + interval:31} {', '.join(of)}")
    lines += [f"{'':24}{note}" for note in r.get("notes", ())]
  return "\n".join(lines)
