"""Categorical head: discrete tokens, cross-entropy over a vocabulary.

B batch, L tokens, D trunk width, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from fluid import config
from fluid.models import layers
from fluid.models.heads.base import Head
from fluid.parallel import sharding
from fluid.parallel.sharding import spec as pspec
from fluid.tokenizers.base import TokenSpec


@dataclasses.dataclass(frozen=True)
class CategoricalConfig(Head):
  """A table embeds tokens, logits predict them.

  Attributes:
    tie_embeddings: one table for both ends.
  """

  kind = "categorical"
  tokens = "discrete"
  PARAMETERS = (
    (r"head/table/w", False, "embeddings"),
    (r"head/output/w", True, "head"),
    (r"head/bias/w", False, "head"),
  )

  tie_embeddings: bool = True

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
    return y + self.bias()

  def loss(self, z: jax.Array, target: jax.Array, keys: jax.Array) -> dict:
    """z [B, L, D], target [B, L] -> loss (nats) and accuracy, [B, L]."""
    del keys
    logits = self.logits(z)
    if pspec("batch") is not None:  # Normalise over the whole vocabulary.
      logits = jax.reshard(logits, pspec("batch", None, None))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, target)
    return {"loss": loss, "accuracy": (logits.argmax(-1) == target).astype(loss.dtype)}

  def sample(self, z, keys, *, z_uncond=None, guidance=1.0, temperature=1.0, draw=None):
    """z and z_uncond [B, M, D], keys [B, M] -> tokens [B, M].

    Guidance acts on logits; a temperature of 0 takes the most likely token.
    """
    del draw  # It has no options of its own.
    if z_uncond is None:
      logits = self.logits(z)
    else:
      logits, uncond = jnp.split(self.logits(jnp.concatenate([z, z_uncond])), 2)
      logits = uncond + guidance * (logits - uncond)
    noise = jax.vmap(jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[-1:])))(keys)
    return (logits + temperature * noise).argmax(-1).astype(jnp.int32)
