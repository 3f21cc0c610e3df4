"""The convolutional encoder and decoder that the VAE and the VQ model share.

Layer for layer the autoencoder of latent diffusion (taming-transformers; also SD VAE
and LlamaGen's VQGAN), and parameter names follow theirs with dots as underscores within
a module (`encoder.down.0.block.1.conv1` is `encoder/down_0_block_1/conv1`), so that
published weights need only a renaming. Two departures, both off for published weights:
`stem` folds pixels into channels at both ends, which makes small models many times
faster; and narrow layers have fewer than 32 groups (`groups`), where a group of one or
two channels would normalise colour away.

B batch, H W height and width, C channels.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid import config
from fluid.config import rules
from fluid.tokenizers import base


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig(base.TokenizerConfig):
  """The two halves, whatever lies between them.

  Attributes:
    width, multipliers, blocks: encoder/decoder channels, per-level multipliers (one
      level more halves the resolution once more) and residual blocks per level.
    channels: of the latent, or width of a codebook.
    z_channels: width between encoder and the 1x1 convolution (0: `channels`).
    attention: 'none', 'mid' (SD VAE), 'deep' (also at the lowest resolution: VQGAN) or
      'encoder' (there in the encoder alone: KL-16).
    stem: pixels are folded stem x stem into channels at both ends; 1 for published
      weights, more for speed. Pixels per latent: stem * 2**(len(multipliers) - 1).
    groups: of every norm (0: at most 32, of at least 4 channels).
    quant_kernel: side of the convolutions around the latent.
  """

  width: int = 32
  multipliers: tuple[int, ...] = (1, 2, 2)
  blocks: int = 1
  channels: int = 4
  z_channels: int = 0
  attention: str = "none"
  stem: int = 1

  # Fields of those kinds alone that need another value.
  patch: ClassVar[int] = 1
  groups: ClassVar[int] = 0
  quant_kernel: ClassVar[int] = 1

  def check(self, name):
    sizes = ("width", "channels", "stem", "patch", "quant_kernel", "batch")
    rules.positive(self, name, *sizes)
    if not self.multipliers or min(self.multipliers) < 1:
      raise config.ConfigError(
        f"config key '{name}multipliers' ({self.multipliers}) must hold numbers above 0"
      )
    if self.width % 4:
      raise config.ConfigError(
        f"config key '{name}width' ({self.width}) must be a multiple of 4"
      )
    if self.groups and self.width % self.groups:
      raise config.ConfigError(
        f"config key '{name}width' ({self.width}) must be a multiple of the "
        f"{self.groups} groups of its norms"
      )
    known = ("none", "mid", "deep", "encoder")
    rules.choice(f"{name}attention", self.attention, known)

  def module(self, moments: int = 1) -> nn.Module:
    """The network; see Autoencoder."""
    return Autoencoder(self, moments)

  @property
  def factor(self) -> int:
    """Pixels per latent and side."""
    return self.stem * 2 ** (len(self.multipliers) - 1)

  def grid(self, image_size: int) -> int:
    """Latents per side, before they are grouped into tokens."""
    side = self.factor * self.patch
    if image_size < 1 or image_size % side:
      raise config.ConfigError(
        f"config key 'data.image_size' ({image_size}) must be a multiple of {side}, "
        "the pixels per token side (tokenizer.stem x halvings x tokenizer.patch)"
      )
    return image_size // self.factor


def norm(channels: int, name: str, groups: int = 0) -> nn.Module:
  """See AutoencoderConfig.groups."""
  groups = groups or math.gcd(32, channels // 4)
  return nn.GroupNorm(groups, epsilon=1e-6, name=name)


def conv(channels: int, name: str | None, kernel: int = 3, stride: int = 1, **kwargs):
  # SAME with stride 2 pads below and right only, as the original's (0, 1, 0, 1).
  size, strides = (kernel, kernel), (stride, stride)
  return nn.Conv(channels, size, strides, "SAME", name=name, **kwargs)


def unshuffle(x, block: int):
  """[B, H, W, C] -> [B, H/k, W/k, k k C]."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // block, block, w // block, block, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, -1)


