"""Prompts to padded ids, whatever cuts them into pieces.

B prompts, T text tokens.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from fluid.config import ConfigError

PAD = 0


class PromptError(ConfigError):
  """A prompt that the vocabulary cannot take; the message names prompt and reason."""


def words(text: str) -> list[str]:
  """Lower-case words of a text: runs of letters and digits."""
  return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


class Pieces:
  """What vocabularies share; a subclass has `pieces` and `join`.

  Attributes:
    FIRST, LAST: ids around the pieces of every prompt.
    UNKNOWN: id of what has no piece.
    size: number of ids.
    known: words that prompts may have (None: any that pieces can spell). A small
      vocabulary can spell 'zebra' letter by letter, so pieces alone cannot tell that
      no caption ever had one.
  """

  FIRST: tuple[int, ...] = ()
  LAST: tuple[int, ...] = (1,)
  UNKNOWN: int = 2

  size: int
  known: frozenset[str] | None = None

  def pieces(self, prompt: str) -> list[int]:
    """Ids of a prompt alone."""
    raise NotImplementedError

  def join(self, ids: list[int]) -> str:
    """The inverse, up to what normalisation loses."""
    raise NotImplementedError

  def encode(
    self,
    prompts: Sequence[str],
    length: int,
    *,
    on_unknown: str = "error",
    on_long: str = "error",
  ) -> tuple[np.ndarray, np.ndarray]:
    """Prompts -> padded ids that begin with FIRST and end with LAST.

    Args:
      prompts: B texts; an empty one is its ends alone.
      length: T, with both ends.
      on_unknown: 'error', or 'keep' what the pieces make of words no caption has.
      on_long: 'error', or 'cut' the end of the prompt (LAST stays).

    Returns:
      Ids [B, T] int32 and mask [B, T] bool, True up to and with LAST.

    Raises:
      PromptError: naming the prompt and its length or its unknown words.
    """
    ids = np.full((len(prompts), length), PAD, np.int32)
    mask = np.zeros((len(prompts), length), bool)
    ends = len(self.FIRST) + len(self.LAST)
    for row, prompt in enumerate(prompts):
      pieces = self.pieces(prompt)
      if on_unknown == "error":
        self._refuse_unknown(prompt)
      if len(pieces) + ends > length:
        if on_long == "error":
          raise PromptError(
            f"prompt has {len(pieces) + ends} text tokens with its end, more than "
            f"text.length = {length}: {prompt!r}"
          )
        pieces = pieces[: length - ends]
      ids[row, : len(pieces) + ends] = [*self.FIRST, *pieces, *self.LAST]
      mask[row, : len(pieces) + ends] = True
    return ids, mask

  def count(self, prompt: str) -> int:
    """Text tokens of a prompt, its ends included."""
    return len(self.pieces(prompt)) + len(self.FIRST) + len(self.LAST)

  def decode(self, ids: np.ndarray) -> list[str]:
    """Ids [B, T] -> normalised texts, each up to its LAST."""
    texts = []
    for row in np.asarray(ids).tolist():
      end = self.LAST[-1]
      row = row[: row.index(end)] if end in row else row
      texts.append(self.join([i for i in row if i != PAD and i not in self.FIRST]))
    return texts

  def unknown(self, prompt: str) -> list[str]:
    """Words (or signs such as '%') that no caption had, or with pieces nobody knows."""
    found: list[str] = []
    if self.known is not None:
      found = [w for w in words(prompt) if w not in self.known]
    if not found and self.UNKNOWN in self.pieces(prompt):
      found = [w for w in prompt.split() if self.UNKNOWN in self.pieces(w)] or [prompt]
    return found

  def _refuse_unknown(self, prompt: str) -> None:
    if unknown := self.unknown(prompt):
      names = ", ".join(repr(w) for w in dict.fromkeys(unknown))
      raise PromptError(f"words outside the vocabulary: {names} in prompt {prompt!r}")
