"""Heads own the token space at both ends.

A head's config says which tokens it fits (`tokens`), how it draws (`Draw`), and makes a
Linen module, `config.module(model, spec)`, with

  embed(tokens) -> [B, L, D]
  loss(z [B, L, D], target, keys [B], train) -> {'loss': [B, L], ...}, unreduced
  sample(z [B, M, D], keys [B, M], z_uncond=, guidance=, temperature=, draw=)
    -> tokens, and their log-probabilities [B, M], where it has some (else None)

Randomness is per example (loss) and per token (sample), so results do not depend on how
examples are batched. Its parameters lie under 'head'. A new head is one file and one
row of HEADS.
"""

from typing import Any

from fluid.models.heads.categorical import CategoricalConfig
from fluid.models.heads.diffusion import DiffusionConfig

HEADS: dict[str, Any] = {
  "categorical": CategoricalConfig,
  "diffusion": DiffusionConfig,
  "scales": "fluid.models.heads.scales:ScalesConfig",
}
