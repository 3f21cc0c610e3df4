"""Text encoders: ENCODERS maps config.text.kind to what turns prompts into model input.

Every encoder has `size`, `encode(prompts, length) -> (ids [B, T], mask [B, T])` and
`decode(ids)`. The learned one stops there: its embedding table [size, width] is a
parameter of the net. A frozen one (T5) adds `features(ids, mask) -> [B, T, width]`,
which the net takes in the place of ids.
"""

import pathlib

from fluid import config
from fluid.text.tokenization import PromptError, Vocabulary, train_vocabulary

ENCODERS = {"learned": Vocabulary}

__all__ = ["ENCODERS", "PromptError", "Vocabulary", "load", "train_vocabulary"]


def load(text: config.Text, cache: str = "") -> Vocabulary:
  """The encoder of a config: its own file, or the one that prepare left in `cache`."""
  if text.kind not in ENCODERS:
    raise config.ConfigError(
      f"config key 'text.kind' is '{text.kind}'; choose from {', '.join(ENCODERS)}"
    )
  return ENCODERS[text.kind](text.path or pathlib.Path(cache) / "text.model")
