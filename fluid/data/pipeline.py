"""Cached records to training batches, through grain.

The unit of work is a whole batch: which examples it holds follows from its number
alone, so the iterator's state is one integer, the same on every process and for any
number of them.

B global batch, L tokens, C channels, T text tokens, E width of features.
"""

import os

import grain
import jax
import numpy as np
from absl import flags

from fluid.config import ConfigError, Run
from fluid.data.records import Records
from fluid.parallel import sharding


class Batches:
  """Batch number -> some rows of that batch (a grain random-access source).

  Batches run across epochs; each epoch is a new permutation if `shuffle`. A damaged
  record keeps its place as a row whose mask is False, so that no other row depends on
  it. Finite `epochs` (an evaluation): tokens are posterior means, and the last batch is
  filled with rows whose mask is False.
  """

  def __init__(
    self,
    records: Records,
    *,
    batch: int,
    seed: int,
    epochs: int | None,
    shuffle: bool,
    rows: np.ndarray,
    text_length: int,
  ):
    if not len(records):
      raise ConfigError(f"no records in {records.cache}")
    self.records, self.batch, self.seed = records, batch, seed
    self.sample = epochs is None
    self.text_length = text_length
    self.rows = np.asarray(rows)
    order = grain.MapDataset.range(len(records))
    if shuffle:
      order = order.shuffle(seed=seed % 2**32)
    self.order = order.repeat(epochs)

  def __len__(self) -> int:
    return -(-len(self.order) // self.batch)

  def indices(self, number: int, rows) -> np.ndarray:
    """Records that rows of a batch hold; -1 where there are none left."""
    places = number * self.batch + np.asarray(rows)
    total = len(self.order)
    return np.array([self.order[p] if p < total else -1 for p in places.tolist()])

  def damage(self, number: int) -> list[str]:
    """What is wrong with the records of a whole batch: kind, file and key of each."""
    indices = self.indices(number, range(self.batch))
    return [d for i in indices if i >= 0 and (d := self.records.damage(i))]

  def __getitem__(self, number: int) -> dict[str, np.ndarray]:
    indices = self.indices(number, self.rows)
    real = indices >= 0
    out = self.records.gather(np.maximum(indices, 0))  # Padding repeats record 0.
    out["bad"] = np.where(real, out["bad"], 0).astype(np.int8)
    mean, std = out.pop("mean", None), out.pop("std", None)
    if mean is None:
      out["tokens"] = out["tokens"].astype(np.int32)
    else:
      out["tokens"] = mean.astype(np.float32)
      if self.sample:
        noise = self._noise(number * self.batch + self.rows, mean[0].size)
        out["tokens"] += std * noise.reshape(mean.shape)
    # Of a frozen encoder the net reads features alone.
    out["text"] = _fit(out.pop("features", out["text"]), self.text_length)
    out["text_mask"] = _fit(out["text_mask"], self.text_length)
    out["mask"] = real & (out["bad"] == 0)
    return out

  def _noise(self, places, size):
    runs = np.split(places, np.flatnonzero(np.diff(places) != 1) + 1)
    parts = [normal(self.seed, int(run[0]), len(run), size) for run in runs]
    return np.concatenate(parts)


def make_loader(
  cache: str | os.PathLike,
  split: str,
  *,
  batch: int,
  seed: int,
  shuffle: bool,
  epochs: int | None = None,
  rows: np.ndarray | None = None,
  text_length: int | None = None,
  workers: int = 0,
  memory: int = 1 << 30,
) -> "Loader":
  """Batches of a cache, from any batch on.

  Args:
    batch: B over all processes.
    seed: of the order and of the noise that samples continuous tokens.
    shuffle: draw each epoch in an order of its own.
    epochs: None is a training stream: endless, continuous tokens are sampled as
      mean + std * noise. A number is an evaluation: tokens are the mean, and the last
      batch is filled with rows whose mask is False.
    rows: of each batch, the b rows to yield (sharding.local_rows; None: all).
    text_length: T (None: the cache's). Shorter is refused, it would cut prompts.
    workers: processes that read; 0 reads in a thread.
    memory: caches up to this many bytes are held decoded in memory.

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
    rows=np.arange(batch) if rows is None else rows,
    text_length=text_length,
  )
  return Loader(batches, workers)


def loader(
  run: Run, split: str, mesh: jax.sharding.Mesh | None = None, *, batch: int, **kwargs
) -> "Loader":
  """A split of a run's cache; of each batch, the rows this process's devices hold.

  Without a mesh: all rows. `kwargs` as of make_loader.
  """
  return make_loader(
    run.data.cache,
    split,
    batch=batch,
    seed=run.data.seed,
    rows=None if mesh is None else sharding.local_rows(batch, mesh),
    text_length=run.text.length,
    **kwargs,
  )


class Loader:
  """Iterates over batches; the only state is the number of the next one.

  Yields:
    tokens ([b, L] int32 or [b, L, C] float32), text ([b, T] int32, or [b, T, E]
    bfloat16 of a frozen encoder), text_mask [b, T] bool, id [b] int32, bad [b] int8
    (records.BAD), mask [b] bool (False: a damaged record or a filler).

  Attributes:
    batches: the source itself.
  """

  def __init__(self, batches: Batches, workers: int = 0):
    self.batches, self._workers = batches, workers

  def __len__(self):
    return len(self.batches)

  def __iter__(self):
    return self.iterate(0)

  def iterate(self, start: int):
    """From batch `start` on: the same batches for any number of workers."""
    dataset = grain.MapDataset.source(self.batches)[start:].to_iter_dataset(
      grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    )
    return iter(in_processes(dataset, self._workers))


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
  rest = [(0, 0)] * (text.ndim - 2)
  return np.pad(text, [(0, 0), (0, length - text.shape[1]), *rest])
