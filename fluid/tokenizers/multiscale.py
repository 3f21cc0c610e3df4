"""VAR's tokenizer (Tian et al. 2024): a residual quantised from coarse to fine.

At each scale what is left of the latent is averaged down to that scale's grid and given
the nearest codes; the codes are enlarged, smoothed and subtracted. Tokens of all scales
stand one after another. Those of scales 0..k-1 give the inputs of scale k: their sum,
averaged down to its grid.

B batch, H W image, h w latent grid (the last scale), s a scale's side, S scales,
L tokens of all scales, C latent channels, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fluid import config as config_lib
from fluid.config import rules
from fluid.tokenizers import autoencoder, base, latents, vq

BLEND = 0.5  # Share of the smoothing convolution; the rest is the enlarged codes.
SCALES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SCALES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


@dataclasses.dataclass(frozen=True)
class VARVQConfig(autoencoder.AutoencoderConfig):
  """As published for 256 pixels (f = 16, 4096 codes); SCALES_512 are those for 512.

  Attributes:
    vocab, commitment: codebook entries; weight of the pull of latents to their codes.
    scales: sides of the grids, coarse to fine; the last is that of the latent.
    smoothers: convolutions that the scales share, from coarse to fine.
    groups, quant_kernel: see AutoencoderConfig.
  """

  kind = "var_vq"

  width: int = 160
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  blocks: int = 2
  channels: int = 32
  attention: str = "deep"
  vocab: int = 4096
  commitment: float = 0.25
  scales: tuple[int, ...] = SCALES_256
  smoothers: int = 4
  groups: int = 32  # type: ignore[misc]
  quant_kernel: int = 3  # type: ignore[misc]

  def check(self, name):
    super().check(name)
    rules.positive(self, name, "vocab", "smoothers")
    rising = all(a < b for a, b in zip((0, *self.scales), self.scales))
    if not self.scales or not rising:
      raise config_lib.ConfigError(
        f"config key '{name}scales' ({self.scales}) must rise, from 1 or more"
      )

  def module(self, moments: int = 1) -> nn.Module:
    """See AutoencoderConfig."""
    del moments
    return MultiScale(self)

  def make(self, image_size, variables=None):
    """See base.TokenizerConfig; ConfigError where the last scale is not the latent."""
    if self.grid(image_size) != self.scales[-1]:
      raise config_lib.ConfigError(
        f"config key 'tokenizer.scales' ends with {self.scales[-1]}, but images of "
        f"{image_size} pixels have {self.grid(image_size)} latents a side"
      )
    return VARVQ(self, image_size, variables)


def bicubic(side: int, new: int) -> np.ndarray:
  """[new, side]: bicubic interpolation along one axis, as torch's.

  Keys' kernel with a = -0.75 (jax.image's has -0.5) at half-pixel positions, not
  antialiased, the borders repeated.
  """
  a = -0.75
  out = np.zeros((new, side))
  for i in range(new):
    at = (i + 0.5) * side / new - 0.5
    first = int(np.floor(at)) - 1
    for j in range(first, first + 4):
      d = abs(at - j)
      near = (a + 2) * d**3 - (a + 3) * d**2 + 1
      far = a * (d**3 - 5 * d**2 + 8 * d - 4)
      out[i, min(max(j, 0), side - 1)] += near if d <= 1 else far
  return out.astype(np.float32)


def averaging(large: int, small: int) -> np.ndarray:
  """[small, large]: means of bins that overlap where sizes do not divide.

  torch's 'area' interpolation, which is adaptive average pooling.
  """
  out = np.zeros((small, large), np.float32)
  for i in range(small):
    start, stop = i * large // small, -(-(i + 1) * large // small)
    out[i, start:stop] = 1 / (stop - start)
  return out


def resize(x, matrix: np.ndarray):
  """[B, n, n, C] -> [B, m, m, C] by a matrix [m, n] along both axes."""
  if matrix.shape[0] == matrix.shape[1]:  # Both kinds are the identity there.
    return x
  x = jnp.einsum("mh,bhwc->bmwc", matrix, x, precision="highest")
  return jnp.einsum("mw,bhwc->bhmc", matrix, x, precision="highest")


def smoother_of(scale: int, scales: int, smoothers: int) -> int:
  """Which convolution smooths a scale: the nearest of evenly spaced ones.

  The distances of the spacing to 0 and 1 are the authors', as is the exception.
  """
  margin = 1 / (3 if smoothers == 4 else 2) / smoothers
  at = np.linspace(margin, 1 - margin, smoothers)
  return int(np.argmin(np.abs(at - scale / max(scales - 1, 1))))


class MultiScale(autoencoder.Autoencoder):
  """The autoencoder with its codebook and smoothing convolutions."""

  config: VARVQConfig

  def setup(self):
    super().setup()
    c = self.config
    shape = (c.vocab, c.channels)
    self.codebook = self.param("codebook", nn.initializers.normal(1.0), shape)
    self.smooth = [autoencoder.conv(c.channels, None) for _ in range(c.smoothers)]

  def contribution(self, ids, scale: int):
    """Tokens of one scale [B, s s] -> what they add to the latent, [B, h, w, C]."""
    c = self.config
    side = c.scales[scale]
    x = self.codebook[ids].reshape(ids.shape[0], side, side, c.channels)
    x = resize(x, bicubic(side, c.scales[-1]))
    smooth = self.smooth[smoother_of(scale, len(c.scales), c.smoothers)]
    return (1 - BLEND) * x + BLEND * smooth(x)

  def at_scale(self, latent, scale: int):
    """[B, h, w, C] -> [B, s s, C]."""
    side = self.config.scales[scale]
    x = resize(latent, averaging(self.config.scales[-1], side))
    return x.reshape(x.shape[0], side * side, -1)

  def quantize(self, latent):
    """[B, h, w, C] -> tokens [B, L], and the sums [S, B, h, w, C] after each scale."""
    rest, ids, sums = latent, [], []
    for scale in range(len(self.config.scales)):
      x = self.at_scale(rest, scale)
      found = vq.nearest(x.reshape(-1, x.shape[-1]), self.codebook)
      ids.append(found.reshape(x.shape[:2]))
      step = self.contribution(ids[-1], scale)
      rest = rest - step
      sums.append(step if not sums else sums[-1] + step)
    return jnp.concatenate(ids, 1), jnp.stack(sums)

  def latents(self, tokens):
    """[B, L] -> the sums [S, B, h, w, C] after each scale."""
    steps = [self.contribution(x, k) for k, x in enumerate(self.split(tokens))]
    return jnp.cumsum(jnp.stack(steps), 0)

  def split(self, tokens):
    """[B, L, ...] -> one [B, s s, ...] for each scale."""
    ends = np.cumsum([side * side for side in self.config.scales])
    return jnp.split(tokens, ends[:-1], axis=1)

  def inputs(self, tokens):
    """[B, L] -> the inputs of scales 1.., [B, L - s s, C] (s: the first scale's)."""
    sums = self.latents(tokens)
    parts = [self.at_scale(x, k + 1) for k, x in enumerate(sums[:-1])]
    return jnp.concatenate(parts, 1)

  def __call__(self, images):
    return self.decode(self.latents(self.quantize(self.encode(images))[0])[-1])


class VARVQ(base.Tokenizer):
  """variables: params, with the codebook [V, C] and smoothers among them."""

  def __init__(self, config: VARVQConfig, image_size: int, variables=None):
    super().__init__(config, image_size, variables)
    self.grid = config.grid(image_size)
    self.module = config.module()

  @property
  def spec(self) -> base.TokenSpec:
    c = self.config
    length = sum(side * side for side in c.scales)
    return base.TokenSpec(
      "discrete",
      length,
      (1, length),
      vocab=c.vocab,
      channels=c.channels,
      scales=tuple(c.scales),
    )

  def init(self, key) -> dict:
    image = jnp.zeros((1, self.image_size, self.image_size, 3))
    return {"params": self.module.init(key, image)["params"]}

  def to_latents(self):
    """See Tokenizer; of zeros where it has no weights, for shapes alone."""
    return latents.Latents(self.config, self.variables and self.variables["params"])

  def _apply(self, variables, method, *args):
    return self.module.apply({"params": variables["params"]}, *args, method=method)

  def encode_with(self, variables, images):
    latent = self._apply(variables, self.module.encode, images)
    return self._apply(variables, self.module.quantize, latent)[0]

  def decode_with(self, variables, tokens):
    latent = self._apply(variables, self.module.latents, tokens)[-1]
    return self._apply(variables, self.module.decode, latent)

  def training_state(self, variables):
    """What training carries beside the parameters: nothing."""
    return {}

  def loss(self, params, state, images, key):
    """-> (loss, (state, metrics)); images [B, H, W, 3] in [-1, 1].

    Codes are pulled to latents and, less, latents to codes, after every scale.
    """
    apply = lambda method, x: self._apply({"params": params}, method, x)
    stop = jax.lax.stop_gradient
    z = apply(self.module.encode, images)
    ids, sums = apply(self.module.quantize, stop(z))
    commit = jnp.square(stop(sums) - z).mean()
    codes = jnp.square(sums - stop(z)).mean()
    recon = apply(self.module.decode, vq.straight_through(z, sums[-1]))
    rec = autoencoder.reconstruction_loss(recon, images, self.config)
    used = jnp.zeros(self.config.vocab).at[ids.ravel()].add(1.0) / ids.size
    metrics = {
      "recon": rec,
      "commitment": commit,
      "mse": jnp.square(recon - images).mean(),
      "perplexity": jnp.exp(jax.scipy.special.entr(used).sum()),
    }
    return rec + codes + self.config.commitment * commit, (state, metrics)

  def finish(self, params, state, images: np.ndarray, batch: int) -> dict:
    return {"params": params}
