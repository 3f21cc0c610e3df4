"""KL-VAE: continuous tokens, patches of a normalised Gaussian latent.

B batch, H W image, h w latent grid, C latent channels, p patch, L tokens.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from fluid.config import rules
from fluid.tokenizers import autoencoder, base


@dataclasses.dataclass(frozen=True)
class VAEConfig(autoencoder.AutoencoderConfig):
  """A Gaussian latent; tokens are patches of it.

  Attributes:
    patch: latents are grouped patch x patch into one token.
    kl_weight: weight of the KL term, counted as in latent diffusion.
    latent_scale: latents are multiplied by it before they are measured on data.
  """

  kind = "vae"

  patch: int = 2  # type: ignore[misc]
  kl_weight: float = 1e-6

  latent_scale: ClassVar[float] = 1.0

  def check(self, name):
    super().check(name)
    rules.positive(self, name, "latent_scale")

  def make(self, image_size, variables=None):
    """See base.TokenizerConfig."""
    return VAE(self, image_size, variables)


class VAE(base.Tokenizer):
  """variables: params, and latent {shift [C], scale [C]}: tokens = (z-shift)*scale."""

  def __init__(self, config: VAEConfig, image_size: int, variables=None):
    super().__init__(config, image_size, variables)
    self.grid = config.grid(image_size)
    self.module = config.module(moments=2)

  @property
  def spec(self) -> base.TokenSpec:
    c, side = self.config, self.grid // self.config.patch
    return base.TokenSpec(
      "continuous", side * side, (side, side), channels=c.channels * c.patch**2
    )

  def init(self, key) -> dict:
    image = jnp.zeros((1, self.image_size, self.image_size, 3))
    params = self.module.init(key, image)["params"]
    # Start with a narrow posterior: unit noise would drown the latent, and with a small
    # KL weight the first hundreds of steps would go into nothing but narrowing it.
    logvar = jnp.arange(2 * self.config.channels) >= self.config.channels
    params["quant_conv"]["bias"] = jnp.where(logvar, -6.0, 0.0)
    ones = jnp.ones(self.config.channels)
    return {
      "params": params,
      "latent": {"shift": 0 * ones, "scale": self.config.latent_scale * ones},
    }

  def posterior(self, variables, images):
    """[B, H, W, 3] -> mean and log variance of the raw latent, [B, h, w, C] each."""
    out = self.module.apply(
      {"params": variables["params"]}, images, method=self.module.encode
    )
    mean, logvar = jnp.split(out, 2, -1)
    return mean, jnp.clip(logvar, -30.0, 20.0)

  def moments_with(self, variables, images):
    mean, logvar = self.posterior(variables, images)
    shift, scale = variables["latent"]["shift"], variables["latent"]["scale"]
    std = jnp.exp(logvar / 2) * scale
    p = self.config.patch
    return base.patchify((mean - shift) * scale, p), base.patchify(std, p)

  def encode_with(self, variables, images):
    return self.moments_with(variables, images)[0]

  def decode_with(self, variables, tokens):
    z = base.unpatchify(tokens, self.config.patch, self.spec.grid)
    z = z / variables["latent"]["scale"] + variables["latent"]["shift"]
    return self.module.apply(
      {"params": variables["params"]}, z, method=self.module.decode
    )

  def training_state(self, variables):
    """What training carries beside the parameters: nothing."""
    return {}

  def loss(self, params, state, images, key):
    """-> (loss, (state, metrics)); images [B, H, W, 3] in [-1, 1].

    The KL is counted as in latent diffusion: summed over the latent and divided by
    the number of pixel values.
    """
    mean, logvar = self.posterior({"params": params}, images)
    z = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
    recon = self.module.apply({"params": params}, z, method=self.module.decode)
    kl = 0.5 * (mean**2 + jnp.exp(logvar) - 1 - logvar).sum() / images.size
    rec = autoencoder.reconstruction_loss(recon, images, self.config)
    metrics = {"recon": rec, "kl": kl, "mse": jnp.square(recon - images).mean()}
    return rec + self.config.kl_weight * kl, (state, metrics)

  def finish(self, params, state, images: np.ndarray, batch: int) -> dict:
    """Variables with the latent scale measured over `images` [N, H, W, 3].

    Zero mean and unit variance hold for posterior samples, which is what a model of
    the tokens is trained on: total variance = variance of means + mean of variances.
    """
    fn = jax.jit(lambda x: self.posterior({"params": params}, x))
    mean, logvar = base.in_batches(fn, images, batch)
    axes = (0, 1, 2)
    variance = mean.astype(np.float64).var(axes) + np.exp(logvar).mean(axes)
    return {
      "params": params,
      "latent": {
        "shift": mean.mean(axes, dtype=np.float64).astype(np.float32),
        "scale": (variance**-0.5).astype(np.float32),
      },
    }
