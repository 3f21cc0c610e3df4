"""Sampled images against real ones, by any metrics of fluid.evals.measures.

N images, D features.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fluid.config import ConfigError, identity, rules, to_dict
from fluid.data import Images, make_source
from fluid.evals import measures
from fluid.evals.base import Evaluation
from fluid.evals.metrics import PROTOCOLS, on
from fluid.evals.parts import InParts
from fluid.evals.samples import (
  check_prompts,
  draw,
  in_files,
  metadata,
  pinned,
  reconstruct,
  taken,
  tokenizer_sha256,
)
from fluid.evals.sets import ImageSet, open_set

PINNED = 30_000  # Images of published numbers of captions drawn by seed: FID-30K.


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
    metrics: of fluid.evals.metrics.METRICS; 'all': those that can be had here, of
      which records name what is missing.
    features: network of those that may have any and name none ('kid', 'fd').
    protocol: entry of fluid.evals.metrics.PROTOCOLS.
    reference: file of statistics or folder of the real images (default: the source's);
      $NAME in it is an environment variable.
    tokenizer: also yield kid_tokenizer, the first metric of decode(encode(x)) for other
      real images: what no model of these tokens can be expected to beat.
    seed: of the noise.
    image_size: side that samples are scaled to (0: as they are drawn).
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
  image_size: int = 0
  sample: dict[str, Any] = dataclasses.field(default_factory=dict)

  def check(self, name):
    rules.positive(self, name, "examples")
    rules.choice(f"{name}protocol", self.protocol, PROTOCOLS)
    if not self.metrics:
      raise ConfigError(f"config key '{name}metrics' is empty: name one, such as 'kid'")
    if self.image_size and self.tokenizer:
      raise ConfigError(
        f"config key '{name}image_size' is {self.image_size}, a size that the "
        f"tokenizer does not have: set '{name}tokenizer' to False"
      )

  def said(self):
    """See Evaluation: of networks and real images, records say more by themselves."""
    kept = ("prompts", "reference", "image_size", "noise_seed")
    found = {k: v for k, v in super().said().items() if k in kept}
    given = self.reference and self.prompts not in ("val", "pinned")
    return found | ({} if given else {"split": "val"})

  def make(self, net, context):
    """See Evaluation."""
    return Distribution(net, context, **self.arguments())


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
    image_size,
    sample,
  ):
    self.net, self.context, self.seed, self.sample = net, context, seed, sample
    self.image_size, self.data = image_size, context.run.data
    self.usual = PINNED if prompts == "pinned" else 0
    if image_size:
      self.data = dataclasses.replace(self.data, image_size=image_size)
    self.source = make_source(self.data, "val")
    total = len(self.source)
    self.real = min(real or examples, total if prompts == "pinned" else total // 2)
    order = pinned(total, total) if prompts == "pinned" else taken(context.run, total)
    self.index, self.others = order[: self.real], order[self.real : 2 * self.real]
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
    asked = self._against()
    drawn = ImageSet("", range(len(self.prompts)), texts=self.prompts)
    self.missing = "say" if metrics == ("all",) else "raise"
    if self.missing == "say":
      first = [f"{name}@{features}" for name in ("kid", "fd")]
      metrics = dict.fromkeys([*first, *measures.possible(drawn, asked)])
    self.metrics = [on(name, features) for name in metrics]
    measures.check(self.metrics, drawn, asked)
    if self.missing == "raise":
      measures.networks(self.metrics, protocol, asked)

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
      image_size=self.image_size,
      **self.sample,
    )
    digest = getattr(images, "digest", "")  # Of few, features are not kept.
    drawn = ImageSet("samples", images, texts=self.prompts, digest=digest)
    real = self._against()
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
    self.context.records += records
    left = self.tokenizer and len(self.others) > 1  # KID is of pairs.
    if left and self.reference is None and named:
      record = self._measure(self.metrics[:1], self._decoded(), real)[0]
      base, at, network = record["metric"].partition("@")
      record |= {"metric": f"{base}_tokenizer{at}{network}"}
      self.context.records.append(record)
      yield f"{first}_tokenizer", record["value"]
    yield from timing.items()

  def _measure(self, names, x, y):
    with jax.set_mesh(self.context.mesh):
      return measures.measure(
        names,
        x,
        y,
        protocol=self.protocol,
        missing=self.missing,
        usual=self.usual,
        cache=pathlib.Path(self.data.cache) / "features",
        track=self.context.track,
      )

  def _against(self) -> ImageSet:
    if self.reference is not None:
      return self.reference
    return self._set("real", self.index, lambda images: images)

  def _decoded(self) -> ImageSet:
    """Other real images, as their tokens have them."""
    sha256 = tokenizer_sha256(self.context.run)
    decoded = functools.partial(reconstruct, self.context.tokenizer)
    return self._set("tokenizer", self.others, decoded, weights=sha256)

  def _set(self, name, index, change, **made_with) -> ImageSet:
    """Fixed images, whose features are kept under what they depend on."""
    made_from = identity.identity(self.data, "data.") | made_with
    made_from |= {"index": list(self.index), "of": name}
    images = Images(self.source, index)
    made = InParts(len(index), lambda first, stop: change(images[first:stop]))
    digest = identity.digest(made_from)
    return ImageSet(name, made, digest=digest, replaced=images.replaced)


@dataclasses.dataclass(frozen=True)
class ReconstructionConfig(Evaluation):
  """What the tokenizer keeps: images against decode(encode(image)).

  Attributes:
    examples: of the split (0: all), see samples.taken.
    metrics: of fluid.evals.metrics.METRICS; 'fid' here is what papers call rFID.
    features, protocol: see DistributionConfig.
  """

  kind = "reconstruction"

  examples: int = 1024
  metrics: tuple[str, ...] = ("psnr", "ssim", "fd")
  features: str = "EffNet"
  protocol: str = "torch_fidelity"

  def check(self, name):
    rules.choice(f"{name}protocol", self.protocol, PROTOCOLS)

  def said(self):
    """See Evaluation."""
    return {"split": "val"}

  def make(self, net, context):
    """See Evaluation."""
    return Reconstruction(net, context, **self.arguments())


class Reconstruction:
  """See ReconstructionConfig."""

  def __init__(self, net, context, *, examples, metrics, features, protocol):
    del net  # The model has no part in it.
    self.context, self.protocol, self.features = context, protocol, features
    self.metrics = [on(name, features) for name in metrics]
    self.source = make_source(context.run.data, "val")
    self.examples = min(examples or len(self.source), len(self.source))
    self.index = taken(context.run, len(self.source))[: self.examples]

  def run(
    self, params, step: int, weights: str = "ema"
  ) -> Iterator[tuple[str, float | str]]:
    """Yields reconstruction/{metric} and its interval."""
    del params
    context = self.context
    source, index = self.source, self.index
    # Published figures are of just these images: one that cannot be read ends it.
    read = lambda a, b: np.stack([source[i]["image"] for i in index[a:b]])
    images = InParts(len(index), read)
    again = in_files(
      context,
      self.examples,
      lambda first, stop: reconstruct(context.tokenizer, images[first:stop]),
      lambda: (
        identity.identity(context.run.data, "data.")
        | {"reconstructed": list(index), "by": tokenizer_sha256(context.run)}
        | {"source": to_dict(context.run.data.source)}
      ),
    )
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
    self.context.records += records
