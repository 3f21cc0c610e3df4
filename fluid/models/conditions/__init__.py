"""Conditions: what the image is of, as a trunk reads it.

A condition's config makes a Linen module, `config.module(model, text, vocab)`, with

  __call__(ids, mask, drop) -> Cond
    ids [B, T] of the text encoder, or features [B, T, E] of a frozen one, mask [B, T],
    drop [B]: these rows get the null condition, for guidance.

and says which text encoders it takes (`texts`, kinds of fluid.text.ENCODERS). Weights
of frozen encoders are no parameters: their features come in the place of ids. Its
parameters lie at the top of the net's. A new condition is one file and one row of
CONDITIONS.
"""

from typing import Any

from fluid.models.conditions.base import Cond
from fluid.models.conditions.label import ClassConfig
from fluid.models.conditions.text import TextConfig

CONDITIONS: dict[str, Any] = {
  "text": TextConfig,
  "class": ClassConfig,
  "caption": "fluid.models.conditions.caption:CaptionConfig",
}

__all__ = ["CONDITIONS", "Cond"]
