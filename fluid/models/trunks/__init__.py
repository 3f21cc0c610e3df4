"""Trunks: how inputs and condition become outputs.

A trunk's config makes a Linen module, `config.module(model, spec)`, with

  __call__(x, plan, cond, kept=None, at=None, keys=None) -> z, kept
    x [B, L, D] embedded tokens, cond a Cond -> z [B, S, D], an output for each slot of
    the plan. One pass serves training, the slots `at` [B, M] alone, and new slots
    behind those that `kept` holds (plan.first is the first of them). `keys` [B] are of
    dropout (None: none).
  start(cond, length) -> kept
    What passes of one condition share, such as the text's keys and values; with a
    length, room for the keys and values of so many slots. A tree of arrays whose
    second axis is the batch, opaque to orders and to sampling.

Its parameters lie at the top of the net's. A new trunk is one file and one row of
TRUNKS.
"""

from typing import Any

from fluid.models.trunks.fluid import FluidConfig

TRUNKS: dict[str, Any] = {
  "fluid": FluidConfig,
  # Of published families (fluid.models.published).
  "mar": "fluid.models.trunks.mar:MARConfig",
  "llamagen": "fluid.models.trunks.llamagen:LlamaGenConfig",
  "maskgit": "fluid.models.trunks.maskgit:MaskGITConfig",
  "rar": "fluid.models.trunks.rar:RARConfig",
  "var": "fluid.models.trunks.var:VARConfig",
}
