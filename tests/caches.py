"""Caches of shapes, by a tokenizer that is a few lines of arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluid import config, data, prepare
from fluid.text.learned import LearnedConfig
from fluid.tokenizers.base import TokenSpec

TRAIN, VAL, BATCH = 300, 10, 4  # 128 records a shard.


class Tokenizer:
  """Mean colour of the four quarters; `calls` counts batches, `fail_at` stops one."""

  image_size = 16

  def __init__(self, kind="continuous", fail_at=None):
    args = {"channels": 3} if kind == "continuous" else {"vocab": 64}
    self.spec = TokenSpec(kind=kind, length=4, grid=(2, 2), **args)
    self.calls, self.fail_at = 0, fail_at
    self._means = jax.jit(lambda x: x.reshape(-1, 2, 8, 2, 8, 3).mean((2, 4)))

  def moments(self, images):
    assert images.shape == (BATCH, 16, 16, 3) and np.abs(images).max() <= 1
    if self.calls == self.fail_at:
      raise KeyboardInterrupt
    self.calls += 1
    mean = self._means(images).reshape(-1, 4, 3)
    return mean, jnp.full_like(mean, 0.1)

  def encode(self, images):
    mean = self.moments(images)[0].mean(-1)
    return jnp.floor((mean + 1) * 31.5).astype(jnp.int32)


def make_run(cache, text=None, **data):
  data = {"image_size": 16, "num_train": TRAIN, "num_val": VAL, **data}
  text = text or LearnedConfig(vocab_size=120, length=40)
  return config.Run(data=config.Data(cache=str(cache), **data), text=text)


def write(cache, tokenizer=None, **data):
  lines = []
  run = make_run(cache, **data)
  tokenizer = tokenizer or Tokenizer()
  metadata = prepare.prepare(run, tokenizer=tokenizer, batch=BATCH, log=lines.append)
  return metadata, lines


def content(cache):
  return {f.name: f.read_bytes() for f in sorted(cache.iterdir())}


class Rich:
  """A source with all that one can have: captions, sizes, scores, twins, bad ones."""

  def __init__(self, source):
    self.source = source

  def __len__(self):
    return len(self.source)

  def captions(self, index):
    caption = self.source.caption(index)
    return [caption, *(f"{caption} again {k}" for k in range(index % 4))]

  def caption(self, index):
    return self.captions(index)[0]

  def __getitem__(self, index):
    if index == 5:
      raise data.BadExample("image 5 is torn")
    example = self.source[index]
    if index % 10 == 9:
      example["image"] = self.source[index - 7]["image"]
    example["size"] = (20, 8) if index % 11 == 3 else (90, 30 + index % 13)
    example["meta"]["score"] = str(index % 5) if index % 17 != 6 else None
    if index in (9, 49, 99):
      example["meta"]["rare"] = 1
    captions = self.captions(index)
    return example | {"caption": captions[0], "captions": captions}


WANTED = {
  "captions": 3,
  "flips": True,
  "dedupe": True,
  "filter": config.Filter(
    min_side=16, max_aspect=2.8, min_words=4, score="score", min_score=1.0
  ),
  "max_bad": 0.1,
  "num_train": 140,
}


def write_rich(cache, tokenizer=None, **changes):
  with pytest.MonkeyPatch.context() as patch:
    real = prepare.make_source
    patch.setattr(prepare, "make_source", lambda *a: Rich(real(*a)))
    return write(cache, tokenizer, **WANTED | changes)
