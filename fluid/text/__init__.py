"""Text encoders: what turns prompts into a condition's input; ENCODERS has them all.

An encoder's config is a TextConfig; `load(run.text, folder)` gives the encoder, which
has `size`, `encode(prompts, length) -> (ids [B, T], mask [B, T])` and `decode(ids)`.
The learned one stops there: its embedding table is a parameter of the net. A frozen one
(fluid.text.frozen) adds `features(ids, mask) -> [B, T, E]`, which the net takes in the
place of ids; `inputs(encoder, ids, mask)` gives whichever it is. Class names are
prompts of one token. A new encoder is one file and one row of ENCODERS.
"""

from typing import Any

from fluid.text.base import TextConfig, copy, inputs, load
from fluid.text.classes import ClassesConfig
from fluid.text.learned import LearnedConfig
from fluid.text.pieces import PromptError
from fluid.text.tokenization import Vocabulary, train_vocabulary

ENCODERS: dict[str, Any] = {
  "learned": LearnedConfig,
  "classes": ClassesConfig,
  "t5": "fluid.text.t5:T5Config",
  "minilm": "fluid.text.minilm:MiniLMConfig",
}

__all__ = [
  "ENCODERS",
  "PromptError",
  "TextConfig",
  "Vocabulary",
  "copy",
  "inputs",
  "load",
  "train_vocabulary",
]
