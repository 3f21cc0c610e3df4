"""Examples of a source -> content of records.

B images per encoder call, S image side, L tokens, C channels, T text tokens, E width of
features.
"""

import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

import grain
import jax
import numpy as np

from fluid import config as config_lib
from fluid.data import BadExample, Source, kept_captions, pipeline, within, words_fit
from fluid.data.packing import FILTERED
from fluid.parallel import sharding

# What a caption says where its image's mirror image would be another.
_HANDED = re.compile(r"\b(?:left|right)", re.IGNORECASE)
_PLAIN = config_lib.Data()  # One caption of each image, and all of them.


def read(
  source: Source,
  prompts,
  start: int,
  stop: int,
  batch: int,
  workers: int,
  data: config_lib.Data = _PLAIN,
) -> Iterator[list[dict[str, Any]]]:
  """Lists of up to `batch` examples for the encoder, read ahead of it.

  What a filter leaves out stands among them and is not counted.

  Args:
    data: its fields captions, flips, dedupe and filter are used.
  """
  dataset = grain.MapDataset.range(start, stop).map(
    functools.partial(_get, source, prompts, data)
  )
  dataset = dataset.batch(batch, batch_fn=list).to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  )
  found = pipeline.in_processes(dataset, workers)
  return _batches(itertools.chain.from_iterable(found), batch)


def _batches(examples: Iterable[dict[str, Any]], batch: int):
  held: list[dict[str, Any]] = []
  taken = 0
  for example in examples:
    held.append(example)
    taken += example.get("bad") not in FILTERED
    if taken == batch:
      yield held
      held, taken = [], 0
  if held:
    yield held


def _get(source: Source, prompts, data: config_lib.Data, index: int) -> dict[str, Any]:
  """An example with its 'prompt', or what is wrong with it: {'id', 'bad', 'why'}.

  Further captions are in 'more', with a 'prompt' each; 'mirror' says that the mirror
  image is wanted, 'hash' is of the image.
  """
  try:
    example = source[index]
    captions = [example["caption"], *filter(str.strip, example.get("captions", ()))]
    fit = [c for c in captions if words_fit(c, data.filter)]
    found: dict[str, str] = {}  # Class names are one prompt for all captions.
    for caption in kept_captions(captions, data):
      prompt = prompts.prompt(source, index, example | {"caption": caption})
      found.setdefault(prompt, caption)
  except BadExample as e:
    return _bad(-1, e.kind, config_lib.one_line(e))  # Its id is not known.
  if not all(prompt.strip() for prompt in found):
    return _bad(example["id"], "caption", "the caption is empty")
  if reason := _left_out(example, fit, data.filter):
    return _bad(example["id"], *reason)
  first, *more = ({"caption": c, "prompt": p} for p, c in found.items())
  out = example | first | {"more": more}
  if data.flips and not example.get("handed"):
    out["mirror"] = not any(_HANDED.search(prompt) for prompt in found)
  if data.dedupe:
    digest = hashlib.blake2b(example["image"].tobytes(), digest_size=8).digest()
    out["hash"] = int.from_bytes(digest, "big")
  return out


def _left_out(
  example: dict[str, Any], captions: list[str], wanted: config_lib.Filter
) -> tuple[str, str] | None:
  """Entry of FILTERED and what was found, of an example that a filter leaves out.

  Args:
    captions: that fit.
  """
  height, width = example["image"].shape[:2]
  width, height = example.get("size", (width, height))
  if min(width, height) < wanted.min_side:
    return "side", f"it has {width} x {height} pixels"
  if not within(width / height, wanted.min_aspect, wanted.max_aspect):
    return "aspect", f"it has {width} x {height} pixels"
  if not captions:
    return "words", f"no caption has as many; the first is {example['caption']!r:.80}"
  if wanted.score:
    found = example["meta"].get(wanted.score)
    try:
      enough = float(found) >= wanted.min_score
    except (TypeError, ValueError):
      enough = False
    if not enough:
      return "score", f"its '{wanted.score}' is {found!r:.40}"
  return None


def _bad(id_: int, kind: str, why: str) -> dict[str, Any]:
  # It may name a file in letters that are no UTF-8, which a record can not.
  why = why.encode("utf-8", "backslashreplace").decode()
  return {"id": id_, "bad": kind, "why": why, "meta": {}}


