"""T5 v1.1 and flan-T5: the encoder of the paper (Raffel et al., arXiv 1910.10683).

RMSNorm without mean or bias, no scaling of q k', gated GELU, no biases; one table of
relative positions, in block 0, serves all blocks. bfloat16 is safe; float16 is not.

B prompts, T text tokens, E width, H heads, K head width, F MLP width, N layers.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluid.config import ConfigError
from fluid.parallel import sharding
from fluid.parallel.sharding import spec
from fluid.text.frozen import FrozenConfig
from fluid.text.tokenization import Vocabulary
from fluid.text.weights import Row


@dataclasses.dataclass(frozen=True)
class T5:
  """The encoder's sizes, and the network (fluid.text.frozen.Network).

  Attributes:
    width, layers, heads, head_width, hidden: E, N, H, K, F.
    buckets, distance: relative positions are told apart in so many classes (half for
      each direction), up to this distance.
    vocab: rows of the table.
    epsilon: of the norms.
  """

  width: int
  layers: int
  heads: int
  hidden: int
  head_width: int = 64
  buckets: int = 32
  distance: int = 128
  vocab: int = 32_128
  epsilon: float = 1e-6

  def rows(self) -> dict[str, Row]:
    """Where the parameters come from, in transformers' names."""
    e, h, k, f = self.width, self.heads, self.head_width, self.hidden
    block = "encoder.block.{}.layer."
    attend, mlp = block + "0.SelfAttention.", block + "1.DenseReluDense."
    into = ((e, h, k), ("embed", "heads", None), 1, self.layers)
    up = ((e, f), ("embed", "mlp"), 1, self.layers)
    norm = ((e,), (None,), None, self.layers, True)
    first = attend.format(0) + "relative_attention_bias.weight"
    tables = ("shared.weight", "encoder.embed_tokens.weight")
    return {
      "table": Row(tables, (self.vocab, e), ("vocab", "embed")),
      "bias": Row((first,), (self.buckets, h), (None, "heads"), full=True),
      "norm": Row(("encoder.final_layer_norm.weight",), (e,), (None,), full=True),
      "norm_self": Row((block + "0.layer_norm.weight",), *norm),
      "q": Row((attend + "q.weight",), *into),
      "k": Row((attend + "k.weight",), *into),
      "v": Row((attend + "v.weight",), *into),
      "out": Row(
        (attend + "o.weight",), (h, k, e), ("heads", None, "embed"), 2, self.layers
      ),
      "norm_mlp": Row((block + "1.layer_norm.weight",), *norm),
      "gate": Row((mlp + "wi_0.weight",), *up),
      "up": Row((mlp + "wi_1.weight",), *up),
      "down": Row((mlp + "wo.weight",), (f, e), ("mlp", "embed"), 1, self.layers),
    }

  def __call__(self, params, ids, mask, dtype):
    """Ids [B, T], mask [B, T] -> [B, T, E] float32."""
    shared = ("table", "bias", "norm")
    table, bias, norm = (params[name] for name in shared)
    blocks = {k: v for k, v in params.items() if k not in shared}
    x = table.at[ids].get(out_sharding=spec("batch", None, None))
    bias = self.position_bias(bias, ids.shape[1])

    def block(x, p):
      y = self._norm(x, p["norm_self"]).astype(dtype)
      x = x + self._attend(y, p, bias, mask).astype(x.dtype)
      y = self._norm(x, p["norm_mlp"]).astype(dtype)
      gate, up = (
        sharding.product(
          "bti,ix->btx", y, p[name], x_axes=_ROWS, w_axes=("embed", "mlp")
        )
        for name in ("gate", "up")
      )
      y = sharding.product(
        "btu,ux->btx",
        jax.nn.gelu(gate) * up,
        p["down"],
        x_axes=("batch", None, "mlp"),
        w_axes=("mlp", "embed"),
      )
      return x + y.astype(x.dtype), None

    # The sum of all blocks grows to thousands: float32, whatever the products are in.
    x, _ = jax.lax.scan(block, x.astype(jnp.float32), blocks)
    return self._norm(x, norm)

  def position_bias(self, bias, length: int) -> jax.Array:
    """Table [buckets, H] -> what is added to the scores [1, H, T, T]."""
    places = np.arange(length)
    bucket = self._bucket(places[None] - places[:, None])
    found = bias.at[bucket].get(out_sharding=spec(None, None, "heads"))
    return jnp.moveaxis(found, -1, 0)[None]

  def _bucket(self, ahead: np.ndarray) -> np.ndarray:
    """How far ahead a key is of its query -> its class, exact only where that is near.

    Far ones share classes that grow with the logarithm; the last holds all beyond.
    """
    half = self.buckets // 2
    exact, far = half // 2, np.abs(ahead)
    scale = np.float32(half - exact) / np.log(np.float32(self.distance / exact))
    log = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) * scale
    shared = np.minimum(exact + log.astype(np.int32), half - 1)
    return np.where(far < exact, far, shared) + half * (ahead > 0)

  def _attend(self, y, p, bias, mask):
    q, k, v = (
      sharding.product(
        "bti,ixy->btxy", y, p[n], x_axes=_ROWS, w_axes=("embed", "heads", None)
      )
      for n in ("q", "k", "v")
    )
    scores = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores + bias, -1e30)
    share = jax.nn.softmax(scores).astype(v.dtype)
    y = jnp.einsum("bhts,bshk->bthk", share, v, preferred_element_type=jnp.float32)
    return sharding.product(
      "btuv,uvx->btx",
      y.astype(v.dtype),
      p["out"],
      x_axes=("batch", None, "heads", None),
      w_axes=("heads", None, "embed"),
    )

  def _norm(self, x, scale):
    return (
      x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon) * (scale)
    )


