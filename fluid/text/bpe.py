"""Byte-level BPE: how CLIP cuts prompts into pieces (Radford et al., arXiv 2103.00020).

Text is lower case and in NFC. Runs of letters, single digits, runs of signs and English
endings ('s, 'll) are words; a word is its bytes in UTF-8, each written as a printable
character and the last with END behind it, and pairs of them are merged in the order of
a list (Sennrich et al., arXiv 1508.07909). So every text has ids: nothing is unknown.

The ids are those of transformers' CLIPTokenizer, with two exceptions: the names of the
two ends, written in a prompt, are text like any other, and a sigma at the end of a word
becomes lower case as in Greek. OpenAI's own tokenizer also replaces HTML's entities.

B prompts, T text tokens.
"""

import functools
import gzip
import json
import pathlib
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from fluid.config import ConfigError
from fluid.text.pieces import PromptError

END = "</w>"
FIRST, LAST = "<|startoftext|>", "<|endoftext|>"
# Files that a vocabulary comes in: transformers' two, its one, OpenAI's.
FILES = (
  ("vocab.json", "merges.txt"),
  ("tokenizer.json",),
  ("bpe_simple_vocab_16e6.txt.gz",),
)

# Bytes that print stand for themselves; the others, in order, for what follows 255.
_PLAIN = (*range(33, 127), *range(161, 173), *range(174, 256))
_BYTES = _PLAIN + tuple(sorted(set(range(256)) - set(_PLAIN)))
_LETTERS = "".join(map(chr, _PLAIN)) + "".join(map(chr, range(256, 324)))
_LETTER = dict(zip(_BYTES, _LETTERS))

_ENDING = re.compile("'(?:s|t|re|ve|m|ll|d)")

Merges = list[tuple[str, str]]


class BPE:
  """The vocabulary in a folder.

  Attributes:
    first, last: ids of the ends of every prompt.
    size: number of ids.
  """

  def __init__(self, folder, size: int = 0):
    """Reads the first of FILES that is there.

    Args:
      folder: that has it.
      size: number of ids, which OpenAI's file does not say.

    Raises:
      ConfigError: it is missing, damaged, no CLIP's, or of another size.
    """
    ids, merges, path = _read(pathlib.Path(folder), size)
    alphabet = (*_LETTERS, *(letter + END for letter in _LETTERS), FIRST, LAST)
    lacking = [piece for piece in alphabet if piece not in ids]
    if lacking or size and len(ids) != size:
      found = f"lacks {lacking[0]!r}" if lacking else f"has {len(ids)} ids, not {size}"
      raise ConfigError(f"{path} is not this CLIP's vocabulary (it {found}): {_REMEDY}")
    self.first, self.last, self.size = ids[FIRST], ids[LAST], len(ids)
    self._ids = ids
    self._ranks = {pair: i for i, pair in enumerate(merges)}
    self._cut = functools.lru_cache(1 << 16)(self._merge)

  def pieces(self, prompt: str) -> list[int]:
    """Ids of a prompt alone."""
    text = unicodedata.normalize("NFC", prompt).lower()
    return [i for word in _words(text) for i in self._cut(word)]

  def encode(
    self, prompts: Sequence[str], length: int, *, on_long: str = "error"
  ) -> np.ndarray:
    """Prompts -> ids [B, T] int32, filled up with `last`, whose first is the end.

    Args:
      prompts: B texts.
      length: T, with both ends.
      on_long: 'error', or 'cut' the end of the prompt.

    Raises:
      PromptError: naming the prompt and its length.
    """
    out = np.full((len(prompts), length), self.last, np.int32)
    for row, prompt in zip(out, prompts):
      pieces = self.pieces(prompt)
      if len(pieces) > length - 2 and on_long == "error":
        raise PromptError(
          f"prompt has {len(pieces) + 2} text tokens with its ends, more than the "
          f"{length} of this encoder: {prompt!r}"
        )
      row[0], pieces = self.first, pieces[: length - 2]
      row[1 : len(pieces) + 1] = pieces
    return out

  def _merge(self, word: str) -> list[int]:
    parts = [_LETTER[byte] for byte in word.encode("utf-8", "replace")]
    parts[-1] += END
    while len(parts) > 1:
      known = [pair for pair in zip(parts, parts[1:]) if pair in self._ranks]
      if not known:
        break
      best = min(known, key=self._ranks.__getitem__)
      merged: list[str] = []
      while parts:
        take = 2 if tuple(parts[:2]) == best else 1
        merged.append("".join(parts[:take]))
        parts = parts[take:]
      parts = merged
    return [self._ids[part] for part in parts]


_REMEDY = "put the vocabulary of the checkpoint beside its weights"


def _read(folder: pathlib.Path, size: int) -> tuple[dict[str, int], Merges, str]:
  """Piece -> id, the merges in their order, and what was read."""
  files = next((f for f in FILES if all((folder / n).is_file() for n in f)), None)
  if files is None:
    names = " or ".join(" with ".join(f) for f in FILES)
    raise ConfigError(f"no vocabulary in {folder} ({names}): {_REMEDY}")
  paths = [folder / name for name in files]
  try:
    if len(files) == 2:
      ids = json.loads(paths[0].read_text("utf-8"))
      return ids, _pairs(paths[1].read_text("utf-8").split("\n")[1:]), str(paths[0])
    if paths[0].suffix == ".json":
      content = json.loads(paths[0].read_text("utf-8"))
      model, added = content["model"], content.get("added_tokens", [])
      ids = model["vocab"] | {token["content"]: token["id"] for token in added}
      return ids, _pairs(model["merges"]), str(paths[0])
    lines = gzip.decompress(paths[0].read_bytes()).decode("utf-8").split("\n")
    # The file goes on behind what CLIP was trained with.
    merges = _pairs(lines[1 : size - 2 * len(_LETTERS) - 2 + 1])
    pieces = [*_LETTERS, *(letter + END for letter in _LETTERS)]
    pieces += ["".join(pair) for pair in merges] + [FIRST, LAST]
    return {piece: i for i, piece in enumerate(pieces)}, merges, str(paths[0])
  except (OSError, EOFError, ValueError, KeyError, TypeError) as e:
    raise ConfigError(f"{paths[0]} is damaged ({e!r:.80}): download it again") from e


def _pairs(lines: Sequence) -> Merges:
  """['a b', ...], or the pairs themselves."""
  split = (line.split() if isinstance(line, str) else line for line in lines)
  return [(pair[0], pair[1]) for pair in split if pair]


def _words(text: str) -> Iterator[str]:
  start = 0
  while start < len(text):
    if ending := _ENDING.match(text, start):
      end, kind = ending.end(), ""
    else:
      kind, end = _kind(text[start]), start + 1
      while kind != "N" and end < len(text) and _kind(text[end]) == kind:
        end += 1
    if kind != "Z":
      yield text[start:end]
    start = end


def _kind(letter: str) -> str:
  """'L' of a letter, 'N' of a digit, 'Z' of a space, '' of any other sign."""
  kind = unicodedata.category(letter)[0]
  # Some control characters part words; str.isspace takes four more, which do not.
  return "Z" if letter in "\t\n\v\f\r\x85" else kind if kind in "LNZ" else ""