def shuffle(x, block: int):
  """Inverse of `unshuffle`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, block, block, c // block**2)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h * block, w * block, -1)


class ResBlock(nn.Module):
  """GroupNorm, SiLU, conv, twice; a 1x1 shortcut where the width changes."""

  channels: int
  groups: int = 0

  @nn.compact
  def __call__(self, x):
    h = conv(self.channels, "conv1")(
      nn.silu(norm(x.shape[-1], "norm1", self.groups)(x))
    )
    # Zero: a block starts as the identity, and color finds its way through at once.
    last = conv(self.channels, "conv2", kernel_init=nn.initializers.zeros)
    h = last(nn.silu(norm(self.channels, "norm2", self.groups)(h)))
    if x.shape[-1] != self.channels:
      x = conv(self.channels, "nin_shortcut", 1)(x)
    return x + h


class AttnBlock(nn.Module):
  """Single-head self-attention over all positions."""

  groups: int = 0

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    y = norm(c, "norm", self.groups)(x)
    q, k, v = (conv(c, n, 1)(y).reshape(b, h * w, 1, c) for n in "qkv")
    y = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)
    return x + conv(c, "proj_out", 1)(y)


class _Half(nn.Module):
  """What encoder and decoder share."""

  config: AutoencoderConfig
  out: int

  # Values of config.attention with which the lowest resolution has attention.
  DEEP: ClassVar[tuple[str, ...]] = ("deep",)

  def mid(self, x):
    c, groups = x.shape[-1], self.config.groups
    x = ResBlock(c, groups, name="mid_block_1")(x)
    if self.config.attention != "none":
      x = AttnBlock(groups, name="mid_attn_1")(x)
    return ResBlock(c, groups, name="mid_block_2")(x)

  def level(self, x, name: str, level: int, blocks: int):
    c = self.config
    deepest = level == len(c.multipliers) - 1
    for i in range(blocks):
      width = c.width * c.multipliers[level]
      x = ResBlock(width, c.groups, name=f"{name}_block_{i}")(x)
      if deepest and c.attention in self.DEEP:
        x = AttnBlock(c.groups, name=f"{name}_attn_{i}")(x)
    return x

  def head(self, x):
    x = nn.silu(norm(x.shape[-1], "norm_out", self.config.groups)(x))
    return conv(self.out, "conv_out")(x)


class Encoder(_Half):
  """[B, H, W, 3] -> [B, H/f, W/f, out]."""

  DEEP = ("deep", "encoder")

  @nn.compact
  def __call__(self, x):
    c = self.config
    x = conv(c.width, "conv_in")(unshuffle(x, c.stem))
    for i, _ in enumerate(c.multipliers):
      x = self.level(x, f"down_{i}", i, c.blocks)
      if i < len(c.multipliers) - 1:
        x = conv(x.shape[-1], f"down_{i}_downsample_conv", 3, 2)(x)
    return self.head(self.mid(x))


class Decoder(_Half):
  """[B, h, w, z] -> [B, H, W, 3]; `out` is 3."""

  @nn.compact
  def __call__(self, x):
    c = self.config
    x = self.mid(conv(c.width * c.multipliers[-1], "conv_in")(x))
    for i in reversed(range(len(c.multipliers))):
      x = self.level(x, f"up_{i}", i, c.blocks + 1)
      if i:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        x = conv(x.shape[-1], f"up_{i}_upsample_conv")(x)
    return shuffle(self.head(x), c.stem)


class Autoencoder(nn.Module):
  """Encoder and decoder with the 1x1 convolutions around the latent.

  Attributes:
    moments: channels the encoder gives per latent channel (2: mean and log variance).
  """

  config: AutoencoderConfig
  moments: int = 1

  def setup(self):
    c = self.config
    z = c.z_channels or c.channels
    self.encoder = Encoder(c, self.moments * z)
    self.decoder = Decoder(c, 3 * c.stem**2)
    self.quant_conv = conv(self.moments * c.channels, None, c.quant_kernel)
    self.post_quant_conv = conv(z, None, c.quant_kernel)

  def encode(self, images):
    """[B, H, W, 3] -> [B, h, w, moments * channels]."""
    return self.quant_conv(self.encoder(images))

  def decode(self, latents):
    """[B, h, w, channels] -> [B, H, W, 3], not clipped."""
    return self.decoder(self.post_quant_conv(latents))

  def __call__(self, images):
    return self.decode(self.encode(images)[..., : self.config.channels])


def reconstruction_loss(recon: Any, images: Any, config: AutoencoderConfig):
  """Mean over the batch of L1, L2 and edges; [B, H, W, 3] each -> scalar.

  The edge term is the L1 distance of horizontal and vertical differences at full, half
  and quarter resolution: it asks for crisp borders where L1 and L2 alone accept blur.
  There is no perceptual or adversarial term.
  """
  error = recon - images
  loss = jnp.abs(error).mean() + config.l2_weight * jnp.square(error).mean()
  if not config.edge_weight:
    return loss
  edges: Any = 0.0
  for scale in range(3):
    # Differences are linear: those of the error are the error of the differences.
    edges += jnp.abs(error[:, 1:] - error[:, :-1]).mean()
    edges += jnp.abs(error[:, :, 1:] - error[:, :, :-1]).mean()
    if scale < 2:
      b, h, w, c = error.shape
      error = error.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))
  return loss + config.edge_weight * edges
