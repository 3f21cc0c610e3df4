"""Metrics of sets of images, as numbers of their features; METRICS has their names.

A metric is a function in a file here (numpy, float64, no network) and a row below. Its
name has '@' and a network behind it where it shall not be the usual one: 'kid@EffNet'.

N images, D features.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fluid import config
from fluid.evals import features as feature_nets
from fluid.evals.metrics import diversity, frechet, kernels, neighbours, pairs


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
