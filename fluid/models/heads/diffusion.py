"""Diffusion head: continuous tokens, a denoising MLP conditioned on the trunk.

Li et al. (arXiv 2406.11838): SimpleMLPAdaLN and its DiffLoss.

B batch, L tokens, D trunk width, C token channels, W head width, R noise draws a token.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid import config
from fluid.config import rules
from fluid.models import layers
from fluid.models.diffusion import Diffusion, timestep_features
from fluid.models.heads.base import Head
from fluid.parallel import sharding
from fluid.tokenizers.base import TokenSpec

_ZEROS = nn.initializers.zeros
_SMALL = nn.initializers.normal(0.02)
# Every step of every token reads all of these (DiffusionConfig.OFTEN).
Linear = functools.partial(layers.Linear, whole=True)


def _modulate(x, shift, scale):
  return x * (1 + scale) + shift


class ResBlock(nn.Module):
  """LayerNorm -> shift and scale -> Linear, SiLU, Linear -> gated residual."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """x [..., W], y [..., W]: SiLU of the condition (broadcastable) -> [..., W]."""
    w = self.width
    shift, scale, gate = jnp.split(
      Linear((w,), (3 * w,), ("embed", None), init=_ZEROS, name="modulation")(y),
      3,
      -1,
    )
    h = _modulate(layers.Norm(name="norm")(x), shift, scale)
    h = Linear((w,), (w,), ("embed", "mlp"), name="up")(h)
    h = Linear((w,), (w,), ("mlp", "embed"), name="down")(nn.silu(h))
    return x + gate * h


class Denoiser(nn.Module):
  """The network: (x_t, t, z) -> (eps, variance fraction).

  Modulation and output layers start at zero.
  """

  depth: int
  width: int
  channels: int
  cond_width: int
  steps: int = 1000

  def setup(self):
    w = self.width
    self.input = Linear((self.channels,), (w,), (None, "embed"))
    self.time_up = Linear((256,), (w,), (None, "embed"), init=_SMALL)
    self.time_down = Linear((w,), (w,), ("embed", None), init=_SMALL)
    self.cond = Linear((self.cond_width,), (w,), ("embed", None))
    self.blocks = [ResBlock(w) for _ in range(self.depth)]
    self.norm = layers.Norm(affine=False)
    self.modulation = Linear((w,), (2 * w,), ("embed", None), init=_ZEROS)
    self.output = Linear((w,), (2 * self.channels,), ("embed", None), init=_ZEROS)

  def time(self, t: jax.Array, dtype) -> jax.Array:
    """Training steps [...] -> [..., W]."""
    features = timestep_features(t, self.steps).astype(dtype)
    return self.time_down(nn.silu(self.time_up(features)))

  def condition(self, z: jax.Array) -> jax.Array:
    """Trunk outputs [..., D] -> [..., W]; the same for every step of a token."""
    return self.cond(z)

  def denoise(self, x: jax.Array, y: jax.Array) -> jax.Array:
    """x [..., C], y [..., W]: time + condition -> [..., 2C], float32."""
    y = nn.silu(y)
    x = self.input(x.astype(y.dtype))
    for block in self.blocks:
      x = block(x, y)
    shift, scale = jnp.split(self.modulation(y), 2, -1)
    x = self.output(_modulate(self.norm(x), shift, scale))
    return x.astype(jnp.float32)

  def __call__(self, x, t, z):
    """x [..., C], t [...], z [..., D] -> [..., 2C]."""
    return self.denoise(x, self.time(t, z.dtype) + self.condition(z))


NATS_DRAWS = 8  # Of steps and noise, of a token, for its density.
SOLVERS = ("ancestral", "ddim", "dpmpp")


@dataclasses.dataclass(frozen=True)
class DiffusionDraw(config.Draw):
  """How tokens are denoised.

  Attributes:
    solver: 'ancestral' (DDPM, as MAR), 'ddim' or 'dpmpp' (DPM-Solver++ 2M); the last
      two are deterministic and need fewer steps.
    diffusion_steps: reverse steps.
    diffusion_steps_last: the same for the last tokens decoded, to which the steps of
      the tokens before fall in four stages (0: all as the first).
    clip: bound on the continuous tokens implied at each reverse step (0: none, as MAR);
      about 4 standard deviations keeps a young network's chain from running away.
  """

  solver: str = "ancestral"
  diffusion_steps: int = 100
  diffusion_steps_last: int = 0
  clip: float = 0.0

  def at(self, known):
    first, last = self.diffusion_steps, self.diffusion_steps_last
    if not last:
      return self
    quarter = min(int(4 * known), 3)
    steps = round(first + (last - first) * quarter / 3)
    return dataclasses.replace(self, diffusion_steps=steps, diffusion_steps_last=0)


@dataclasses.dataclass(frozen=True)
class DiffusionConfig(Head):
  """A denoising MLP predicts tokens; a projection embeds them.

  Attributes:
    layers, width: residual blocks and their width (0: the trunk's; unconfirmed).
    batch_mul: noise draws per token and step (MAR's diffusion batch multiplier).
    steps: length of the training noise schedule.
  """

  kind = "diffusion"
  tokens = "continuous"
  Draw = DiffusionDraw
  # Nothing decays in the denoiser, as in MAR.
  PARAMETERS = (
    (r"head/tokens/w", True, "embeddings"),
    (r"head/tokens/b", False, "embeddings"),
    (r"head/net/.*", False, "head"),
  )
  OFTEN = r"head/net/.*"

  layers: int = 6
  width: int = 0
  batch_mul: int = 4
  steps: int = 1000

  def check(self, name):
    rules.positive(self, name, "layers", "batch_mul", "steps")

  def check_draw(self, draw, name):
    rules.choice(f"{name}solver", draw.solver, SOLVERS)
    rules.positive(draw, name, "diffusion_steps")
    for field in ("diffusion_steps", "diffusion_steps_last"):
      if (steps := getattr(draw, field)) > self.steps:
        raise config.ConfigError(
          f"config key '{name}{field}' ({steps}) must not exceed model.head.steps "
          f"({self.steps})"
        )

  def module(self, model, spec):
    """See fluid.models.heads."""
    return DiffusionHead(self, model, spec)


class DiffusionHead(nn.Module):
  """See DiffusionConfig."""

  cfg: DiffusionConfig
  model: config.Model
  spec: TokenSpec

  def setup(self):
    c, d = self.cfg, self.model.trunk.width
    self.tokens = layers.Linear(
      (self.spec.channels,), (d,), (None, "embed"), init=_SMALL
    )
    self.net = Denoiser(c.layers, c.width or d, self.spec.channels, d, c.steps)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """[B, L, C] -> [B, L, D]."""
    return self.tokens(tokens.astype(self.model.dtype))

  def loss(self, z: jax.Array, target: jax.Array, keys: jax.Array, train: bool) -> dict:
    """z [B, L, D], target [B, L, C], keys [B] -> loss [B, L]; mse, vb, t [B, L, R].

    Every token is denoised R = batch_mul times, with other steps and noise.
    """
    del train
    diffusion = Diffusion(self.cfg.steps)
    shape = (*target.shape[1:2], self.cfg.batch_mul)

    def draw(key):
      key_t, key_noise = jax.random.split(key)
      return (
        jax.random.randint(key_t, shape, 0, len(diffusion)),
        jax.random.normal(key_noise, (*shape, target.shape[-1])),
      )

    t, noise = jax.vmap(draw)(keys)  # [B, L, R], [B, L, R, C]
    x0 = target.astype(jnp.float32)[:, :, None]
    x_t = diffusion.noised(x0, t, noise)
    y = self.net.time(t, z.dtype) + self.net.condition(z)[:, :, None]
    output = self.net.denoise(x_t, y)
    mse, vb = diffusion.losses(output, x0, t, noise)
    return {"loss": (mse + vb).mean(-1), "mse": mse, "vb": vb, "t": t}

  def nats(self, z: jax.Array, target: jax.Array, keys: jax.Array) -> jax.Array:
    """As loss -> the bound on a token's density (Diffusion.bound), nats [B, L].

    Steps are drawn evenly in log-SNR, of which the terms are about even: of steps drawn
    evenly themselves a few terms near data, a thousand times each, would be the result.
    """
    diffusion = Diffusion(self.cfg.steps)
    shape = (target.shape[1], NATS_DRAWS)

    def draw(key):
      key_t, key_noise = jax.random.split(key)
      noise = jax.random.normal(key_noise, (*shape, target.shape[-1]))
      return jax.random.uniform(key_t, shape), noise

    u, noise = jax.vmap(draw)(keys)  # [B, L, R], [B, L, R, C]
    # One in each of equal shares of the probability.
    t, chances = diffusion.even_in_snr((jnp.arange(NATS_DRAWS) + u) / NATS_DRAWS)
    x0 = target.astype(jnp.float32)[:, :, None]
    y = self.net.time(t, z.dtype) + self.net.condition(z)[:, :, None]
    output = self.net.denoise(diffusion.noised(x0, t, noise), y)
    terms = diffusion.bound(output, x0, t, noise) / chances
    return terms.mean(-1) + diffusion.prior(x0[:, :, 0])

  def sample(
    self,
    z,
    keys,
    *,
    z_uncond=None,
    guidance=1.0,
    temperature=1.0,
    draw=None,
  ):
    """z and z_uncond [B, M, D], keys [B, M] -> tokens [B, M, C], None.

    Guidance acts on eps, u + w (c - u), with one noise for both; the variance is the
    conditional one. `draw` is a DiffusionDraw.
    """
    draw = draw or DiffusionDraw()
    diffusion = Diffusion(self.cfg.steps).respace(draw.diffusion_steps, draw.solver)
    both = z if z_uncond is None else jnp.stack([z, z_uncond], 1)
    cond = self.net.condition(both)
    times = self.net.time(jnp.asarray(diffusion.tables["timestep"]), z.dtype)
    times = sharding.everywhere(times)
    shape = (self.spec.channels,)
    normal = jax.vmap(jax.vmap(lambda k: jax.random.normal(k, shape)))
    fold = lambda i: jax.vmap(jax.vmap(lambda k: jax.random.fold_in(k, i)))(keys)

    def network(x, i):
      y = cond + times[i]
      x = x if z_uncond is None else x[:, None]
      return guide(
        self.net.denoise(jnp.broadcast_to(x, (*y.shape[:-1], *shape)), y),
        z_uncond is not None,
        guidance,
      )

    tokens = diffusion.sample(
      network,
      normal(fold(len(diffusion))),
      lambda i: normal(fold(i)),
      temperature,
      draw.clip,
      solver=draw.solver,
    )
    return tokens, None


def guide(output, guided: bool, guidance):
  """Output [B, (2,) ..., 2C], conditional first -> [B, ..., 2C] with guided eps."""
  if not guided:
    return output
  (c, variance), (u, _) = (jnp.split(output[:, i], 2, -1) for i in range(2))
  return jnp.concatenate([u + guidance * (c - u), variance], -1)
