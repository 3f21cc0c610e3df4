"""A SentencePiece vocabulary whose embeddings the net learns."""

import dataclasses

from fluid.data import BadExample, caption
from fluid.text.base import TextConfig
from fluid.text.tokenization import Vocabulary, train_vocabulary, words_path


@dataclasses.dataclass(frozen=True)
class LearnedConfig(TextConfig):
  """Captions as pieces of a SentencePiece model."""

  kind = "learned"
  FILE = "text.model"

  def files(self, path):
    return [words_path(path), path]

  def prompt(self, source, index, example=None):
    return example["caption"] if example else caption(source, index)

  def fit(self, source, total, path):
    train_vocabulary(_captions(source, total), path, self.vocab_size)

  def open(self, path):
    return Vocabulary(path)


def _captions(source, total: int):
  for index in range(total):
    try:
      yield caption(source, index)
    except BadExample:
      pass  # Prepare counts it, and says why.
