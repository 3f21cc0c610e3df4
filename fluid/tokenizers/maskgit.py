"""MaskGIT's VQGAN (Chang et al. 2022), which RAR uses as well.

A network of its own: no attention and no convolutions around the latent, average
pooling, few biases, and a shortcut that reads the transformed block. Parameter names
are those of `autoencoder`.

B batch, H W height and width, h w of the latent, C channels.
"""

import dataclasses
from typing import ClassVar

import jax
from flax import linen as nn

from fluid.tokenizers import vq
from fluid.tokenizers.autoencoder import conv, norm


@dataclasses.dataclass(frozen=True)
class MaskGITVQConfig(vq.VQConfig):
  """As published for 256 and for 512 pixels (f = 16, 1024 codes).

  Attributes:
    groups: see AutoencoderConfig.
  """

  kind = "maskgit_vq"

  width: int = 128
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  blocks: int = 2
  channels: int = 256
  vocab: int = 1024
  groups: int = 32  # type: ignore[misc]

  # There is nothing to choose here.
  z_channels: ClassVar[int] = 0  # type: ignore[misc]
  attention: ClassVar[str] = "none"  # type: ignore[misc]
  stem: ClassVar[int] = 1  # type: ignore[misc]

  def module(self, moments: int = 1) -> nn.Module:
    """See AutoencoderConfig."""
    del moments
    return MaskGITAutoencoder(self)


class _ResBlock(nn.Module):
  """Norm, SiLU, convolution, twice; without biases."""

  channels: int
  groups: int

  @nn.compact
  def __call__(self, x):
    y = nn.silu(norm(x.shape[-1], "norm1", self.groups)(x))
    y = conv(self.channels, "conv1", use_bias=False)(y)
    y = nn.silu(norm(self.channels, "norm2", self.groups)(y))
    y = conv(self.channels, "conv2", use_bias=False)(y)
    if x.shape[-1] != self.channels:
      # Of y, not of x: as published, so that the block keeps nothing of its input.
      x = conv(self.channels, "nin_shortcut", 1, use_bias=False)(y)
    return x + y


class _Half(nn.Module):
  """What encoder and decoder share."""

  config: MaskGITVQConfig

  def blocks(self, x, name: str, level: int):
    c = self.config
    for i in range(c.blocks):
      width = c.width * c.multipliers[level]
      x = _ResBlock(width, c.groups, name=f"{name}_{i}")(x)
    return x

  def head(self, x, channels: int, kernel: int):
    x = nn.silu(norm(x.shape[-1], "norm_out", self.config.groups)(x))
    return conv(channels, "conv_out", kernel)(x)


class _Encoder(_Half):
  """[B, H, W, 3] -> [B, h, w, C]."""

  @nn.compact
  def __call__(self, x):
    c = self.config
    x = conv(c.width, "conv_in", use_bias=False)(x)
    for i, _ in enumerate(c.multipliers):
      x = self.blocks(x, f"down_{i}_block", i)
      if i < len(c.multipliers) - 1:
        x = nn.avg_pool(x, (2, 2), (2, 2))
    return self.head(self.blocks(x, "mid", -1), c.channels, 1)


class _Decoder(_Half):
  """[B, h, w, C] -> [B, H, W, 3]."""

  @nn.compact
  def __call__(self, x):
    c = self.config
    x = conv(c.width * c.multipliers[-1], "conv_in")(x)
    x = self.blocks(x, "mid", -1)
    for i in reversed(range(len(c.multipliers))):
      x = self.blocks(x, f"up_{i}_block", i)
      if i:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        x = conv(x.shape[-1], f"up_{i}_upsample_conv")(x)
    return self.head(x, 3, 3)


class MaskGITAutoencoder(nn.Module):
  """As autoencoder.Autoencoder; the network's own images are in [0, 1]."""

  config: MaskGITVQConfig

  def setup(self):
    self.encoder, self.decoder = _Encoder(self.config), _Decoder(self.config)

  def encode(self, images: jax.Array) -> jax.Array:
    """[B, H, W, 3] in [-1, 1] -> [B, h, w, C]."""
    return self.encoder((images + 1) / 2)

  def decode(self, latents: jax.Array) -> jax.Array:
    """[B, h, w, C] -> [B, H, W, 3], not clipped."""
    return 2 * self.decoder(latents) - 1

  def __call__(self, images):
    return self.decode(self.encode(images))
