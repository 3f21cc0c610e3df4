"""Sampling: text -> tokens -> images, one compiled program for any prompts.

B batch, L image tokens, T text tokens, M tokens of one step, D width, C channels.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from fluid import config
from fluid.config import rules as validation
from fluid.console import progress
from fluid.models import Net
from fluid.models import stack as transformer
from fluid.parallel.sharding import batch_spec, to_host


@dataclasses.dataclass
class Decoder:
  """A net with parameters and text inside: what an order's sampler calls (orders.Net).

  With guidance every trunk call has 2B rows: the prompts, then the null text.
  """

  net: Net
  params: dict
  cfg: config.Sample
  keys: jax.Array  # [B]
  text_kv: tuple  # keys and values of the text in every layer
  text_mask: jax.Array  # [(2)B, T]

  @classmethod
  def create(cls, net, params, text, text_mask, keys, cfg):
    drop = jnp.zeros(text.shape[0], bool)
    if cfg.guidance != 1:
      text, text_mask = (jnp.concatenate([a, a]) for a in (text, text_mask))
      drop = jnp.concatenate([drop, ~drop])
    text, text_mask = net.apply(params, "encode_text", text, text_mask, drop)
    text_kv = transformer.project_text(params["trunk"], text, net.model.heads)
    return cls(net, params, cfg, keys, text_kv, text_mask)

  @property
  def length(self) -> int:
    return self.net.tokens.length

  def _rows(self, x, guided=True):
    return jnp.concatenate([x, x]) if guided and self.cfg.guidance != 1 else x

  def blank(self):
    return self.net.example(self.keys.shape[0])["tokens"]

  def fill_in(self, tokens, unknown, positions, stage):
    tokens, unknown, at = (
      self._rows(x, stage.guided) for x in (tokens, unknown, positions)
    )
    rows = len(tokens)  # Without guidance, the first half: the prompts.
    text_kv, mask = tuple(a[:, :rows] for a in self.text_kv), self.text_mask[:rows]
    return self.net.apply(self.params, "fill_in", tokens, unknown, at, text_kv, mask)

  def start(self):
    cache = transformer.empty_cache(self.text_kv, self.length)
    return cache, self.net.apply(self.params, "start", len(self.text_mask))

  def decode(self, cache, x, position):
    return self.net.apply(self.params, "decode", x, position, cache, self.text_mask)

  def embed(self, tokens):
    return self.net.apply(self.params, "embed", self._rows(tokens))

  def draw(self, z, positions, decoded, stage):
    cfg, w = self.cfg, 1.0
    z, z_uncond = jnp.split(z, 2) if len(z) > len(self.keys) else (z, None)
    if not stage.guided:
      z_uncond = None
    else:
      grown = decoded / self.length if cfg.guidance_schedule == "linear" else 1.0
      w = 1 + (cfg.guidance - 1) * grown
    # A token's randomness belongs to its example and position, not to the schedule.
    keys = jax.vmap(lambda k, ps: jax.vmap(lambda p: jax.random.fold_in(k, p))(ps))(
      self.keys, positions
    )
    cfg = dataclasses.replace(cfg, diffusion_steps=stage.diffusion_steps)
    return self.net.apply(self.params, "draw", z, keys, z_uncond, w, cfg)


def generate(net: Net, params, text, text_mask, keys, cfg: config.Sample) -> jax.Array:
  """Draws tokens for texts.

  Args:
    net, params: the model.
    text, text_mask: [B, T].
    keys: [B]; an example's tokens depend on its own key and text alone.
    cfg: static.

  Returns:
    Tokens [B, L] int32 or [B, L, C] float32.
  """
  decoder = Decoder.create(net, params, text, text_mask, keys, cfg)
  return net.order.sample(decoder, cfg)


@functools.partial(jax.jit, static_argnames=("net", "cfg"))
def _generate(params, text, text_mask, keys, *, net, cfg):
  run = functools.partial(generate, net, cfg=cfg)
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:  # The compiler lays out sampling; only its result is pinned.
    run = jax.sharding.auto_axes(run, axes=mesh.axis_names, out_sharding=batch_spec())
  return run(params, text, text_mask, keys)


class Sampler:
  """Prompts -> images, in batches of one static size.

  Args:
    net: the model.
    tokenizer: decodes tokens to images.
    vocabulary: encodes prompts; refuses unknown words and prompts too long.
    cfg: defaults of what `__call__` can override.
    track: (batches, name, how many) -> the same batches, see progress.track.
  """

  def __init__(
    self,
    net,
    tokenizer,
    vocabulary,
    cfg: config.Sample | None = None,
    *,
    track=progress.silent,
  ):
    self.net, self.tokenizer, self.vocabulary = net, tokenizer, vocabulary
    self.cfg = cfg or config.Sample()
    self.track = track

  def tokens(self, params, prompts: list[str], *, key, **overrides) -> np.ndarray:
    """Prompts (N) -> tokens [N, L(, C)]; arguments as for `__call__`."""
    if unknown := set(overrides) - {f.name for f in dataclasses.fields(self.cfg)}:
      raise config.ConfigError(f"unknown sampling option '{unknown.pop()}'")
    cfg = dataclasses.replace(self.cfg, **overrides)
    validation.validate_sample(cfg, self.net.model)
    ids, mask = self.vocabulary.encode(list(prompts), self.net.text.length)
    n, b = len(ids), cfg.batch
    fill = lambda a: np.concatenate([a, np.repeat(a[-1:], -n % b, 0)])
    ids, mask, number = fill(ids), fill(mask), np.arange(n + -n % b)
    out = []
    starts = range(0, n, b)
    for i in self.track(starts, "sampling", len(starts)):
      rows = slice(i, i + b)
      keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(number[rows])
      out.append(
        to_host(_generate(params, ids[rows], mask[rows], keys, net=self.net, cfg=cfg))
      )
    return np.concatenate(out)[:n]

  def __call__(self, params, prompts: list[str], *, key, **overrides) -> np.ndarray:
    """Draws one image a prompt.

    Args:
      params: of the net.
      prompts: N strings; repeat one to draw it again.
      key: the i-th image depends on key, i and its prompt, not on the batch size.
      **overrides: fields of config.Sample, e.g. guidance=2.0.

    Returns:
      uint8 images [N, H, W, 3].
    """
    if not prompts:
      raise config.ConfigError("no prompts given")
    tokens = self.tokens(params, prompts, key=key, **overrides)
    b = overrides.get("batch", self.cfg.batch)
    images = []
    starts = range(0, len(tokens), b)
    for i in self.track(starts, "decoding", len(starts)):
      chunk = tokens[i : i + b]
      padded = np.concatenate([chunk, np.repeat(chunk[-1:], b - len(chunk), 0)])
      images.append(np.asarray(self.tokenizer.decode(padded))[: len(chunk)])
    return to_uint8(np.concatenate(images))


def to_uint8(images) -> np.ndarray:
  """Images in [-1, 1] -> uint8, rounded to nearest."""
  x = (np.asarray(images, np.float32) + 1) * 127.5
  return np.clip(np.round(x), 0, 255).astype(np.uint8)
