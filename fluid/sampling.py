"""Sampling: prompts -> tokens -> images, one compiled program for any of them.

B batch, L image tokens, T text tokens, E width of frozen features, M tokens of one
step, D width, C channels.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fluid import config, text, trees
from fluid.console import progress
from fluid.models import Cond, Net
from fluid.parallel import sharding
from fluid.parallel.sharding import to_host


@dataclasses.dataclass
class Decoder:
  """A net with parameters and condition inside: what an order's sampler calls.

  With guidance every trunk call has 2B rows: each prompt, and then the null condition.
  `dials` are numbers of the options that a program takes as it runs: one program is
  compiled for all of their values.
  """

  net: Net
  params: dict
  options: config.Sample
  keys: jax.Array  # [B]
  cond: Cond  # [(2)B, ...]
  dials: dict[str, Any]

  @classmethod
  def create(cls, net, params, text, text_mask, keys, options, dials=None):
    text, text_mask, keys = sharding.by_rows((text, text_mask, keys))
    drop = jnp.zeros(text.shape[0], bool)
    if options.guidance != 1:
      text, text_mask = _twice(text), _twice(text_mask)
      drop = jnp.arange(len(text)) % 2 == 1
    cond = net.condition(params, text, text_mask, drop)
    return cls(net, params, options, keys, cond, dials or turned(options)[1])

  @property
  def length(self) -> int:
    return self.net.tokens.length

  @property
  def skips(self) -> bool:
    return self.net.model.trunk.skips

  @property
  def scales(self):
    return self.net.scales

  def blank(self):
    return self.net.example(len(self.keys))["tokens"]

  def start(self, *, past: bool):
    return self.net.start(self.params, self.cond, self.length if past else 0)

  def run(self, tokens, plan, kept, *, guided=True, at=None):
    cond = self.cond
    if guided and self.options.guidance != 1:
      tokens, at = _twice(tokens), None if at is None else _twice(at)
      n = len(self.keys)  # Others have one row for all.
      plan = plan.each(lambda a: _twice(a) if len(a) == n else a)
    elif self.options.guidance != 1:
      kept = jax.tree.map(lambda a: _pairs(a, 1)[0], kept)
      cond = jax.tree.map(lambda a: _pairs(a)[0], cond)
    return self.net.run(self.params, tokens, plan, cond, kept, at)

  def draw(self, z, positions, stage, *, known, decoded):
    options, w = self.options, 1.0
    z, z_uncond = _pairs(z) if len(z) > len(self.keys) else (z, None)
    if not stage.guided:
      z_uncond = None
    else:
      w = 1 + (self.dials["guidance"] - 1) * _grown(options, known, decoded)
    return self.net.draw(
      self.params,
      z,
      self._keys(positions),
      z_uncond=z_uncond,
      guidance=w,
      temperature=self.dials["temperature"],
      draw=stage.draw,
    )

  def noise(self, positions):
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))
    return jax.vmap(jax.vmap(jax.random.gumbel))(fold(self._keys(positions), 1))

  def _keys(self, positions):
    """A token's randomness belongs to its example and position, not to the schedule."""
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(self.keys, positions)


def _twice(a):
  """[B, ...] -> [2B, ...]; the rows of an example are neighbours, on one device."""
  return jnp.repeat(a, 2, 0)


def _pairs(a, axis: int = 0):
  """[2B, ...] -> the first and the second rows of all examples, [B, ...] each."""
  pairs = a.reshape(*a.shape[:axis], -1, 2, *a.shape[axis + 1 :])
  return tuple(jax.lax.index_in_dim(pairs, i, axis + 1, False) for i in range(2))


def turned(cfg: config.Sample) -> tuple[config.Sample, dict[str, float]]:
  """-> what decides the program, and the dials: guidance and temperature."""
  dials = {"guidance": cfg.guidance, "temperature": cfg.temperature}
  guided = 1.0 if cfg.guidance == 1 else 2.0  # Without guidance there is one pass.
  return dataclasses.replace(cfg, guidance=guided, temperature=1.0), dials


def _grown(options: config.Sample, known, decoded):
  """Share of w - 1 at a step before and after which these shares are decoded."""
  if options.guidance_schedule == "linear":
    return decoded
  if options.guidance_schedule == "cosine":
    return (1 - jnp.cos(jnp.pi * jnp.asarray(known) ** options.guidance_power)) / 2
  return 1.0