def encode(examples, tokenizer, vocabulary, length: int, batch: int) -> list[dict]:
  """Examples -> content of records; images are filled up to the one compiled shape."""
  own = [e for e in examples if e.get("bad") not in FILTERED]
  if not own:
    return [_bad(e["id"], e["bad"], e["why"]) for e in examples]
  blank = np.zeros((tokenizer.image_size, tokenizer.image_size, 3), np.uint8)
  images = np.stack([e.get("image", blank) for e in own])  # [B, S, S, 3]
  images = np.pad(images, [(0, batch - len(images))] + [(0, 0)] * 3)
  images = images.astype(np.float32) / 127.5 - 1
  arrays = _arrays(tokenizer, images)
  mirror = any(e.get("mirror") for e in own)
  mirrored = _arrays(tokenizer, images[:, :, ::-1]) if mirror else {}
  # Those of a batch first, as where each image has one; their others in batches too.
  prompts = [e.get("prompt", "") for e in own]
  prompts += [""] * (batch - len(prompts))
  prompts += [more["prompt"] for e in own for more in e.get("more", ())]
  texts = _texts(vocabulary, prompts, length, batch)
  firsts, others = iter(texts[:batch]), iter(texts[batch:])
  rows, out = iter(range(batch)), []
  for example in examples:
    if example.get("bad") in FILTERED:
      out.append(_bad(example["id"], example["bad"], example["why"]))
      continue
    row, text = next(rows), next(firsts)
    more = [{"caption": m["caption"]} | next(others) for m in example.get("more", ())]
    if "bad" in example:  # Worker processes hand its keys on in another order.
      out.append(_bad(example["id"], example["bad"], example["why"]))
      continue
    views = [{name: a[row] for name, a in arrays.items()}]
    if example.get("mirror"):
      views.append({name: a[row] for name, a in mirrored.items()})
    if not all(np.isfinite(a).all() for view in views for a in view.values()):
      why = "the tokenizer gives tokens that are not finite: train it again"
      out.append(_bad(example["id"], "tokenizer", why))
      continue
    record = {k: example[k] for k in ("id", "caption", "meta")} | views[0] | text
    if more:
      record["more"] = more
    if views[1:]:
      record["mirror"] = views[1]
    if "hash" in example:
      record["hash"] = example["hash"]
    out.append(record)
  return out


def _arrays(tokenizer, images: np.ndarray) -> dict[str, np.ndarray]:
  """What a record has of images [B, S, S, 3] in [-1, 1], by name."""
  if tokenizer.spec.kind == "continuous":
    arrays = dict(zip(("mean", "std"), tokenizer.moments(images)))
    dtype: type[np.generic] = np.float16
  else:
    arrays = {"tokens": tokenizer.encode(images)}
    dtype = np.uint16 if tokenizer.spec.vocab <= 2**16 else np.int32
  return {name: np.asarray(a).astype(dtype) for name, a in arrays.items()}


def _texts(vocabulary, prompts: list[str], length: int, batch: int) -> list[dict]:
  """What a record has of each prompt: text_ids, features, and 'cut' if it is."""
  out = []
  for start in range(0, len(prompts), batch):
    some = prompts[start : start + batch]
    ids, mask = vocabulary.encode(
      some + [""] * (batch - len(some)), length, on_unknown="keep", on_long="cut"
    )
    features = _features(vocabulary, ids, mask)
    for row, prompt in enumerate(some):
      text: dict[str, Any] = {"text_ids": ids[row, mask[row]].tolist()}
      if features is not None:
        text["features"] = features[row, mask[row]]
      if mask[row].all() and vocabulary.count(prompt) > length:
        text["cut"] = True
      out.append(text)
  return out


def _features(vocabulary, ids, mask) -> np.ndarray | None:
  """[B, T, E] of a frozen text encoder, over all devices of this process."""
  if not hasattr(vocabulary, "features"):
    return None
  devices = jax.local_devices()
  shards = math.gcd(len(devices), vocabulary.network.width)
  mesh = sharding.make_mesh(config_lib.Mesh(fsdp=shards), devices)
  with jax.set_mesh(mesh):
    return vocabulary.features(ids, mask)
