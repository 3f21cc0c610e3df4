"""Prompts to ids with a SentencePiece vocabulary, and back.

Captions of few words get a piece for each word; others get unigram pieces, which can
spell any word of known letters.

Ids follow T5: 0 pads, 1 ends the prompt, 2 is unknown. A public T5 file whose `<s>`
shifts every id by one is refused here rather than trained on.

B prompts, T text tokens.
"""

import io
import os
import pathlib
from collections.abc import Iterable

import sentencepiece

from fluid import files
from fluid.config import ConfigError
from fluid.text.pieces import PAD, Pieces, words

EOS, UNK = 1, 2
# Sentences the model is fitted to; the list of known words uses all of them.
MAX_SENTENCES = 100_000


def words_path(path: str | os.PathLike) -> pathlib.Path:
  """File beside a SentencePiece model that lists the words of its captions."""
  return pathlib.Path(path).with_suffix(".words.txt")


class Vocabulary(Pieces):
  """Ids of a SentencePiece model file; `known` are words of the captions it is of."""

  LAST, UNKNOWN = (EOS,), UNK
  MISSING = "run python -m fluid.prepare, or set config key 'text.path'"
  REMEDY = "remove it and run python -m fluid.prepare again"

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    if self.path.is_dir():
      raise ConfigError(
        f"config key 'text.path' is {self.path}, a folder: name the file in it, such "
        "as text.model"
      )
    if not self.path.is_file():
      raise ConfigError(f"no text vocabulary {self.path}: {self.MISSING}")
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
    except (RuntimeError, OSError) as e:
      raise ConfigError(f"text vocabulary {self.path} is damaged: {self.REMEDY}") from e
    found = (self._model.pad_id(), self._model.eos_id(), self._model.unk_id())
    if found != (PAD, EOS, UNK) or self._model.bos_id() >= 0:
      raise ConfigError(
        f"text vocabulary {self.path} has pad, eos, unk = {found} and bos = "
        f"{self._model.bos_id()}; T5's order 0, 1, 2 without bos is needed (an extra "
        "<s> shifts every id: take the file that T5's authors published)"
      )
    self.size = self._model.vocab_size()
    if words_path(path).is_file():
      self.known = frozenset(words_path(path).read_text("utf-8").split("\n"))

  def pieces(self, prompt):
    return self._model.encode(prompt)

  def join(self, ids):
    return self._model.decode(ids)

  def has(self, piece: str) -> bool:
    """Whether a piece has an id of its own."""
    return self._model.piece_to_id(piece) != UNK


def train_vocabulary(
  captions: Iterable[str], path: str | os.PathLike, size: int
) -> Vocabulary:
  """Fits a SentencePiece model and writes it with its list of known words.

  Whole words if all fit into `size`, the upper limit; else unigram pieces. The same
  captions in the same order give the same bytes.
  """
  known: set[str] = set()
  whole: set[str] = set()  # With the signs that SentencePiece keeps on a word.
  sample: list[str] = []
  for caption in captions:
    known.update(words(caption))
    if len(whole) <= size:
      whole.update(caption.casefold().split())
    if len(sample) < MAX_SENTENCES:
      sample.append(caption)
  if not known:
    raise ConfigError("no captions with words to train a text vocabulary on")
  fits = len(whole) + 3 <= size
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sample + sorted(whole) if fits else sample),
      model_writer=model,
      model_type="word" if fits else "unigram",
      use_all_vocab=fits,
      vocab_size=size,
      hard_vocab_limit=False,
      character_coverage=1.0,
      normalization_rule_name="nmt_nfkc_cf",
      pad_id=PAD,
      eos_id=EOS,
      unk_id=UNK,
      bos_id=-1,
      num_threads=1,  # More make the fit depend on their timing.
      minloglevel=2,
    )
  except RuntimeError as e:
    raise ConfigError(
      f"config key 'text.vocab_size' = {size} is too small for the characters of the "
      f"captions: {str(e).splitlines()[-1]}"
    ) from e
  # The model comes last: where it exists, its words do too.
  files.write_text(words_path(path), "\n".join(sorted(known)))
  files.write_bytes(path, model.getvalue())
  return Vocabulary(path)
