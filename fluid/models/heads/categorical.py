"""Categorical head: discrete tokens, cross-entropy over a vocabulary.

B batch, L tokens, D trunk width, V vocabulary.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from fluid import config
from fluid.config import rules
from fluid.models import layers
from fluid.models.heads.base import Head
from fluid.parallel import sharding
from fluid.parallel.sharding import spec as pspec
from fluid.tokenizers.base import TokenSpec


@dataclasses.dataclass(frozen=True)
class CategoricalDraw(config.Draw):
  """Which tokens may be drawn, after guidance and temperature.

  Attributes:
    top_k: the so many likeliest alone (0: all).
    top_p: the likeliest that have this share of the probability, at least one.
  """

  top_k: int = 0
  top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class CategoricalConfig(Head):
  """A table embeds tokens, logits predict them.

  Attributes:
    tie_embeddings: one table for both ends.
    bias: logits have one.
    label_smoothing: share of the target that is spread over the vocabulary.
  """

  kind = "categorical"
  tokens = "discrete"
  scores = True
  Draw = CategoricalDraw
  PARAMETERS: ClassVar[tuple] = (
    (r"head/table/w", False, "embeddings"),
    (r"head/output/w", True, "head"),
    (r"head/bias/w", False, "head"),
  )

  tie_embeddings: bool = True
  bias: bool = True
  label_smoothing: float = 0.0

  def check(self, name):
    rules.share(f"{name}label_smoothing", self.label_smoothing, open_end=True)

  def check_draw(self, draw, name):
    rules.share(f"{name}top_p", draw.top_p)

  def module(self, model, spec):
    """See fluid.models.heads."""
    return CategoricalHead(self, model, spec)


class CategoricalHead(nn.Module):
  """See CategoricalConfig."""

  cfg: CategoricalConfig
  model: config.Model
  spec: TokenSpec

  def setup(self):
    shape = (self.spec.vocab, self.model.trunk.width)
    self.table = layers.Table(shape, ("vocab", "embed"))
    if not self.cfg.tie_embeddings:
      self.output = layers.Table(shape, ("vocab", "embed"))
    if self.cfg.bias:
      self.bias = layers.Table(shape[:1], ("vocab",), nn.initializers.zeros)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """[B, L] -> [B, L, D]."""
    table = self.table().astype(self.model.dtype)
    return table.at[tokens].get(out_sharding=pspec("batch", None, None))

  def logits(self, z: jax.Array) -> jax.Array:
    """[B, M, D] -> [B, M, V], float32."""
    w = self.table() if self.cfg.tie_embeddings else self.output()
    y = sharding.product(
      "bld,vd->blv",
      z,
      w.astype(z.dtype),
      x_axes=("batch", None, None),
      w_axes=("vocab", "embed"),
      dtype=jnp.float32,
    )
    return y + self.bias() if self.cfg.bias else y

  def loss(self, z: jax.Array, target: jax.Array, keys: jax.Array, train: bool) -> dict:
    """z [B, L, D], target [B, L] -> loss (nats) and accuracy, [B, L]."""
    del keys
    logits = self.logits(z)
    if pspec("batch") is not None:  # Normalise over the whole vocabulary.
      logits = jax.reshard(logits, pspec("batch", None, None))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    if (smooth := self.cfg.label_smoothing) and train:
      every = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
      loss = (1 - smooth) * loss + smooth * every
    # What argmax finds, which on CPUs would be a tenth of a toy step: XLA does not
    # vectorise its pairs of value and index there.
    largest = logits == logits.max(-1, keepdims=True)
    first = jnp.where(largest, jnp.arange(logits.shape[-1]), logits.shape[-1]).min(-1)
    return {"loss": loss, "accuracy": (first == target).astype(loss.dtype)}

  def sample(self, z, keys, *, z_uncond=None, guidance=1.0, temperature=1.0, draw=None):
    """z and z_uncond [B, M, D], keys [B, M] -> tokens and log-probabilities [B, M].

    Guidance acts on logits; a temperature of 0 takes the most likely token. The
    probability is that at temperature 1 (MaskGIT's confidence), among all tokens.
    """
    if z_uncond is None:
      logits = self.logits(z)
    else:
      logits, uncond = jnp.split(self.logits(jnp.concatenate([z, z_uncond])), 2)
      logits = uncond + guidance * (logits - uncond)
    allowed = filtered(logits, temperature, draw or CategoricalDraw())
    noise = jax.vmap(jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[-1:])))(keys)
    tokens = (allowed + temperature * noise).argmax(-1).astype(jnp.int32)
    score = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)
    return tokens, score[..., 0]


def filtered(logits, temperature, draw: CategoricalDraw):
  """Logits [..., V] with minus infinity for what may not be drawn; see CategoricalDraw.

  First the likeliest k, then of these the likeliest that reach the share, as LlamaGen
  (`top_k_top_p_filtering`); of equal logits all stay in the first.
  """
  vocab = logits.shape[-1]
  if 0 < draw.top_k < vocab:
    last = jax.lax.top_k(logits, draw.top_k)[0][..., -1:]
    logits = jnp.where(logits < last, -jnp.inf, logits)
  if draw.top_p < 1:
    order = jnp.argsort(-logits, -1)
    hot = jnp.maximum(temperature, 1e-6)  # At 0 the likeliest is all there is.
    shares = jax.nn.softmax(jnp.take_along_axis(logits, order, -1) / hot)
    before = jnp.cumsum(shares, -1) - shares  # Of likelier ones: none before the first.
    keep = jnp.take_along_axis(before <= draw.top_p, jnp.argsort(order, -1), -1)
    logits = jnp.where(keep, logits, -jnp.inf)
  return logits
