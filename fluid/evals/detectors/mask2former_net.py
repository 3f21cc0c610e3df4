"""The network Mask2Former with a Swin backbone (Cheng et al., arXiv 2112.01527).

Parameters have the names and layouts of transformers' files, which `shapes` lists.

Legend: N images, H, W pixels, h, w tokens, E channels, L levels, S tokens of all
levels, Q queries, A heads, K classes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fluid.evals.detectors import swin
from fluid.evals.detectors.swin import (
  Params,
  Shapes,
  above,
  convolve,
  dense,
  layer_norm,
  linear_shapes,
  norm_shapes,
  resize,
  under,
)

LEVELS = 3  # All but the finest map attend and are attended to.
POINTS = 4  # That a head looks at in each level.
GROUPS = 32  # Of a group norm.


@dataclasses.dataclass(frozen=True)
class Network:
  """The sizes, and the network.

  Attributes:
    backbone: its maps have 4, 8, 16 and 32 pixels to a token.
    width, heads: E and A of pixel decoder and transformer decoder.
    mask_width: channels that masks are a product over.
    encoder_layers, encoder_hidden: of the pixel decoder, and units of its MLPs.
    decoder_layers, decoder_hidden: of the transformer decoder.
    queries, classes: Q, K.
    edges: longest and shortest edge, in pixels, that images are enlarged or reduced to
      fit.
  """

  backbone: swin.Swin = swin.Swin()
  width: int = 256
  heads: int = 8
  mask_width: int = 256
  encoder_layers: int = 6
  encoder_hidden: int = 1024
  decoder_layers: int = 9
  decoder_hidden: int = 2048
  queries: int = 100
  classes: int = 80
  edges: tuple[int, int] = (1333, 800)

  def shapes(self) -> Shapes:
    """Of every parameter, in transformers' names."""
    e = self.width
    transformer = norm_shapes("decoder.layernorm", e)
    for i in range(self.decoder_layers):
      transformer |= above(f"decoder.layers.{i}", self._decoder_shapes())
    for i, outputs in enumerate((e, e, self.mask_width)):
      name = f"decoder.mask_predictor.mask_embedder.{i}.0"
      transformer |= linear_shapes(name, e, outputs)
    for name in ("queries_embedder", "queries_features"):
      transformer[f"{name}.weight"] = (self.queries, e)
    transformer["level_embed.weight"] = (LEVELS, e)
    return {
      **above("model.pixel_level_module.encoder", self.backbone.shapes()),
      **above("model.pixel_level_module.decoder", self._pixel_shapes()),
      **above("model.transformer_module", transformer),
      **linear_shapes("class_predictor", e, self.classes + 1),
    }

  def _pixel_shapes(self) -> Shapes:
    e, points = self.width, self.heads * LEVELS * POINTS
    out: Shapes = {"level_embed": (LEVELS, e)}
    for i, c in enumerate(self.backbone.channels[:0:-1]):
      out[f"input_projections.{i}.0.weight"] = (e, c, 1, 1)
      out[f"input_projections.{i}.0.bias"] = (e,)
      out |= norm_shapes(f"input_projections.{i}.1", e)
    layer = {
      **linear_shapes("self_attn.sampling_offsets", e, 2 * points),
      **linear_shapes("self_attn.attention_weights", e, points),
      **linear_shapes("self_attn.value_proj", e, e),
      **linear_shapes("self_attn.output_proj", e, e),
      **norm_shapes("self_attn_layer_norm", e),
      **_mlp_shapes(e, self.encoder_hidden),
    }
    for i in range(self.encoder_layers):
      out |= above(f"encoder.layers.{i}", layer)
    out["adapter_1.0.weight"] = (e, self.backbone.width, 1, 1)
    out["layer_1.0.weight"] = (e, e, 3, 3)
    out |= norm_shapes("adapter_1.1", e) | norm_shapes("layer_1.1", e)
    out["mask_projection.weight"] = (self.mask_width, e, 1, 1)
    return out | {"mask_projection.bias": (self.mask_width,)}

  def _decoder_shapes(self) -> Shapes:
    e = self.width
    out: Shapes = {"cross_attn.in_proj_weight": (3 * e, e)}
    out["cross_attn.in_proj_bias"] = (3 * e,)
    out |= linear_shapes("cross_attn.out_proj", e, e)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
      out |= linear_shapes(f"self_attn.{name}", e, e)
    for name in ("cross_attn_layer_norm", "self_attn_layer_norm"):
      out |= norm_shapes(name, e)
    return out | _mlp_shapes(e, self.decoder_hidden)

  def __call__(self, p: Params, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Normalised images [N, H, W, 3] -> logits of classes, logits of masks.

    Returns:
      [N, Q, K + 1], the last for no object, and [N, Q, H / 4, W / 4].
    """
    maps = self.backbone(under(p, "model.pixel_level_module.encoder"), x)
    return self.decode(p, *self.pixels(p, maps))

  def pixels(
    self, p: Params, maps: list[jax.Array]
  ) -> tuple[list[jax.Array], jax.Array]:
    """Pixel decoder.

    Padding is not masked, here or later: neither is it in the reference.

    Args:
      p: parameters.
      maps: of the backbone, finest first.

    Returns:
      LEVELS maps [N, h, w, E], coarsest first, and features [N, H / 4, W / 4, channels]
      that masks are made of.
    """
    p = under(p, "model.pixel_level_module.decoder")
    levels, places = [], []
    for i, x in enumerate(maps[:0:-1]):
      x = convolve(p, f"input_projections.{i}.0", x)
      levels.append(group_norm(p, f"input_projections.{i}.1", x))
      places.append(_flat(positions(x.shape[1:3], self.width)) + p["level_embed"][i])
    sizes = tuple(x.shape[1:3] for x in levels)
    x, place = jnp.concatenate([_flat(x) for x in levels], 1), jnp.concatenate(places)
    for i in range(self.encoder_layers):
      layer = under(p, f"encoder.layers.{i}")
      y = _deform(under(layer, "self_attn"), x + place, x, sizes, self.heads)
      x = layer_norm(layer, "self_attn_layer_norm", x + y)
      x = _mlp(layer, x)
    ends = np.cumsum([h * w for h, w in sizes])[:-1].tolist()
    parts = jnp.split(x, ends, axis=1)
    out = [y.reshape(like.shape) for y, like in zip(parts, levels)]
    fine = group_norm(p, "adapter_1.1", convolve(p, "adapter_1.0", maps[0]))
    fine += resize(out[-1], fine.shape)
    fine = jax.nn.relu(group_norm(p, "layer_1.1", convolve(p, "layer_1.0", fine)))
    return out, convolve(p, "mask_projection", fine)

  def decode(
    self, p: Params, levels: list[jax.Array], features: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Transformer decoder: what `pixels` returns -> what the network returns.

    A layer's queries see one level, and there only where the masks of the layer before
    are positive; a query whose mask is nowhere positive sees all.
    """
    t = under(p, "model.transformer_module")
    memory = [_flat(x) + t["level_embed.weight"][i] for i, x in enumerate(levels)]
    grids = [x.shape[1:3] for x in levels]
    places = [_flat(positions(size, self.width)) for size in grids]
    place = t["queries_embedder.weight"]
    x = jnp.broadcast_to(t["queries_features.weight"], (len(features), *place.shape))
    masks = self._masks(t, x, features)
    for i in range(self.decoder_layers):
      layer, level = under(t, f"decoder.layers.{i}"), i % LEVELS
      value, key = memory[level], memory[level] + places[level]
      blocked = resize(masks, (*masks.shape[:2], *grids[level])) < 0
      blocked = blocked.reshape(*masks.shape[:2], -1)
      blocked &= ~blocked.all(-1, keepdims=True)
      cross = _split_projection(under(layer, "cross_attn"))
      y = _attend(cross, x + place, key, value, self.heads, blocked)
      x = layer_norm(layer, "cross_attn_layer_norm", x + y)
      y = _attend(under(layer, "self_attn"), x + place, x + place, x, self.heads)
      x = layer_norm(layer, "self_attn_layer_norm", x + y)
      x = _mlp(layer, x)
      masks = self._masks(t, x, features)
    return dense(p, "class_predictor", layer_norm(t, "decoder.layernorm", x)), masks

  def _masks(self, t: Params, x: jax.Array, features: jax.Array) -> jax.Array:
    """Queries [N, Q, E] -> logits [N, Q, h, w]."""
    x = layer_norm(t, "decoder.layernorm", x)
    for i in range(3):
      x = dense(t, f"decoder.mask_predictor.mask_embedder.{i}.0", x)
      x = jax.nn.relu(x) if i < 2 else x
    return jnp.einsum("nqe,nhwe->nqhw", x, features)


def _mlp_shapes(width: int, hidden: int) -> Shapes:
  return {
    **linear_shapes("fc1", width, hidden),
    **linear_shapes("fc2", hidden, width),
    **norm_shapes("final_layer_norm", width),
  }


def _mlp(p: Params, x: jax.Array) -> jax.Array:
  """The MLP of a layer, with its sum and norm."""
  y = dense(p, "fc2", jax.nn.relu(dense(p, "fc1", x)))
  return layer_norm(p, "final_layer_norm", x + y)


def group_norm(p: Params, name: str, x: jax.Array) -> jax.Array:
  """Mean 0 and variance 1 over pixels and each of GROUPS, then scale and bias."""
  y = x.reshape(len(x), -1, GROUPS, x.shape[-1] // GROUPS)
  y = y - y.mean((1, 3), keepdims=True)
  y = y * lax.rsqrt(jnp.square(y).mean((1, 3), keepdims=True) + swin.EPSILON)
  return y.reshape(x.shape) * p[f"{name}.weight"] + p[f"{name}.bias"]


def positions(size: tuple[int, ...], channels: int) -> np.ndarray:
  """Sines and cosines of the rows, then of the columns: (h, w) -> [h, w, channels]."""

  def waves(n):
    angle = 2 * np.pi * np.arange(1, n + 1) / (n + 1e-6)
    rate = 10_000.0 ** (-np.arange(0, channels // 2, 2) / (channels // 2))
    angle = angle[:, None] * rate
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(n, -1)

  shape = (*size, channels // 2)
  rows = np.broadcast_to(waves(size[0])[:, None], shape)
  columns = np.broadcast_to(waves(size[1])[None], shape)
  return np.concatenate([rows, columns], -1).astype(np.float32)


def _deform(p: Params, query, value, sizes, heads: int) -> jax.Array:
  """Multi-scale deformable attention (Zhu et al., arXiv 2010.04159).

  Each head of a query looks at POINTS of every level, at offsets from its own place.

  Args:
    p: parameters.
    query, value: [N, S, E].
    sizes: (h, w) of each level.
    heads: A.
  """
  n, s, _ = query.shape
  value = dense(p, "value_proj", value).reshape(n, s, heads, -1)
  split = (n, s, heads, LEVELS, POINTS)
  offsets = dense(p, "sampling_offsets", query).reshape(*split, 2)
  share = dense(p, "attention_weights", query).reshape(n, s, heads, -1)
  share = jax.nn.softmax(share).reshape(split)
  # Where each token is, (x, y) in shares of the image.
  grids = [(np.indices(hw)[::-1].reshape(2, -1).T + 0.5) / hw[::-1] for hw in sizes]
  centers = np.concatenate(grids).astype(np.float32)
  out, start = jnp.zeros(()), 0
  for i, (h, w) in enumerate(sizes):
    at = centers * np.array((w, h), np.float32) - 0.5
    at = at[:, None, None] + offsets[:, :, :, i]
    part = value[:, start : start + h * w]
    out = out + _sample(part, (h, w), at, share[:, :, :, i])
    start += h * w
  return dense(p, "output_proj", out.reshape(query.shape))


def _sample(value, size: tuple[int, int], at, share) -> jax.Array:
  """Weighted sums of a map at points between its pixels; it is zero outside.

  Args:
    value: [N, h * w, A, E / A].
    size: h, w.
    at: (x, y) of points, in pixels from the middle of the first [N, S, A, POINTS, 2].
    share: their weights [N, S, A, POINTS].

  Returns:
    [N, S, A, E / A].
  """
  h, w = size
  corner = np.array([(0, 0), (1, 0), (0, 1), (1, 1)])
  first = jnp.floor(at)[..., None, :]
  after = at[..., None, :] - first
  pixels = first.astype(jnp.int32) + corner  # [N, S, A, POINTS, 4, 2]
  inside = ((pixels >= 0) & (pixels < np.array((w, h)))).all(-1)
  weight = jnp.where(corner, after, 1 - after).prod(-1) * inside * share[..., None]
  # A pixel outside has no weight, whatever is taken in its place.
  take = lambda pixels, where: pixels.at[where].get(mode="clip")
  take = jax.vmap(jax.vmap(take, (1, 1), 1))  # Over images, and over heads.
  found = take(value, pixels[..., 1] * w + pixels[..., 0])
  return jnp.einsum("nsapc,nsapck->nsak", weight, found)


def _attend(p: Params, query, key, value, heads: int, blocked=None) -> jax.Array:
  """Attention [N, Q, E], [N, S, E] -> [N, Q, E]; none where blocked [N, Q, S]."""
  split = lambda x: x.reshape(*x.shape[:-1], heads, -1)
  q = split(dense(p, "q_proj", query))
  k, v = split(dense(p, "k_proj", key)), split(dense(p, "v_proj", value))
  scores = jnp.einsum("nqak,nsak->naqs", q, k) * q.shape[-1] ** -0.5
  if blocked is not None:
    scores = jnp.where(blocked[:, None], -jnp.inf, scores)
  y = jnp.einsum("naqs,nsak->nqak", jax.nn.softmax(scores), v)
  return dense(p, "out_proj", y.reshape(query.shape))


def _split_projection(p: Params) -> dict[str, jax.Array]:
  """torch's fused projection of queries, keys and values, as three."""
  out = dict(p)
  for kind in ("weight", "bias"):
    parts = jnp.split(out.pop(f"in_proj_{kind}"), 3)
    out |= {f"{name}_proj.{kind}": part for name, part in zip("qkv", parts)}
  return out


def _flat(x):
  """[..., h, w, E] -> [..., h * w, E]."""
  return x.reshape(*x.shape[:-3], -1, x.shape[-1])
