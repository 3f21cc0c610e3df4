"""Metrics by name, of sets of images: which features they take, and their record.

A name is that of a row of METRICS, with '@' and a network behind it where it shall not
be the usual one: 'kid@EffNet'. A record says all that a number hangs on: how many
images, which network and resize, width, seed, protocol.

M, N images of the two sets, D features.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from fluid import config
from fluid.config import identity
from fluid.console import progress
from fluid.evals import features as feature_nets
from fluid.evals.metrics import diversity, frechet, kernels, neighbours, pairs
from fluid.evals.sets import ImageSet

PART = 1024  # Images whose features are kept in one file of a cache.


@dataclasses.dataclass(frozen=True)
class Protocol:
  """What published numbers of one kind have in common.

  Attributes:
    resize: of images for Inception (fluid.evals.features.resize).
    splits: of the Inception Score; of `split` images each where that is not 0.
    shuffle: seed of the order in which those are dealt out; None: as they come.
    images: that published numbers are of.
  """

  resize: str = "torch_fidelity"
  splits: int = 10
  split: int = 0
  shuffle: int | None = 2020
  images: int = 50_000


PROTOCOLS = {
  "torch_fidelity": Protocol(),
  "pytorch_fid": Protocol(resize="pytorch_fid"),
  "clean": Protocol(resize="clean"),
  "adm": Protocol(resize="adm", split=5000, shuffle=None),
}


@dataclasses.dataclass
class Side:
  """Features of a set in one output of a network; statistics that a file gave."""

  features: np.ndarray | None = None  # [N, D]
  given: frechet.Statistics | None = None
  texts: np.ndarray | None = None  # [N, D], of its images' prompts.
  images: Any = None

  @functools.cached_property
  def statistics(self) -> frechet.Statistics:
    """As given (a file may have those of more images than it holds), or of features."""
    if self.given is not None:
      return self.given
    assert self.features is not None
    return frechet.Statistics().add(self.features)


@dataclasses.dataclass(frozen=True)
class Sides:
  """Both sets in one network: its name, and by output its width and the features."""

  network: str
  widths: Mapping[str, int]
  judged: Mapping[str, Side]
  real: Mapping[str, Side]


@dataclasses.dataclass(frozen=True)
class Value:
  """One number, with the end of its name, its interval and what else is to be said."""

  value: float
  lo: float | None = None
  hi: float | None = None
  suffix: str = ""
  said: Mapping[str, Any] = dataclasses.field(default_factory=dict)


Compute = Callable[[Side, Side, Protocol, int], Sequence[Value]]


@dataclasses.dataclass(frozen=True)
class Metric:
  """A row of METRICS.

  Attributes:
    title: as tables print it.
    compute: (judged, real, protocol, seed) -> values.
    network, output: of features; '' for pixels.
    needs: what it is of: 'real' (a second set or its statistics), 'images' (a second
      set), 'pairs' (a second set, image by image), 'texts' (of the images).
    best: 'low' or 'high'.
    elsewhere: what it is called on other networks (itself: the same; '': it cannot be).
  """

  title: str
  compute: Compute
  network: str
  output: str = "pool"
  needs: str = ""
  best: str = "low"
  elsewhere: str = ""


def _fid(x, y, protocol, seed):
  return [Value(frechet.frechet_distance(x.statistics, y.statistics))]


def _fid_infinity(x, y, protocol, seed):
  value, points = frechet.frechet_infinity(x.features, y.statistics, seed=seed)
  return [Value(value, said={"seed": seed, "points": len(points)})]


def _kid(x, y, protocol, seed):
  low, high = kernels.kid_interval(x.features, y.features, seed=seed)
  return [Value(kernels.kid(x.features, y.features), low, high, said={"seed": seed})]


def _kid_subsets(x, y, protocol, seed):
  mean, std = kernels.kid_subsets(x.features, y.features)
  return [Value(mean, said={"std": std, "subsets": 100, "size": 1000, "seed": 2020})]


def _inception_score(x, y, protocol, seed):
  n = len(x.features)
  splits = -(-n // protocol.split) if protocol.split else protocol.splits
  mean, std = diversity.inception_score(
    x.features, splits=splits, split=protocol.split, seed=protocol.shuffle
  )
  return [Value(mean, said={"std": std, "splits": splits, "seed": protocol.shuffle})]


def _precision_recall(x, y, protocol, seed):
  values = neighbours.precision_recall(x.features, y.features, 3)
  names = ("precision", "recall")
  return [Value(v, suffix=s, said={"k": 3}) for v, s in zip(values, names)]


def _density_coverage(x, y, protocol, seed):
  values = neighbours.density_coverage(x.features, y.features, 5)
  names = ("density", "coverage")
  return [Value(v, suffix=s, said={"k": 5}) for v, s in zip(values, names)]


def _cmmd(x, y, protocol, seed):
  return [Value(kernels.cmmd(x.features, y.features))]


def _vendi(x, y, protocol, seed):
  return [Value(diversity.vendi(x.features))]


def _clip_score(x, y, protocol, seed):
  cosines = 100 * pairs.clip_cosines(x.features, x.texts)
  return [Value(*pairs.mean_interval(cosines, seed=seed), said={"scale": "100 cos"})]


def _of_pairs(measure):
  def compute(x, y, protocol, seed):
    found = [measure(a[None], b[None])[0] for a, b in zip(x.images, y.images)]
    return [Value(*pairs.mean_interval(np.array(found), seed=seed))]

  return compute


METRICS: dict[str, Metric] = {
  "fid": Metric("FID", _fid, "Inception", needs="real", elsewhere="fd"),
  "fid_infinity": Metric(
    "FID-infinity", _fid_infinity, "Inception", needs="real", elsewhere="fd_infinity"
  ),
  "sfid": Metric("sFID", _fid, "Inception", "spatial", needs="real", elsewhere="fd"),
  "inception_score": Metric("IS", _inception_score, "Inception", "logits", best="high"),
  "kid": Metric("KID", _kid, "Inception", needs="images", elsewhere="kid"),
  "kid_subsets": Metric(
    "KID of subsets", _kid_subsets, "Inception", needs="images", elsewhere="kid_subsets"
  ),
  "precision_recall": Metric(
    "Precision, recall",
    _precision_recall,
    "Inception",
    needs="images",
    best="high",
    elsewhere="precision_recall",
  ),
  "density_coverage": Metric(
    "Density, coverage",
    _density_coverage,
    "Inception",
    needs="images",
    best="high",
    elsewhere="density_coverage",
  ),
  "cmmd": Metric("CMMD", _cmmd, "CLIP-L14-336", needs="images", elsewhere="kid"),
  "fd": Metric("FD", _fid, "DINOv2-L14", needs="real", elsewhere="fd"),
  "fd_infinity": Metric(
    "FD-infinity", _fid_infinity, "DINOv2-L14", needs="real", elsewhere="fd_infinity"
  ),
  "vendi": Metric("Vendi", _vendi, "DINOv2-L14", best="high", elsewhere="vendi"),
  "clip_score": Metric(
    "CLIP score", _clip_score, "CLIP-B32", needs="texts", best="high"
  ),
  "psnr": Metric("PSNR", _of_pairs(pairs.psnr), "", needs="pairs", best="high"),
  "ssim": Metric("SSIM", _of_pairs(pairs.ssim), "", needs="pairs", best="high"),
}


def parse(name: str) -> tuple[Metric, str]:
  """'kid@EffNet' -> the metric on that network, and its name."""
  base, _, network = name.partition("@")
  if base not in METRICS:
    raise config.ConfigError(
      f"unknown metric '{base}'; choose from {', '.join(METRICS)}, with @NETWORK "
      "behind it where the features shall be others "
      f"({', '.join(feature_nets.FEATURES)})"
    )
  metric = METRICS[base]
  if not network or network == metric.network:
    return metric, name
  if metric.elsewhere != base:
    where = metric.network or "pixels"
    other = f"; write '{metric.elsewhere}@{network}'" if metric.elsewhere else ""
    raise config.ConfigError(
      f"metric '{name}': {metric.title} is of {where} alone{other}"
    )
  if network not in feature_nets.FEATURES:
    raise config.ConfigError(
      f"metric '{name}': unknown feature network '{network}'; choose from "
      f"{', '.join(feature_nets.FEATURES)}"
    )
  return dataclasses.replace(metric, network=network), name


def on(name: str, network: str) -> str:
  """The name of a metric on a network, where it names none and may be on any."""
  metric, plain = parse(name)
  if "@" in name:
    return name
  return parse(f"{plain}@{network}")[1] if metric.elsewhere == plain else plain


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
      records += _records(name, metric, found, x, y, protocol, seed)
    except config.ConfigError as e:
      if missing == "raise":
        raise
      records.append({"metric": name, "value": None, "missing": str(e)})
  return records


def networks(names: Sequence[str], protocol: str) -> None:
  """Loads all networks of some metrics: what is missing is said before any work."""
  for network in dict.fromkeys(parse(name)[0].network for name in names):
    if network:
      _load(network, PROTOCOLS[protocol])


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
    parts = []
    for i in range(0, len(images), PART):
      # Inside: images of a part that is kept are not asked for.
      part = lambda i=i: run(images.images[i : i + PART], outputs)
      parts.append(feature_nets.cached(folder / f"{i // PART:05d}.npz", part))
    found = {o: np.concatenate([p[o] for p in parts]) for o in outputs}
  for output, rows in found.items():
    if bad := int((~np.isfinite(rows)).any(1).sum()):
      raise config.ConfigError(
        f"{bad} images of {images.name} have features ('{output}' of {net.name}) that "
        "are not finite; look at the weights"
      )
  return found


def _records(name, metric, sides: Sides, x, y, protocol, seed):
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
    if notes := _notes(metric, record, protocol):
      record["notes"] = notes
    yield record


def _notes(metric, record, protocol) -> list[str]:
  """What keeps a number from being compared with published ones."""
  notes = []
  n, usual = record["images"], PROTOCOLS[protocol].images
  if metric.network == "Inception" and n != usual:
    notes.append(f"published numbers are of {usual} images, this of {n}")
  if metric.compute in (_fid, _fid_infinity) and n <= record["width"]:
    notes.append("fewer images than features: its bias is larger than most differences")
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
    lines.append(f"{r['metric']:24}{value + interval:32}{', '.join(of)}")
    lines += [f"{'':24}{note}" for note in r.get("notes", ())]
  return "\n".join(lines)