_ROWS = ("batch", None, None)

# Encoders of T5 v1.1 and of flan-T5, which have the same sizes.
SIZES = {
  "small": T5(width=512, layers=8, heads=6, hidden=1024),
  "base": T5(width=768, layers=12, heads=12, hidden=2048),
  "large": T5(width=1024, layers=24, heads=16, hidden=2816),
  "xl": T5(width=2048, layers=24, heads=32, hidden=5120),
  "xxl": T5(width=4096, layers=24, heads=64, hidden=10_240),
}


@dataclasses.dataclass(frozen=True)
class T5Config(FrozenConfig):
  """Features of a T5 v1.1 or flan-T5 encoder, with its SentencePiece vocabulary.

  `path` holds model.safetensors, or shards and their index, or pytorch_model.bin;
  config.json; spiece.model. Widths: small 512, base 768, large 1024, xl 2048, xxl 4096.
  """

  kind = "t5"
  # encoder.embed_tokens is the shared table once more.
  SKIP = r"decoder\..*|lm_head\.weight"
  VOCABULARY = "spiece.model"
  KNOWN = tuple(SIZES.values())

  length: int = 128
  width: int = 4096

  def described(self, path: pathlib.Path, content: dict[str, Any]) -> T5:
    """See FrozenConfig."""
    gates = content.get("feed_forward_proj", "relu")
    if gates != "gated-gelu":
      raise ConfigError(
        f"{path} describes a T5 with feed_forward_proj '{gates}', which is older than "
        "v1.1: take T5 v1.1 or flan-T5, which have 'gated-gelu'"
      )
    return T5(
      width=content["d_model"],
      layers=content["num_layers"],
      heads=content["num_heads"],
      hidden=content["d_ff"],
      head_width=content["d_kv"],
      buckets=content["relative_attention_num_buckets"],
      distance=content.get("relative_attention_max_distance", 128),
      vocab=content["vocab_size"],
      epsilon=content["layer_norm_epsilon"],
    )

  def vocabulary(self, path):
    """See FrozenConfig."""
    vocabulary = _Vocabulary(path)
    if vocabulary.has("<s>"):
      raise ConfigError(
        f"text vocabulary {path} has an extra piece <s>, which shifts the ids after it "
        "by one: take the spiece.model that T5's authors published"
      )
    return vocabulary


class _Vocabulary(Vocabulary):
  """spiece.model, which nobody makes here."""

  MISSING = "put the spiece.model of the checkpoint beside its weights"
  REMEDY = "download it again"
