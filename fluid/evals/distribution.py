"""Sampled images against real ones, by any metrics of fluid.evals.measures.

N images, D features.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fluid.config import ConfigError, identity
from fluid.data import make_source
from fluid.evals import measures
from fluid.evals.base import Evaluation
from fluid.evals.samples import (
  check_prompts,
  draw,
  metadata,
  pinned,
  reconstruct,
)
from fluid.evals.sets import ImageSet, open_set
from fluid.tokenizers import store


@dataclasses.dataclass(frozen=True)
class DistributionConfig(Evaluation):
  """Distances between sampled and real validation images.

  Real images are the first of the split and captions come after them: an image and a
  sample for its own caption are no independent pair, which the estimate of KID assumes.

  Attributes:
    examples: samples (of prompts 'val').
    real: real images (0: as many as `examples`; at most half of the split).
    prompts: 'val', or 'geneval' to use the images that evals.geneval draws; 'classes',
      as many of each; 'pinned', captions drawn by seed, whose own images are the real
      ones.
    metrics: of fluid.evals.measures.METRICS; 'all': those that can be had here, of
      which records name what is missing.
    features: network of those that may have any and name none ('kid', 'fd').
    protocol: entry of fluid.evals.measures.PROTOCOLS.
    reference: file of statistics or folder of the real images (default: the source's);
      $NAME in it is an environment variable.
    tokenizer: also yield kid_tokenizer, the first metric of decode(encode(x)) for other
      real images: what no model of these tokens can be expected to beat.
    seed: of the noise.
    sample: overrides of config.sample.
  """

  kind = "distribution"

  examples: int = 512
  real: int = 0
  prompts: str = "val"
  metrics: tuple[str, ...] = ("kid", "fd")
  features: str = "EffNet"
  protocol: str = "torch_fidelity"
  reference: str = ""
  tokenizer: bool = True
  seed: int = 0
  sample: dict[str, Any] = dataclasses.field(default_factory=dict)

  def make(self, net, context):
    """See Evaluation."""
    return Distribution(net, context, **self.arguments())


class _Lazy(Sequence):
  """Images that are made when the first is asked for: features may be kept already."""

  def __init__(self, count: int, make: Callable[[], np.ndarray]):
    self.total, self.make = count, make
    self.made: np.ndarray | None = None

  def __len__(self):
    return self.total

  def __getitem__(self, index):
    if self.made is None:
      self.made = self.make()
    return self.made[index]


class Distribution:
  """See DistributionConfig."""

  def __init__(
    self,
    net,
    context,
    *,
    examples,
    real,
    prompts,
    metrics,
    features,
    protocol,
    reference,
    tokenizer,
    seed,
    sample,
  ):
    self.net, self.context, self.seed, self.sample = net, context, seed, sample
    self.source = make_source(context.run.data, "val")
    total = len(self.source)
    self.real = min(real or examples, total if prompts == "pinned" else total // 2)
    self.index = pinned(total, self.real) if prompts == "pinned" else range(self.real)
    lines = metadata(context, prompts, n=examples, first=self.real)
    self.prompts = [line["prompt"] for line in lines]
    check_prompts(context, self.prompts)
    self.features, self.protocol, self.tokenizer = features, protocol, tokenizer
    where = os.path.expandvars(reference)
    if where.startswith("$"):
      raise ConfigError(
        f"the real images are to be {reference}, but {where.partition('/')[0]} is not "
        "set: set this environment variable, or evals.distribution.reference"
      )
    self.reference = open_set(where) if where else None
    # What cannot be measured is refused now, not after hours.
    asked = self.reference
    if asked is None:
      asked = ImageSet("", _Lazy(self.real, lambda: np.zeros(0)))
    drawn = ImageSet("", _Lazy(len(self.prompts), lambda: np.zeros(0)))
    drawn = dataclasses.replace(drawn, texts=self.prompts)
    self.missing = "say" if metrics == ("all",) else "raise"
    if self.missing == "say":
      first = [f"{name}@{features}" for name in ("kid", "fd")]
      metrics = dict.fromkeys([*first, *measures.possible(drawn, asked)])
    self.metrics = [measures.on(name, features) for name in metrics]
    measures.check(self.metrics, drawn, asked)
    if self.missing == "raise":
      measures.networks(self.metrics, protocol)

  def run(
    self, params, step: int, weights: str = "ema"
  ) -> Iterator[tuple[str, float | str]]:
    """Yields each metric, its interval and numbers of images, and the features."""
    images, timing = draw(
      self.net,
      self.context,
      params,
      step,
      self.prompts,
      seed=self.seed,
      weights=weights,
      **self.sample,
    )
    digest = getattr(images, "digest", "")  # Of few, features are not kept.
    drawn = ImageSet("samples", images, texts=self.prompts, digest=digest)
    real = self.reference
    if real is None:
      real = self._set("real", self.real, lambda: self._images(self.index))
    records = self._measure(self.metrics, drawn, real)
    for record in (r for r in records if "missing" not in r):
      name = record["metric"].removesuffix(f"@{self.features}")
      yield name, record["value"]
      if "lo" in record:
        yield from ((f"{name}_lo", record["lo"]), (f"{name}_hi", record["hi"]))
    named = [r for r in records if "missing" not in r]
    first = self.metrics[0].removesuffix(f"@{self.features}")
    for record in named[:1]:
      yield f"{first}_images", record["images"]
      if isinstance(record.get("real"), int):
        yield f"{first}_real", record["real"]
      yield "features", record.get("features", "")
    described = {"step": step, "weights": weights, "noise_seed": self.seed}
    described |= {"sample": self.context.run.sample.replace(**self.sample).flat()}
    self.context.records += [r | described for r in records]
    if self.tokenizer and self.reference is None and named:
      stop = min(2 * self.real, len(self.source))
      again = self._set("tokenizer", stop - self.real, lambda: self._decoded(stop))
      record = self._measure(self.metrics[:1], again, real)[0]
      yield f"{first}_tokenizer", record["value"]
    yield from timing.items()

  def _measure(self, names, x, y):
    cache = self.context.run.data.cache  # A folder given away has none.
    with jax.set_mesh(self.context.mesh):
      return measures.measure(
        names,
        x,
        y,
        protocol=self.protocol,
        missing=self.missing,
        cache=pathlib.Path(cache or self.context.workdir / "eval/cache") / "features",
        track=self.context.track,
      )

  def _images(self, index):
    return np.stack([self.source[i]["image"] for i in index])

  def _decoded(self, stop):
    images = self._images(range(self.real, stop))
    return reconstruct(self.context.tokenizer, images)

  def _set(self, name, count, images) -> ImageSet:
    """Fixed images, whose features are kept under what they depend on."""
    run = self.context.run
    made_from = identity.identity(run.data, "data.")
    made_from |= {"index": list(self.index), "of": name}
    if name == "tokenizer":
      made_from["weights"] = store.read_config(run.tokenizer.path)["weights_sha256"]
    return ImageSet(name, _Lazy(count, images), digest=identity.digest(made_from))


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig(Evaluation):
  """What the tokenizer keeps: images against decode(encode(image)).

  Attributes:
    examples: the first of the split (0: all).
    metrics: of fluid.evals.measures.METRICS; 'fid' here is what papers call rFID.
    features, protocol: see DistributionConfig.
  """

  kind = "reconstruction"

  examples: int = 1024
  metrics: tuple[str, ...] = ("psnr", "ssim", "fd")
  features: str = "EffNet"
  protocol: str = "torch_fidelity"

  def make(self, net, context):
    """See Evaluation."""
    return Reconstruction(net, context, **self.arguments())


class Reconstruction:
  """See ReconstructionConfig."""

  def __init__(self, net, context, *, examples, metrics, features, protocol):
    del net  # The model has no part in it.
    self.context, self.protocol, self.features = context, protocol, features
    self.metrics = [measures.on(name, features) for name in metrics]
    self.source = make_source(context.run.data, "val")
    self.examples = min(examples or len(self.source), len(self.source))

  def run(
    self, params, step: int, weights: str = "ema"
  ) -> Iterator[tuple[str, float | str]]:
    """Yields reconstruction/{metric} and its interval."""
    del params
    images = np.stack([self.source[i]["image"] for i in range(self.examples)])
    again = reconstruct(self.context.tokenizer, images)
    x, y = ImageSet("reconstructions", again), ImageSet("images", images)
    with jax.set_mesh(self.context.mesh):
      track = self.context.track
      records = measures.measure(
        self.metrics, x, y, protocol=self.protocol, track=track
      )
    for record in records:
      name = "reconstruction/" + record["metric"].removesuffix(f"@{self.features}")
      yield name, record["value"]
      if "lo" in record:
        yield from ((f"{name}_lo", record["lo"]), (f"{name}_hi", record["hi"]))
    yield "reconstruction/images", self.examples
    described = {"step": step, "weights": weights, "of": "reconstruction"}
    self.context.records += [r | described for r in records]