def generate(
  net: Net, params, text, text_mask, keys, cfg: config.Sample, dials=None
) -> jax.Array:
  """Draws tokens for texts.

  Args:
    net, params: the model.
    text, text_mask: ids [B, T] (or frozen features [B, T, E]), [B, T].
    keys: [B]; an example's tokens depend on its own key and text alone.
    cfg: static.
    dials: in place of what it says (see `turned`).

  Returns:
    Tokens [B, L] int32 or [B, L, C] float32.
  """

  def ready(name, w):
    often = net.often(name)
    # Matrices are cast once: at each token the cast would read all of them in float32.
    if net.matrix(name) or (often and w.ndim > 1):
      w = w.astype(net.model.dtype)
    return sharding.everywhere(w) if often else w

  params = trees.map_names(ready, params)
  decoder = Decoder.create(net, params, text, text_mask, keys, cfg, dials)
  return net.order.sample(decoder, cfg)


@functools.partial(jax.jit, static_argnames=("net", "cfg"))
def _generate(params, text, text_mask, keys, dials, *, net, cfg):
  run = lambda *args: generate(net, *args[:-1], cfg, args[-1])
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty:  # The compiler lays out weights; rows are pinned (by_rows).
    run = jax.sharding.auto_axes(
      run, axes=mesh.axis_names, out_sharding=sharding.batch_spec()
    )
  return run(params, text, text_mask, keys, dials)


class Sampler:
  """Prompts -> images, in batches of one static size.

  Args:
    net: the model.
    tokenizer: decodes tokens to images.
    vocabulary: encodes prompts, a frozen one to features; refuses unknown words and
      prompts too long.
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
    self.cfg = cfg or net.model.sample()
    self.track = track

  def tokens(
    self, params, prompts: list[str], *, key, first: int = 0, **overrides
  ) -> np.ndarray:
    """Prompts (N) -> tokens [N, L(, C)]; arguments as for `__call__`."""
    cfg = self.cfg.replace(**overrides)
    self.net.model.check_sample(cfg, "sample.")
    ids, mask = self.vocabulary.encode(list(prompts), self.net.text.length)
    n, b = len(ids), rows(cfg.batch)
    fill = lambda a: np.concatenate([a, np.repeat(a[-1:], -n % b, 0)])
    ids, mask, number = fill(ids), fill(mask), first + np.arange(n + -n % b)
    program, dials = turned(cfg)
    out = []
    starts = range(0, n, b)
    for i in self.track(starts, "sampling", len(starts)):
      these = slice(i, i + b)
      keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(number[these])
      given = text.inputs(self.vocabulary, ids[these], mask[these])
      drawn = _generate(
        params, given, mask[these], keys, dials, net=self.net, cfg=program
      )
      out.append(to_host(drawn))
    return np.concatenate(out)[:n]

  def __call__(
    self, params, prompts: list[str], *, key, first: int = 0, **overrides
  ) -> np.ndarray:
    """Draws one image a prompt.

    Args:
      params: of the net.
      prompts: N strings; repeat one to draw it again.
      key: the i-th image depends on key, i and its prompt, not on the batch size.
      first: number of the first of these, where they are part of more.
      **overrides: fields of config.Sample, e.g. guidance=2.0.

    Returns:
      uint8 images [N, H, W, 3].
    """
    if not prompts:
      raise config.ConfigError("no prompts given")
    tokens = self.tokens(params, prompts, key=key, first=first, **overrides)
    b, images = rows(overrides.get("batch", self.cfg.batch)), []
    starts = range(0, len(tokens), b)
    for i in self.track(starts, "decoding", len(starts)):
      chunk = tokens[i : i + b]
      padded = np.concatenate([chunk, np.repeat(chunk[-1:], b - len(chunk), 0)])
      images.append(to_uint8(self.tokenizer.decode(padded))[: len(chunk)])
    return np.concatenate(images)


def rows(batch: int) -> int:
  """A batch, filled up to what the mesh divides."""
  mesh = jax.sharding.get_abstract_mesh()
  return batch + -batch % (1 if mesh.empty else sharding.batch_parts(mesh))


def few(n: int, batch: int) -> int:
  """Rows of a call for n images, of `batch` at most; few numbers have a program."""
  return min(batch, 1 << (n - 1).bit_length())


def to_uint8(images) -> np.ndarray:
  """Images in [-1, 1] -> uint8, rounded to nearest."""
  x = (np.asarray(images, np.float32) + 1) * 127.5
  return np.clip(np.round(x), 0, 255).astype(np.uint8)
