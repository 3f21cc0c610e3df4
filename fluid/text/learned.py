"""A SentencePiece vocabulary whose embeddings the net learns."""

import dataclasses

from fluid.config import rules
from fluid.data import BadExample, all_captions, caption
from fluid.text.base import TextConfig
from fluid.text.tokenization import Vocabulary, train_vocabulary, words_path


@dataclasses.dataclass(frozen=True)
class LearnedConfig(TextConfig):
  """Captions as pieces of a SentencePiece model."""

  kind = "learned"
  FILE = "text.model"

  def files(self, path):
    return [words_path(path), path]

  def check(self, name):
    rules.positive(self, name, "vocab_size", "length")

  def prompt(self, source, index, example=None):
    return example["caption"] if example else caption(source, index)

  def fit(self, source, total, path, keep=None):
    train_vocabulary(_captions(source, total, keep), path, self.vocab_size)

  def open(self, path):
    return Vocabulary(path)


def _captions(source, total: int, keep):
  for index in range(total):
    try:
      if keep is None:
        yield caption(source, index)
      else:
        yield from keep(all_captions(source, index))
    except BadExample:
      pass  # Prepare counts it, and says why.
