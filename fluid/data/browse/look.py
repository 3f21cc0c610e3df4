"""What a cache holds, or a source would give: some examples, and sums over many.

N examples, S image side, K codes.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from fluid import config, text, tokenizers
from fluid.config import ConfigError, identity
from fluid.console.progress import Progress
from fluid.data import (
  BadExample,
  Source,
  count,
  examples,
  make_source,
  packing,
  records,
)
from fluid.data.browse.tally import Tally
from fluid.sampling import to_uint8

SCAN = 10_000  # Examples that lengths, sizes, codes and moments are taken from.
PART = 256  # Of these at once.
BATCH = 32  # Images a call of the tokenizer.
CODES = 24  # Most used codes that are decoded.
REASONS = 30
# Fields of meta that say how large an image was.
SIZES = (("original_width", "original_height"), ("width", "height"))


@dataclasses.dataclass
class Example:
  """One example, as far as it is known.

  Attributes:
    index: its place in the split.
    id: -1 where nobody knows.
    caption: of the source, as it was when the cache was made.
    prompt: what the text encoder got of it: the caption, or the name of a class.
    others: further captions that the source has.
    ids: text tokens without padding (None: there is no vocabulary).
    said: the ids, decoded.
    bad, why: kind and reason, where it cannot be used.
    image: uint8 [S, S, 3] of the source.
    again: uint8 [S, S, 3], what the tokenizer makes of its tokens.
  """

  index: int
  id: int = -1
  caption: str = ""
  prompt: str = ""
  others: list[str] = dataclasses.field(default_factory=list)
  ids: list[int] | None = None
  said: str = ""
  bad: str = ""
  why: str = ""
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)
  image: np.ndarray | None = None
  again: np.ndarray | None = None


@dataclasses.dataclass
class Look:
  """What there is to see of a split.

  Attributes:
    total: examples of the split.
    scanned: of these, what was looked at for sums.
    examples: drawn by seed.
    metadata: of the cache; None where none is there.
    vocabulary, tokenizer: None where they are missing, of which `notes` say why.
    lengths: text tokens of each scanned caption, before any is cut where the source
      is asked, after where a cache is.
    sizes: [N, 2] width and height, of those that say it.
    rejects: kind -> how many of the scanned examples.
    reasons: of some of these.
    tokens: sums over them.
    top: most used codes, and an image of nothing but each: uint8 [K, S, S, 3].
    notes: what could not be shown, and why.
  """

  total: int
  scanned: int = 0
  examples: list[Example] = dataclasses.field(default_factory=list)
  metadata: dict[str, Any] | None = None
  vocabulary: Any = None
  tokenizer: Any = None
  lengths: list[int] = dataclasses.field(default_factory=list)
  sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
  rejects: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  reasons: list[str] = dataclasses.field(default_factory=list)
  tokens: Tally = dataclasses.field(default_factory=Tally)
  top: tuple[np.ndarray, np.ndarray] | None = None
  notes: list[str] = dataclasses.field(default_factory=list)

  @property
  def used(self) -> int:
    """Of the scanned, those not rejected, which sums are over."""
    return self.scanned - self.rejects.total()


def look(
  run: config.Run, split: str, n: int, seed: int, log: Callable[[str], None] = print
) -> Look:
  """Looks at a prepared cache, or at the source where there is none.

  Args:
    run: its sections data, text and tokenizer are used.
    split: of the data.
    n: examples to show.
    seed: of which.
    log: receives lines of progress.

  Raises:
    ConfigError: there is neither cache nor source.
  """
  notes: list[str] = []
  cache = _open(notes, lambda: records.Records(run.data.cache, split, memory=0))
  if cache is None and not run.data.cache:
    notes[:] = ["No cache is named (config key 'data.cache'): shown is the source."]
  elif cache is None:
    notes[0] = f"Shown is the source, as there is no cache: {notes[0]}"
  source = _open(notes, lambda: make_source(run.data, split))
  if cache is None and source is None:
    raise ConfigError(notes[-1])
  total = count(run.data, split, source) if cache is None else len(cache)
  found = Look(total, notes=notes)
  found.vocabulary = _open(notes, lambda: text.load(run.text, run.data.cache or "."))
  made_from = {} if cache is None else cache.metadata.get("config", {})
  weights = made_from.get("tokenizer.weights", "")  # The one that made the tokens.
  found.tokenizer = _open(notes, lambda: tokenizers.load(run.tokenizer.path, weights))
  drawn = _draw(found.total, n, seed)
  if cache is None:
    _of_source(run, source, drawn, seed, found, log)
  else:
    found.metadata = cache.metadata
    there, now = identity.stored(made_from), identity.of_cache(run)
    other = [k for k in identity.differences(there, now) if k in there and k in now]
    if other:
      notes.append(
        f"The cache was made of another config ({', '.join(other)} differ): pixels "
        "beside its tokens may be of other images."
      )
    _of_cache(run, cache, source, drawn, seed, found, log)
  for example in found.examples:
    if found.vocabulary is not None and example.ids:
      example.said = found.vocabulary.decode(np.array([example.ids]))[0]
  codes = found.tokens.codes
  if codes is not None and found.tokenizer is not None:
    top = np.argsort(-codes, kind="stable")[:CODES]
    top = top[codes[top] > 0]
    tokens = np.repeat(top[:, None], found.tokenizer.spec.length, 1).astype(np.int32)
    if len(top):
      found.top = top, _decoded(found.tokenizer, tokens)
  return found


def _open(notes: list[str], make: Callable[[], Any]) -> Any:
  """What `make` gives; None where it cannot, of which a note is taken."""
  try:
    return make()
  except (ConfigError, OSError) as e:
    notes.append(config.one_line(e))
    return None


def _draw(total: int, n: int, seed: int) -> np.ndarray:
  """n of so many, in order: the same for a seed."""
  drawn = np.random.default_rng(seed).choice(total, min(n, total), replace=False)
  return np.sort(drawn)


def _of_cache(run, cache, source, drawn, seed, found: Look, log) -> None:
  pixels = dict(zip(drawn.tolist(), _read(run, source, drawn)))
  arrays = []
  for index in drawn.tolist():
    here = pixels.get(index, {})
    if why := _wrong(cache, index):
      found.examples.append(
        Example(index, bad=why.split()[0], why=why, image=here.get("image"))
      )
      continue
    record = cache[index]
    example = Example(
      index,
      record["id"],
      record["caption"],
      ids=record["text_ids"],
      meta=record["meta"],
    )
    if here.get("id") == record["id"]:
      example.image = here["image"]
      # What the source says now may be something else than what was prepared.
      same = here["caption"] == record["caption"]
      example.prompt = here["prompt"] if same else record["caption"]
      example.others = _others(here)
    elif source is not None:
      example.why = here.get("why", "the source has another example in this place")
    found.examples.append(example)
    arrays.append(record.get("tokens", record.get("mean")))
  if found.tokenizer is not None and arrays:
    _decode(found.tokenizer, np.stack(arrays), found.examples)
  scan = _draw(found.total, SCAN, seed)
  vocab = cache.metadata.get("tokens", {}).get("vocab", 0)
  progress = Progress("browse", len(scan), "records", log)
  for start in range(0, len(scan), PART):
    part = scan[start : start + PART]
    rows = cache.gather(part)
    sound, usable = rows["bad"] == 0, _usable(cache, part)
    good, again = sound & usable, sound & ~usable
    found.rejects.update(packing.KINDS[k - 1] for k in rows["bad"].tolist() if k)
    found.rejects.update([packing.DUPLICATE] * int(again.sum()))
    for index in part[~good].tolist()[: REASONS - len(found.reasons)]:
      found.reasons.append(_wrong(cache, index))
    found.lengths += rows["text_mask"][good].sum(1).tolist()
    found.tokens.add(
      {k: v[good] for k, v in rows.items() if k in packing.ARRAYS}, vocab
    )
    # Meta is read one by one: of a few thousand, and only where it says something.
    if start < SCAN // 5 and (found.sizes or not start):
      for index in part[good].tolist():
        _size(cache[index]["meta"], found)
    progress.add(len(part))
  found.scanned = len(scan)


def _usable(cache: records.Records, indices) -> np.ndarray:
  """Which of them [N] training may draw: not what was left out."""
  usable = cache.usable
  return np.ones(len(indices), bool) if usable is None else np.isin(indices, usable)


def _wrong(cache: records.Records, index: int) -> str:
  """Kind and reason of what is rejected; '' for what is not."""
  if (why := cache.damage(index)) or _usable(cache, [index])[0]:
    return why
  return f"{packing.DUPLICATE} in example {index}: one before it has the same image"


def _others(here: dict[str, Any]) -> list[str]:
  return [c for c in here.get("captions", ()) if c != here["caption"]]


def _of_source(run, source, drawn, seed, found: Look, log) -> None:
  progress = Progress("browse", len(drawn), "examples", log)
  for index, here in zip(drawn.tolist(), _read(run, source, drawn)):
    progress.add()
    if "bad" in here:
      found.rejects[here["bad"]] += 1
      found.reasons.append(f"example {index}: {here['why']}")
      found.examples.append(
        Example(index, here["id"], bad=here["bad"], why=here["why"])
      )
      continue
    example = Example(
      index, here["id"], here["caption"], here["prompt"], meta=here["meta"]
    )
    example.image, example.others = here["image"], _others(here)
    if found.vocabulary is not None:
      ids, mask = found.vocabulary.encode(
        [here["prompt"]], run.text.length, on_unknown="keep", on_long="cut"
      )
      example.ids = ids[0, mask[0]].tolist()
    if "size" in here:  # What filters look at.
      found.sizes.append(tuple(here["size"]))
    else:
      _size(here["meta"], found)
    found.examples.append(example)
  found.scanned = len(drawn)
  found.reasons = found.reasons[:REASONS]
  images = [e.image for e in found.examples if e.image is not None]
  tokenizer = found.tokenizer
  if tokenizer is not None and tokenizer.image_size != run.data.image_size:
    found.notes.append(
      f"The tokenizer is for {tokenizer.image_size} pixels, config key "
      f"'data.image_size' is {run.data.image_size}: nothing is encoded."
    )
    found.tokenizer = None
  elif tokenizer is not None and images:
    pixels = np.stack(images).astype(np.float32) / 127.5 - 1
    each = min(BATCH, len(images))
    if tokenizer.spec.kind == "continuous":
      moments = tokenizers.in_batches(tokenizer.moments, pixels, each)
      rows = dict(zip(("mean", "std"), moments))
    else:
      rows = {"tokens": tokenizers.in_batches(tokenizer.encode, pixels, each)}
    _decode(tokenizer, next(iter(rows.values())), found.examples)
    found.tokens.add(rows, tokenizer.spec.vocab)
  # Captions cost no image where a source has them alone.
  alone = hasattr(source, "caption")
  for index in _draw(found.total, SCAN, seed).tolist() if alone else ():
    try:
      prompt = run.text.prompt(source, index)
    except BadExample:
      continue
    found.lengths.append(_length(found.vocabulary, prompt))
  if not alone:
    found.lengths = [_length(found.vocabulary, e.prompt) for e in found.examples]


def _length(vocabulary: Any, prompt: str) -> int:
  return len(prompt.split()) if vocabulary is None else vocabulary.count(prompt)


class _Drawn:
  """Some of a source's examples, as a source."""

  def __init__(self, source: Source, indices: np.ndarray):
    self._source, self._indices = source, indices

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> dict[str, Any]:
    return self._source[int(self._indices[index])]

  def label(self, index: int) -> str:
    """Class of one of them."""
    label = getattr(self._source, "label", None)
    if label is None:
      raise ConfigError(
        "config key 'text.kind' is 'classes', but the data source has no classes; "
        "choose another source or text encoder"
      )
    return label(int(self._indices[index]))


def _read(run: config.Run, source: Source | None, indices: np.ndarray) -> list[dict]:
  """What fluid.prepare reads of these examples; nothing without a source."""
  if source is None:
    return []
  inside = indices[indices < len(source)]
  some = _Drawn(source, inside)
  parts = examples.read(some, run.text, 0, len(some), BATCH, run.data.workers, run.data)
  return [example for part in parts for example in part]


def _decode(tokenizer, tokens: np.ndarray, shown: list[Example]) -> None:
  """Puts the tokenizer's images of tokens [N, ...] into the examples that are good."""
  kind = np.int32 if tokenizer.spec.kind == "discrete" else np.float32
  images = iter(_decoded(tokenizer, tokens.astype(kind)))
  for example in shown:
    if not example.bad:
      example.again = next(images)


def _decoded(tokenizer, tokens: np.ndarray) -> np.ndarray:
  each = min(BATCH, len(tokens))
  return to_uint8(tokenizers.in_batches(tokenizer.decode, tokens, each))


def _size(meta: dict[str, Any], found: Look) -> None:
  for keys in SIZES:
    size = tuple(meta.get(key) for key in keys)
    if all(isinstance(side, int) and side > 0 for side in size):
      found.sizes.append(size)  # type: ignore
      return
