"""WordPiece: how BERT cuts prompts into pieces (Devlin et al., arXiv 1810.04805).

Lower case, without accents; signs are words of their own, as are CJK characters; a word
is cut into the longest pieces of a list, from its front.
"""

import os
import pathlib
import unicodedata
from collections.abc import Iterator

from fluid.config import ConfigError
from fluid.text.pieces import PAD, Pieces

_CJK = (
  (0x3400, 0x4DBF),
  (0x4E00, 0x9FFF),
  (0xF900, 0xFAFF),
  (0x20000, 0x2A6DF),
  (0x2A700, 0x2CEAF),
  (0x2F800, 0x2FA1F),
)
_LONGEST = 100  # Letters of a word that pieces are looked for in.


class WordPiece(Pieces):
  """Ids of a vocab.txt, which has a piece a line."""

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)
    try:
      lines = self.path.read_text("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as e:
      raise ConfigError(
        f"no vocabulary {self.path}: put the vocab.txt of the checkpoint there"
      ) from e
    self._pieces = lines
    self._ids = {piece: i for i, piece in enumerate(lines)}
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    missing = [piece for piece in special if piece not in self._ids]
    if missing or self._ids["[PAD]"] != PAD:
      raise ConfigError(
        f"vocabulary {self.path} is not BERT's (it needs {', '.join(special)}, the "
        "first of them as its first line): take the vocab.txt of the checkpoint"
      )
    _, self.UNKNOWN, first, last = (self._ids[piece] for piece in special)
    self.FIRST, self.LAST, self.size = (first,), (last,), len(lines)

  def pieces(self, prompt):
    return [i for word in _words(prompt) for i in self._cut(word)]

  def join(self, ids):
    return " ".join(self._pieces[i] for i in ids).replace(" ##", "")

  def _cut(self, word: str) -> list[int]:
    """Longest pieces from the front; the whole word is unknown where one is missing."""
    out: list[int] = []
    start = 0
    while start < len(word) <= _LONGEST:
      head = "##" if start else ""
      ends = range(len(word), start, -1)
      end = next((e for e in ends if head + word[start:e] in self._ids), None)
      if end is None:
        return [self.UNKNOWN]
      out.append(self._ids[head + word[start:end]])
      start = end
    return out or [self.UNKNOWN]


def _words(text: str) -> Iterator[str]:
  text = unicodedata.normalize("NFD", text.lower())
  word = ""
  for letter in text:
    kind = unicodedata.category(letter)
    if kind == "Mn" or kind.startswith("C") and not letter.isspace() or letter == "�":
      continue  # Accents, and what does not print.
    alone = _is_sign(letter, kind) or any(a <= ord(letter) <= b for a, b in _CJK)
    if word and (alone or letter.isspace()):
      yield word
      word = ""
    if alone:
      yield letter
    elif not letter.isspace():
      word += letter
  if word:
    yield word


def _is_sign(letter: str, kind: str) -> bool:
  """Punctuation, and every other sign of ASCII, such as '$' and '^'."""
  ascii_sign = letter.isascii() and letter.isprintable() and not letter.isalnum()
  return kind.startswith("P") or ascii_sign and not letter.isspace()
