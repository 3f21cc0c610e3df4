"""Cached records to training batches, through grain.

The unit of work is a whole batch: which examples it holds follows from its number
alone, so the iterator's state is one integer, the same on every process and for any
number of them.

B global batch, L tokens, C channels, T text tokens.
"""

import os

import grain
import numpy as np
from absl import flags

from fluid.config import ConfigError
from fluid.data.records import Records


class Batches:
  """Batch number -> this shard's rows of that batch (a grain random-access source).

  Shard s of k takes rows [s B/k, (s+1) B/k) of every batch. Batches run across epochs;
  each epoch is a new permutation if `shuffle`. Finite `epochs` (an evaluation): tokens
  are posterior means, and the last batch is filled with rows whose mask is False.
  """

  def __init__(
    self,
    records: Records,
    *,
    batch: int,
    seed: int,
    epochs: int | None,
    shuffle: bool,
    shard: tuple[int, int],
    text_length: int,
  ):
    index, count = shard
    if not 0 <= index < count or batch % count:
      raise ConfigError(
        f"config key 'batch' ({batch}) must be a multiple of the {count} processes "
        "that read it"
      )
    if not len(records):
      raise ConfigError(f"no records in {records.cache}")
    self.records, self.batch, self.seed = records, batch, seed
    self.sample = epochs is None
    self.text_length = text_length
    self.rows = range(index * batch // count, (index + 1) * batch // count)
    order = grain.MapDataset.range(len(records))
    if shuffle:
      order = order.shuffle(seed=seed % 2**32)
    self.order = order.repeat(epochs)

  def __len__(self) -> int:
    return -(-len(self.order) // self.batch)

  def __getitem__(self, number: int) -> dict[str, np.ndarray]:
    first = number * self.batch + self.rows.start
    real = max(0, min(len(self.rows), len(self.order) - first))
    indices = np.zeros(len(self.rows), np.int64)  # Padding repeats record 0.
    indices[:real] = [self.order[first + i] for i in range(real)]
    out = self.records.gather(indices)
    mean, std = out.pop("mean", None), out.pop("std", None)
    if mean is None:
      out["tokens"] = out["tokens"].astype(np.int32)
    else:
      out["tokens"] = mean.astype(np.float32)
      if self.sample:
        noise = normal(self.seed, first, len(indices), mean[0].size)
        out["tokens"] += std * noise.reshape(mean.shape)
    out["text"] = _fit(out["text"], self.text_length)
    out["text_mask"] = _fit(out["text_mask"], self.text_length)
    out["mask"] = np.arange(len(indices)) < real
    return out


def make_loader(
  cache: str | os.PathLike,
  split: str,
  *,
  batch: int,
  seed: int,
  shuffle: bool,
  epochs: int | None = None,
  shard_index: int = 0,
  shard_count: int = 1,
  text_length: int | None = None,
  workers: int = 0,
  memory: int = 1 << 30,
) -> grain.IterDataset:
  """Batches of a cache; iter() of the result has grain's get_state and set_state.

  Args:
    batch: B over all shards; a batch yielded here has B / shard_count rows.
    seed: of the order and of the noise that samples continuous tokens.
    shuffle: draw each epoch in an order of its own.
    epochs: None is a training stream: endless, continuous tokens are sampled as
      mean + std * noise. A number is an evaluation: tokens are the mean, and the last
      batch is filled with rows whose mask is False.
    text_length: T (None: the cache's). Shorter is refused, it would cut prompts.
    workers: processes that read; 0 reads in a thread. Their iterator state differs in
      form, so a run keeps its number of workers.
    memory: caches up to this many bytes are held decoded in memory.

  Yields:
    tokens ([b, L] int32 or [b, L, C] float32), text [b, T] int32, text_mask [b, T]
    bool, id [b] int32, mask [b] bool (False: a filler row).

  Raises:
    RecordError: the cache is missing, unfinished or damaged.
  """
  records = Records(cache, split, memory=memory)
  if text_length is None:
    text_length = records.text_length
  if text_length < records.text_length:
    raise ConfigError(
      f"config key 'text.length' ({text_length}) is below the {records.text_length} "
      f"that {cache} was prepared with: use that, or prepare another folder"
    )
  batches = Batches(
    records,
    batch=batch,
    seed=seed,
    epochs=epochs,
    shuffle=shuffle,
    shard=(shard_index, shard_count),
    text_length=text_length,
  )
  dataset = grain.MapDataset.source(batches).to_iter_dataset(
    grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
  )
  return in_processes(dataset, workers)


def in_processes(dataset: grain.IterDataset, workers: int) -> grain.IterDataset:
  """Moves reading to worker processes, if there are to be any."""
  if not workers:
    return dataset
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain reads flags; a notebook has parsed none.
  return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))


def normal(seed: int, first: int, rows: int, size: int) -> np.ndarray:
  """Standard normal [rows, size] float32 for rows first, first + 1, ... of a stream.

  Row r owns a fixed range of Philox counters, and Box-Muller takes a fixed number of
  bits per value, so a row does not depend on which rows are drawn with it.
  """
  pairs = -(-size // 2)
  blocks = -(-pairs // 4)  # A counter gives four words of 64 bits, one word a pair.
  bits = np.random.Philox(key=seed % 2**64).advance(first * blocks)
  words = bits.random_raw(rows * blocks * 4).reshape(rows, blocks * 4)[:, :pairs]
  halves = np.ascontiguousarray(words).view(np.uint32).reshape(rows, pairs, 2)
  # 24 bits fit float32; the half step keeps the logarithm finite.
  uniform = ((halves >> 8).astype(np.float32) + 0.5) * np.float32(2**-24)
  radius = np.sqrt(-2 * np.log(uniform[..., 0]))
  angle = np.float32(2 * np.pi) * uniform[..., 1]
  out = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
  return out[:, :size]


def _fit(text: np.ndarray, length: int) -> np.ndarray:
  return np.pad(text, [(0, 0), (0, length - text.shape[1])])
