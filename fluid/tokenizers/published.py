"""Published tokenizers whose network is the Autoencoder: their sizes, by default.

Each is a VAE or VQ model with the numbers of its authors; other published sizes of a
family are constants beside it. Weights come from `python -m fluid.convert`. A field
that the authors fixed may still be changed, which makes an untrained relative.
"""

import dataclasses

from fluid.tokenizers import vae, vq


@dataclasses.dataclass(frozen=True)
class SDVAEConfig(vae.VAEConfig):
  """Stable Diffusion's VAE (Rombach et al. 2022, f = 8, 4 channels).

  Attributes:
    patch: Fluid's tokens are 2 x 2 latents, so that 256 pixels give 16 x 16.
    groups, latent_scale: see VAEConfig.
  """

  kind = "sd_vae"

  width: int = 128
  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  blocks: int = 2
  attention: str = "mid"
  patch: int = 2  # type: ignore[misc]
  groups: int = 32  # type: ignore[misc]
  latent_scale: float = 0.18215  # type: ignore[misc]


@dataclasses.dataclass(frozen=True)
class KL16Config(vae.VAEConfig):
  """MAR's VAE (Li et al. 2024; LDM's KL-16: f = 16, 16 channels).

  Attributes:
    groups, latent_scale: see VAEConfig.
  """

  kind = "kl16"

  width: int = 128
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  blocks: int = 2
  channels: int = 16
  attention: str = "encoder"
  patch: int = 1  # type: ignore[misc]
  groups: int = 32  # type: ignore[misc]
  latent_scale: float = 0.2325  # type: ignore[misc]


@dataclasses.dataclass(frozen=True)
class LlamaGenVQConfig(vq.VQConfig):
  """LlamaGen's VQGAN (Sun et al. 2024), by default VQ-16; VQ-8 is LLAMAGEN_VQ8.

  Attributes:
    groups: see AutoencoderConfig.
  """

  kind = "llamagen_vq"

  width: int = 128
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  blocks: int = 2
  channels: int = 8
  z_channels: int = 256
  attention: str = "deep"
  vocab: int = 16384
  cosine: bool = True
  groups: int = 32  # type: ignore[misc]


LLAMAGEN_VQ8 = LlamaGenVQConfig(multipliers=(1, 2, 2, 4))


@dataclasses.dataclass(frozen=True)
class TamingVQConfig(vq.VQConfig):
  """taming-transformers' VQGAN (Esser et al. 2021, f = 16), 16384 codes or 1024.

  Attributes:
    groups: see AutoencoderConfig.
  """

  kind = "taming_vq"

  width: int = 128
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  blocks: int = 2
  channels: int = 256
  attention: str = "deep"
  vocab: int = 16384
  groups: int = 32  # type: ignore[misc]


TAMING_VQ1024 = TamingVQConfig(vocab=1024)
