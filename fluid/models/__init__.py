"""Models as pure functions: `build(...)` -> Net; Linen does not leave this package."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fluid import config
from fluid.models import attention
from fluid.models.fluid import Fluid
from fluid.models.heads import HEADS, KINDS
from fluid.models.orders import ORDERS
from fluid.parallel import sharding
from fluid.tokenizers.base import TokenSpec

__all__ = ["HEADS", "KINDS", "ORDERS", "Net", "build"]


@dataclasses.dataclass(frozen=True)
class Net:
  """A model without its parameters; frozen and hashable, so it can be static in jit."""

  model: config.Model
  tokens: TokenSpec
  text: config.Text
  vocab: int

  @property
  def module(self) -> Fluid:
    return Fluid(self.model, self.tokens, self.text, self.vocab)

  @property
  def order(self):
    return ORDERS[self.model.order](self.model)

  def apply(self, params, method: str, *args) -> Any:
    """Calls a method of the module with `params`."""
    return self.module.apply({"params": params}, *args, method=method)

  def example(self, batch: int) -> dict[str, jax.Array]:
    """A batch of zeros with the right shapes and types."""
    t, n = self.tokens, self.tokens.length
    tokens = (
      jnp.zeros((batch, n), jnp.int32)
      if t.kind == "discrete"
      else jnp.zeros((batch, n, t.channels), jnp.float32)
    )
    return {
      "tokens": tokens,
      "text": jnp.zeros((batch, self.text.length), jnp.int32),
      "text_mask": jnp.ones((batch, self.text.length), bool),
      "id": jnp.zeros((batch,), jnp.int32),
      "mask": jnp.ones((batch,), bool),
    }

  def init(self, key: jax.Array) -> dict:
    """Float32 parameters; under an explicit mesh they are created sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    # A small batch that the mesh divides; only shapes matter here.
    batch = 1 if mesh.empty else sharding.batch_parts(mesh)
    b, keys = sharding.by_rows((self.example(batch), jax.random.split(key, batch)))
    params = self.module.init(
      key, b["tokens"], b["text"], b["text_mask"], keys, True, method="losses"
    )["params"]
    if (scale := self.model.residual_init) == 1:
      return params

    def shrink(path, a):
      *_, layer, name = (k.key for k in path)
      return a * scale if layer in ("out", "down") and name == "w" else a

    blocks = {k: params[k] for k in ("trunk", "aligner")}
    return params | jax.tree_util.tree_map_with_path(shrink, blocks)

  def loss(self, params, batch: dict, keys: jax.Array, *, train: bool) -> dict:
    """Unreduced losses of a batch.

    Args:
      params: from `init`.
      batch: tokens [B, L] int32 or [B, L, C] float32, text [B, T] int32 (or frozen
        features [B, T, E]), text_mask [B, T] bool.
      keys: one key an example [B], so that masks, steps and noise do not depend on how
        examples are batched.
      train: drop texts for guidance.

    Returns:
      'loss' [B, L] float32, 'mask' [B, L] (tokens that count), and of the diffusion
      head 'mse', 'vb', 't' [B, L, R], of the categorical head 'accuracy' [B, L].
    """
    return self.apply(
      params, "losses", batch["tokens"], batch["text"], batch["text_mask"], keys, train
    )


def build(
  model: config.Model,
  tokens: TokenSpec,
  text: config.Text,
  vocab: int,
  *,
  platform: str = "",
) -> Net:
  """The model of a cell for a token space and a text encoder.

  Args:
    model, tokens, text, vocab: see Net.
    platform: what it will run on ('tpu', 'gpu', 'cpu'; default: this machine's), which
      decides the attention kernel of 'auto'.

  Raises:
    ConfigError: the head does not fit the tokens.
  """
  if KINDS[model.head] != tokens.kind:
    raise config.ConfigError(
      f"model.head '{model.head}' needs {KINDS[model.head]} tokens, but the tokenizer "
      f"gives {tokens.kind} ones"
    )
  kernel = attention.choose(model, platform or jax.default_backend())
  return Net(dataclasses.replace(model, attention=kernel), tokens, text, vocab)
