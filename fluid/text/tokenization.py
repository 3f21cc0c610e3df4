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
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from fluid import files
from fluid.config import ConfigError

PAD, EOS, UNK = 0, 1, 2
# Sentences the model is fitted to; the list of known words uses all of them.
MAX_SENTENCES = 100_000


class PromptError(ConfigError):
  """A prompt that the vocabulary cannot take; the message names prompt and reason."""


def words(text: str) -> list[str]:
  """Lower-case words of a text: runs of letters and digits."""
  return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def words_path(path: str | os.PathLike) -> pathlib.Path:
  """File beside a SentencePiece model that lists the words of its captions."""
  return pathlib.Path(path).with_suffix(".words.txt")


class Vocabulary:
  """Ids of a SentencePiece model file.

  Attributes:
    size: number of ids.
    known: words of the captions it was trained on (None: any word will do). A small
      vocabulary can spell 'zebra' letter by letter, so pieces alone cannot tell that
      no caption ever had one.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    if not self.path.is_file():
      raise ConfigError(
        f"no text vocabulary {self.path}: run python -m fluid.prepare, or set "
        "config key 'text.path'"
      )
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
    except (RuntimeError, OSError) as e:
      raise ConfigError(
        f"text vocabulary {self.path} is damaged: remove it and run "
        "python -m fluid.prepare again"
      ) from e
    found = (self._model.pad_id(), self._model.eos_id(), self._model.unk_id())
    if found != (PAD, EOS, UNK) or self._model.bos_id() >= 0:
      raise ConfigError(
        f"text vocabulary {self.path} has pad, eos, unk = {found} and bos = "
        f"{self._model.bos_id()}; T5's order 0, 1, 2 without bos is needed"
      )
    self.size: int = self._model.vocab_size()
    self.known: frozenset[str] | None = None
    if words_path(path).is_file():
      self.known = frozenset(words_path(path).read_text("utf-8").split("\n"))

  def encode(
    self,
    prompts: Sequence[str],
    length: int,
    *,
    on_unknown: str = "error",
    on_long: str = "error",
  ) -> tuple[np.ndarray, np.ndarray]:
    """Prompts -> padded ids that end with EOS.

    Args:
      prompts: B texts; an empty one is its EOS alone.
      length: T, EOS included.
      on_unknown: 'error', or 'keep' what the pieces make of words no caption has.
      on_long: 'error', or 'cut' the end of the prompt (EOS stays).

    Returns:
      Ids [B, T] int32 and mask [B, T] bool, True up to and with EOS.

    Raises:
      PromptError: naming the prompt and its length or its unknown words.
    """
    ids = np.full((len(prompts), length), PAD, np.int32)
    mask = np.zeros((len(prompts), length), bool)
    for row, prompt in enumerate(prompts):
      pieces = self._model.encode(prompt)
      if on_unknown == "error":
        self._refuse_unknown(prompt, pieces)
      if len(pieces) + 1 > length:
        if on_long == "error":
          raise PromptError(
            f"prompt has {len(pieces) + 1} text tokens with its end, more than "
            f"text.length = {length}: {prompt!r}"
          )
        pieces = pieces[: length - 1]
      ids[row, : len(pieces) + 1] = [*pieces, EOS]
      mask[row, : len(pieces) + 1] = True
    return ids, mask

  def count(self, prompt: str) -> int:
    """Text tokens of a prompt, EOS included."""
    return len(self._model.encode(prompt)) + 1

  def decode(self, ids: np.ndarray) -> list[str]:
    """Ids [B, T] -> normalised texts, each up to its EOS."""
    texts = []
    for row in np.asarray(ids).tolist():
      row = row[: row.index(EOS)] if EOS in row else row
      texts.append(self._model.decode([i for i in row if i != PAD]))
    return texts

  def _refuse_unknown(self, prompt: str, pieces: list[int]) -> None:
    unknown = []
    if self.known is not None:
      unknown = [w for w in words(prompt) if w not in self.known]
    if not unknown and UNK in pieces:
      # Whichever words (or signs such as '%') hold the pieces nobody knows.
      unknown = [w for w in prompt.split() if UNK in self._model.encode(w)]
      unknown = unknown or [prompt]
    if unknown:
      names = ", ".join(repr(w) for w in dict.fromkeys(unknown))
      raise PromptError(f"words outside the vocabulary: {names} in prompt {prompt!r}")


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
