"""A SentencePiece vocabulary whose embeddings the net learns."""

import dataclasses

from fluid.data import caption
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
    captions = (caption(source, i) for i in range(total))
    train_vocabulary(captions, path, self.vocab_size)

  def open(self, path):
    return Vocabulary(path)
