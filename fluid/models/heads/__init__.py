"""Heads own the token space at both ends.

A head is a Linen module built from (config.Model, TokenSpec) with
  embed(tokens) -> [B, L, D];
  loss(z [B, L, D], target, keys [B]) -> {'loss': [B, L], ...}, unreduced;
  sample(z [B, M, D], keys [B, M], z_uncond=, guidance=, temperature=, steps=, clip=)
  -> tokens.
Randomness is per example (loss) and per token (sample), so results do not depend on
how examples are batched.
"""

from fluid.models.heads.categorical import CategoricalHead
from fluid.models.heads.diffusion import DiffusionHead

HEADS = {"categorical": CategoricalHead, "diffusion": DiffusionHead}
KINDS = {"categorical": "discrete", "diffusion": "continuous"}
