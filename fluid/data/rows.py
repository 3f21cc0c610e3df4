"""Records as rows of a batch: padded, checked, one caption and one view of each.

N rows, L tokens, C channels, T text tokens, E width of features, K captions, V views of
an image: one, or two with its mirror image.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fluid.data.packing import ARRAYS, FEATURES, KINDS, texts, views

# ids [N] -> uint32 [N, 2], uniform; the first decides on the caption of each, the other
# on the view. None: the first caption, the image as it is.
Draw = Callable[[np.ndarray], np.ndarray] | None


@dataclasses.dataclass(frozen=True)
class Layout:
  """What the records of a split hold, as metadata.json says.

  Attributes:
    text_length: T, the longest a text can be.
    words: of the vocabulary; 0 where it is not said.
    features: E; 0 for none.
    captions: K, the most that an example has.
    views: V.
    tokens: kind and shape of every array (None: it does not say).
    vocab: of discrete tokens; 0 where it is not said, or they are continuous.
  """

  text_length: int
  words: int = 0
  features: int = 0
  captions: int = 1
  views: int = 1
  tokens: dict[str, tuple[str, tuple[int, ...]]] | None = None
  vocab: int = 0

  @classmethod
  def of(cls, metadata: dict[str, Any], split: str) -> "Layout":
    """That of a split, by the content of metadata.json."""
    text, spec = metadata["text"], metadata.get("tokens")
    content = metadata["splits"][split]
    tokens: dict[str, tuple[str, tuple[int, ...]]] | None = None
    if spec is not None and spec["kind"] == "discrete":
      tokens = {"tokens": ("i", (spec["length"],))}
    elif spec is not None:
      each = "f", (spec["length"], spec["channels"])
      tokens = {"mean": each, "std": each}
    return cls(
      text_length=text["length"],
      words=text.get("vocab_size", 0),
      features=text.get("features", 0),
      captions=content.get("captions", 1),
      views=2 if content.get("mirrored") else 1,
      tokens=tokens,
      vocab=(spec or {}).get("vocab") or 0,
    )

  @property
  def text_bytes(self) -> int:
    """Of an example's texts, padded."""
    each = self.features * FEATURES.itemsize or 4
    return self.captions * self.text_length * each

  def fault(self, example: dict[str, Any]) -> str:
    """A kind of KINDS that can be told without a look at values; '' for none."""
    if "bad" in example:
      return example["bad"] if example["bad"] in KINDS else "corrupt"
    if len(texts(example)) > self.captions:
      return "text"
    for text in texts(example):
      length = len(text["text_ids"])
      if not 0 < length <= self.text_length:
        return "text"
      if self.features:
        found = text.get("features", np.zeros(0))
        if (found.dtype, found.shape) != (FEATURES, (length, self.features)):
          return "text"
    if len(views(example)) > self.views:
      return "shape"
    # Signed or not is a matter of space.
    kind = lambda a: "i" if a.dtype.kind == "u" else a.dtype.kind
    for view in views(example):
      arrays = {k: (kind(view[k]), view[k].shape) for k in ARRAYS if k in view}
      if self.tokens is not None and arrays != self.tokens:
        return "shape"
    return ""

  def wrong(self, arrays: dict[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """int8 `shape`: 1 + the place in KINDS of what only shows in values; 0: nothing."""
    bad = np.zeros(shape, np.int8)
    for kind, found in self._wrong(arrays):
      bad[found.reshape(*shape, -1).any(2) & (bad == 0)] = 1 + KINDS.index(kind)
    return bad

  def _wrong(self, arrays):
    """(kind, array of bools) of what only shows in the values."""
    outside = lambda name, n: (arrays[name] < 0) | (arrays[name] >= n)
    if self.words and "text" in arrays:
      yield "text", outside("text", self.words)
    if self.vocab and "tokens" in arrays:
      yield "range", outside("tokens", self.vocab)
    for name in ("mean", "std", "features"):
      if name in arrays:
        yield "nonfinite", ~np.isfinite(arrays[name])


class Columns(NamedTuple):
  """Arrays by name: of examples [N], captions [N, K, T] and views [N, V, L, ...].

  Each part has its 'bad': 0, or 1 + the place in KINDS.
  """

  examples: dict[str, np.ndarray]
  texts: dict[str, np.ndarray]
  views: dict[str, np.ndarray]

  @classmethod
  def of(cls, examples: Sequence[dict[str, Any]], layout: Layout) -> "Columns":
    """Those of examples, of which 'bad' ones stay empty."""
    n = len(examples)
    kinds = [1 + KINDS.index(e["bad"]) if "bad" in e else 0 for e in examples]
    own = {"id": np.full(n, -1, np.int32), "counts": np.ones((n, 2), np.uint32)}
    own |= {"bad": np.array(kinds, np.int8)}
    shape = n, layout.captions, layout.text_length
    said: dict[str, np.ndarray] = {"text": np.zeros(shape, np.int32)}
    said |= {"text_mask": np.zeros(shape, bool)}
    if layout.features:
      said["features"] = np.zeros((*shape, layout.features), FEATURES)
    good = np.flatnonzero(own["bad"] == 0).tolist()
    like = {k: np.zeros(s, t) for k, (t, s) in (layout.tokens or {}).items()}
    like |= {k: examples[good[0]][k] for k in ARRAYS if good and k in examples[good[0]]}
    seen = {k: np.zeros((n, layout.views, *a.shape), a.dtype) for k, a in like.items()}
    for row in good:
      example = examples[row]
      own["id"][row], own["counts"][row] = example["id"], _counts(example)
      for k, text in enumerate(texts(example)):
        length = len(text["text_ids"])
        said["text"][row, k, :length] = text["text_ids"]
        said["text_mask"][row, k, :length] = True
        if layout.features:
          said["features"][row, k, :length] = text["features"]
      for v, view in enumerate(views(example)):
        for name in like:
          seen[name][row, v] = view[name]
    said["bad"] = layout.wrong(said, (n, layout.captions))
    seen["bad"] = layout.wrong(seen, (n, layout.views))
    return cls(own, said, seen)

  def draw(self, at, draw: Draw) -> dict[str, np.ndarray]:
    """Rows `at` as of Records.gather, with a caption and a view of each."""
    which = _chosen(draw, self.examples["id"][at], self.examples["counts"][at])
    return self._rows(at, which[:, 0], which[:, 1])

  def _rows(self, at, k, v) -> dict[str, np.ndarray]:
    said = {name: column[at, k] for name, column in self.texts.items()}
    seen = {name: column[at, v] for name, column in self.views.items()}
    kinds = self.examples["bad"][at], said.pop("bad"), seen.pop("bad")
    bad = functools.reduce(lambda a, b: np.where(a, a, b), kinds)
    out = {"id": self.examples["id"][at]} | said | seen
    for name, array in out.items() if bad.any() else ():
      array[bad > 0] = -1 if name == "id" else 0
    return out | {"bad": bad}


def drawn(
  examples: Sequence[dict[str, Any]], layout: Layout, draw: Draw
) -> dict[str, np.ndarray]:
  """Rows of examples, as of Records.gather, of which nothing else is padded."""
  ids = np.array([-1 if "bad" in e else e["id"] for e in examples], np.int64)
  counts = np.array([_counts(e) for e in examples], np.uint32).reshape(-1, 2)
  which = _chosen(draw, ids, counts)
  variants = [_variant(e, *w) for e, w in zip(examples, which.tolist())]
  one = dataclasses.replace(layout, captions=1, views=1)
  return Columns.of(variants, one)._rows(slice(None), 0, 0)


def _counts(example: dict[str, Any]) -> tuple[int, int]:
  """Captions and views of an example."""
  return (1, 1) if "bad" in example else (len(texts(example)), len(views(example)))


def _variant(example: dict[str, Any], k: int, v: int) -> dict[str, Any]:
  """What rows have of an example, with one of its captions and one of its views."""
  if "bad" in example:
    return example
  text, view = texts(example)[k], views(example)[v]
  said = {name: text[name] for name in ("text_ids", "features") if name in text}
  seen = {name: view[name] for name in ARRAYS if name in view}
  return {"id": example["id"]} | said | seen


def _chosen(draw: Draw, ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Which caption and which view [N, 2], of ids [N] and counts [N, 2]."""
  if draw is None or not (counts > 1).any():
    return np.zeros(counts.shape, np.int64)
  return (draw(ids).astype(np.uint64) * counts >> np.uint64(32)).astype(np.int64)
