"""Examples of a source -> content of records.

B images per encoder call, S image side, L tokens, C channels, T text tokens, E width of
features.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np

from fluid import config as config_lib
from fluid.data import BadExample, Source, pipeline
from fluid.parallel import sharding


def read(
  source: Source, prompts, start: int, stop: int, batch: int, workers: int
) -> Iterator[list[dict[str, Any]]]:
  """Lists of up to `batch` examples, read ahead of the encoder."""
  dataset = grain.MapDataset.range(start, stop).map(
    functools.partial(_get, source, prompts)
  )
  dataset = dataset.batch(batch, batch_fn=list).to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  )
  return iter(pipeline.in_processes(dataset, workers))


def _get(source: Source, prompts, index: int) -> dict[str, Any]:
  """An example with its 'prompt', or what is wrong with it: {'id', 'bad', 'why'}."""
  try:
    example = source[index]
    example = example | {"prompt": prompts.prompt(source, index, example)}
  except BadExample as e:
    return _bad(-1, e.kind, config_lib.one_line(e))  # Its id is not known.
  if not example["prompt"].strip():
    return _bad(example["id"], "caption", "the caption is empty")
  return example


def _bad(id_: int, kind: str, why: str) -> dict[str, Any]:
  return {"id": id_, "bad": kind, "why": why, "meta": {}}


def encode(examples, tokenizer, vocabulary, length: int, batch: int) -> list[dict]:
  """Examples -> content of records; images are filled up to the one compiled shape."""
  blank = np.zeros((tokenizer.image_size, tokenizer.image_size, 3), np.uint8)
  images = np.stack([e.get("image", blank) for e in examples])  # [B, S, S, 3]
  images = np.pad(images, [(0, batch - len(images))] + [(0, 0)] * 3)
  images = images.astype(np.float32) / 127.5 - 1
  if tokenizer.spec.kind == "continuous":
    arrays = dict(zip(("mean", "std"), tokenizer.moments(images)))
    dtype: type[np.generic] = np.float16
  else:
    arrays = {"tokens": tokenizer.encode(images)}
    dtype = np.uint16 if tokenizer.spec.vocab <= 2**16 else np.int32
  arrays = {name: np.asarray(a).astype(dtype) for name, a in arrays.items()}
  prompts = [e.get("prompt") or "" for e in examples]
  prompts += [""] * (batch - len(prompts))
  ids, mask = vocabulary.encode(prompts, length, on_unknown="keep", on_long="cut")
  features = _features(vocabulary, ids, mask)
  out = []
  for row, example in enumerate(examples):
    if "bad" in example:
      out.append(example)
      continue
    own = {name: a[row] for name, a in arrays.items()}
    if not all(np.isfinite(a).all() for a in own.values()):
      why = "the tokenizer gives tokens that are not finite: train it again"
      out.append(_bad(example["id"], "tokenizer", why))
      continue
    record = {k: example[k] for k in ("id", "caption", "meta")} | own
    record["text_ids"] = ids[row, mask[row]].tolist()
    if features is not None:
      record["features"] = features[row, mask[row]]
    if mask[row].all() and vocabulary.count(prompts[row]) > length:
      record["cut"] = True
    out.append(record)
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
