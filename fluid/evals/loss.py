"""Validation loss and likelihood with common random numbers.

The loss is what scaling laws are fitted to; orders are compared by the likelihood.

Order, masks, timesteps and noise of an example follow from its id, so they are the same
for every model size, checkpoint, batch size and mesh, and losses can be compared.

Legend: B batch, L tokens, R noise draws of a token in one pass, E examples.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fluid import config, rng
from fluid.config import rules
from fluid.evals.base import Evaluation
from fluid.parallel import sharding

BINS = 10


@dataclasses.dataclass(frozen=True)
class LossConfig(Evaluation):
  """Masked mean of the per-token loss over a split.

  Attributes:
    split: of the cached data.
    examples: how many of them (0: all).
    batch: per pass, over all devices (0: run.batch).
    draws: random draws an example; more lower the noise that masks and steps add.
    seed: of those draws. Not the run's: runs of different seeds share them.
  """

  kind = "loss"

  split: str = "val"
  examples: int = 0
  batch: int = 0
  draws: int = 1
  seed: int = 0

  def check(self, name):
    rules.positive(self, name, "draws")

  def make(self, net, context):
    """See Evaluation."""
    return Loss(net, context, **self.arguments())


@dataclasses.dataclass(frozen=True)
class LikelihoodConfig(LossConfig):
  """Nats of an image given its text, and the loss by the share of tokens known.

  Nats per image stand on one axis for all orders of one tokenizer: of discrete tokens
  they are exact (raster, permuted, scales) or the any-order bound (random). Of
  continuous tokens they are a bound on a density, 'density_nats', which is of other
  units: it may be negative, and is comparable for one tokenizer alone. What a sampler
  decodes by confidence has no likelihood: these are of the model's own plans.
  'bits_per_dim' is what coding the tokens costs for each value of a pixel: of images
  that such tokens can say, not of any image.
  """

  kind = "likelihood"

  def make(self, net, context):
    """See Evaluation."""
    order = net.order.likelihood()
    net = dataclasses.replace(net, model=dataclasses.replace(net.model, order=order))
    return Likelihood(net, context, **self.arguments())


class Loss:
  """See LossConfig."""

  def __init__(self, net, context, *, split, examples, batch, draws, seed):
    self.net, self.context = net, context
    self.split, self.examples, self.draws = split, examples, draws
    self.batch = batch or context.run.batch
    self.key = rng.stream(seed, "val")
    self.loader = None
    sharding.check_batch(self.batch, context.mesh)

  def sums(self, params, batch, key, **static):
    """Sums over each example of a batch; jitted."""
    return example_sums(params, batch, key, **static)

  def summarize(self, rows):
    """Those sums over all examples -> named values."""
    return summarize(rows, self.split)

  def run(
    self, params, step: int, weights: str = "ema"
  ) -> Iterator[tuple[str, float | str]]:
    """Yields val/loss, its standard error and count, and what the head adds."""
    del step, weights
    rows, seen = [], 0
    with jax.set_mesh(self.context.mesh):
      if self.loader is None:  # Kept, as it holds the split decoded.
        self.loader = self.context.loader(self.split, self.batch)
      loader = self.loader
      total = min(-(-self.examples // self.batch) or len(loader), len(loader))
      for batch in self.context.track(loader, f"{self.split} loss", total):
        batch = dict(batch)
        if self.examples:
          # This process's rows of the global batch; those past the limit are padding.
          index = seen + sharding.local_rows(self.batch, self.context.mesh)
          batch["mask"] = batch["mask"] & (index < self.examples)
        batch = sharding.shard_batch(batch, self.context.mesh, self.batch)
        # Arrays stay on the device; two batches are dispatched ahead.
        rows.append(self.sums(params, batch, self.key, net=self.net, draws=self.draws))
        jax.block_until_ready(rows[-3:-2])
        seen += self.batch
        if self.examples and seen >= self.examples:
          break
    if not rows:
      raise config.ConfigError(f"evals.loss: split '{self.split}' has no examples")
    rows = jax.tree.map(lambda *a: np.concatenate(a), *jax.device_get(rows))
    yield from self.summarize(rows)


class Likelihood(Loss):
  """See LikelihoodConfig."""

  def sums(self, params, batch, key, **static):
    return likelihood_sums(params, batch, key, **static)

  def summarize(self, rows):
    """Named values; the standard error is over examples, draws included."""
    rows = {k: v.astype(np.float64)[rows["real"]] for k, v in rows.items()}
    nats, discrete = rows["nats"], self.net.tokens.kind == "discrete"
    name = f"{self.split}/{'nats' if discrete else 'density_nats'}"
    yield name, nats.mean()
    if len(nats) > 1:
      yield f"{name}_sem", nats.std(ddof=1) / math.sqrt(len(nats))
    yield f"{name}_count", len(nats)
    if discrete:
      values = 3 * self.context.run.data.image_size**2
      yield f"{self.split}/bits_per_dim", nats.mean() / (values * math.log(2))
    yield from _by_bin(f"{self.split}/loss_known", rows["bin_sum"], rows["bin_count"])


@functools.partial(jax.jit, static_argnames=("net", "draws"))
def likelihood_sums(params, batch, key, *, net, draws: int = 1) -> dict[str, jax.Array]:
  """Nats of each example, the mean of its draws.

  Returns:
    'real' [B], 'nats' [B]; 'bin_sum', 'bin_count' [B, 10]: loss by tenths of tokens
    known. Not for padding rows.
  """
  total: dict[str, jax.Array] = {}
  for draw in range(draws):
    out, mask = _pass(params, batch, key, net, draw, nats=True)
    loss, nats = (_masked(out[k], mask) for k in ("loss", "nats"))
    # A tenth begins where its share does, whatever the division rounds to.
    index = (net.order.known(out["mask"]) * BINS + 1e-4).astype(jnp.int32)
    hit = (index[..., None] == jnp.arange(BINS)) & mask[..., None]
    sums = {
      "nats": net.tokens.length / draws * nats.sum(1) / jnp.maximum(mask.sum(1), 1),
      "bin_sum": jnp.where(hit, loss[..., None], 0).sum(1),
      "bin_count": hit.sum(1),
    }
    total = jax.tree.map(jnp.add, total, sums) if total else sums
  return _replicated(total | {"real": batch["mask"]})


@functools.partial(jax.jit, static_argnames=("net", "draws"))
def example_sums(params, batch, key, *, net, draws: int = 1) -> dict[str, jax.Array]:
  """Sums over the tokens of each example, and over draws.

  Returns:
    'loss', 'count' [B]; 'accuracy' [B] where the head has one; 'bin_sum', 'bin_count'
    [B, 10]: mse by timestep, where it has that. Zero for padding rows.
  """
  total: dict[str, jax.Array] = {}
  for draw in range(draws):
    out, mask = _pass(params, batch, key, net, draw)
    sums = {"loss": _masked(out["loss"], mask).sum(1), "count": mask.sum(1)}
    if "accuracy" in out:
      sums["accuracy"] = _masked(out["accuracy"], mask).sum(1)
    if "mse" in out:
      index = out["t"] * BINS // net.model.head.steps  # [B, L, R]
      hit = (index[..., None] == jnp.arange(BINS)) & mask[..., None, None]
      sums["bin_sum"] = jnp.where(hit, out["mse"][..., None], 0).sum((1, 2))
      sums["bin_count"] = hit.sum((1, 2))
    total = jax.tree.map(jnp.add, total, sums) if total else sums
  return _replicated(total)


def _pass(params, batch, key, net, draw: int, nats: bool = False):
  """Losses of a draw, and which of them count [B, S]."""
  own = key if draw == 0 else jax.random.fold_in(key, draw)
  keys = rng.example_keys(own, batch["id"])
  out = net.loss(params, batch, keys, train=False, nats=nats)
  return out, out["mask"] & batch["mask"][:, None]


def _masked(x, mask):
  """A padding row may hold anything; 0 * NaN must not reach a sum."""
  return jnp.where(mask, x.astype(jnp.float32), 0)


def _replicated(tree):
  """So that every process can read it."""
  if jax.sharding.get_abstract_mesh().empty:
    return tree
  return jax.tree.map(lambda x: jax.sharding.reshard(x, jax.P()), tree)


def summarize(rows: dict[str, np.ndarray], split: str) -> Iterator[tuple[str, float]]:
  """Per-example sums -> named values, in float64.

  The standard error is that of a ratio estimator: examples are the independent units,
  and they predict different numbers of tokens.
  """
  rows = {k: v.astype(np.float64) for k, v in rows.items()}
  real = rows["count"] > 0
  loss, count = rows["loss"][real], rows["count"][real]
  tokens, n = count.sum(), len(count)
  mean = loss.sum() / max(tokens, 1)
  yield f"{split}/loss", mean
  if n > 1:
    spread = ((loss - mean * count) ** 2).sum() * n / (n - 1)
    yield f"{split}/loss_sem", math.sqrt(spread) / tokens
  yield f"{split}/loss_count", n
  if "accuracy" in rows:
    yield f"{split}/accuracy", rows["accuracy"].sum() / max(tokens, 1)
  if "bin_sum" in rows:
    yield from _by_bin(f"{split}/mse_bin", rows["bin_sum"], rows["bin_count"])


def _by_bin(name, sums, counts):
  """Means of the bins [E, 10] that have something."""
  for i, (total, count) in enumerate(zip(sums.sum(0), counts.sum(0), strict=True)):
    if count:
      yield f"{name}{i}", total / count
