"""Cached records to training batches, through grain.

The unit of work is a whole batch: which examples it holds, and what is drawn of each,
follows from its number alone (fluid.data.order), so the iterator's state is one
integer, the same on every process and for any number of them.

B global batch, L tokens, C channels, T text tokens, E width of features.
"""

import functools
import multiprocessing
import os
import threading
from collections.abc import Sequence

import grain
import grain.experimental
import jax
import numpy as np
from absl import flags

from fluid.config import ConfigError, Run
from fluid.config.identity import NONE, identity, said
from fluid.data import mixtures
from fluid.data.order import Order, draws
from fluid.data.records import Records, read_metadata
from fluid.parallel import sharding


class Batches:
  """Batch number -> some rows of that batch (a grain random-access source).

  A damaged record keeps its place as a row whose mask is False, so that no other row
  depends on it.

  Args:
    sample: for training: continuous tokens are sampled, and captions and views drawn by
      (seed, id, epoch). Without, tokens are posterior means of the images as they are,
      captions the first.

  Attributes:
    caches: that `order` counts.
  """

  def __init__(
    self,
    caches: Sequence[Records],
    order: Order,
    *,
    batch: int,
    seed: int,
    sample: bool,
    rows: np.ndarray,
    text_length: int,
  ):
    self.caches, self.order = tuple(caches), order
    self.batch, self.seed, self.sample = batch, seed, sample
    self.text_length = text_length
    self.rows = np.asarray(rows)

  def __len__(self) -> int:
    return -(-len(self.order) // self.batch)

  @property
  def examples(self) -> int:
    """Different ones that are drawn."""
    return sum(self.order.examples)

  def damage(self, number: int) -> list[str]:
    """What is wrong with the records of a whole batch: kind, file and key of each."""
    places = number * self.batch + np.arange(self.batch)
    cache, index, _ = self.order.at(places[places < len(self.order)])
    found = (self.caches[c].damage(i) for c, i in zip(cache.tolist(), index.tolist()))
    return [damage for damage in found if damage]

  def __getitem__(self, number: int) -> dict[str, np.ndarray]:
    places = number * self.batch + self.rows
    real = places < len(self.order)
    cache, *where = self.order.at(np.where(real, places, 0))
    out = self._gather(cache, *where)
    if len(self.caches) > 1:  # An id may be in each of them.
      out["cache"] = cache.astype(np.int32)
    out["bad"] = np.where(real, out["bad"], 0).astype(np.int8)
    mean, std = out.pop("mean", None), out.pop("std", None)
    if mean is None:
      out["tokens"] = out["tokens"].astype(np.int32)
    else:
      out["tokens"] = mean.astype(np.float32)
      if self.sample:
        out["tokens"] += std * self._noise(places, mean[0].size).reshape(mean.shape)
    out["mask"] = real & (out["bad"] == 0)
    return out

  def _gather(self, cache, index, epoch) -> dict[str, np.ndarray]:
    """Rows of whichever cache each is of, with texts of one length."""
    parts = []
    for number, records in enumerate(self.caches):
      own = np.flatnonzero(cache == number)
      if not len(own):
        continue
      draw = functools.partial(draws, self.seed, epochs=epoch[own])
      found = records.gather(index[own], draw if self.sample else None)
      # Of a frozen encoder the net reads features alone.
      found["text"] = _fit(found.pop("features", found["text"]), self.text_length)
      found["text_mask"] = _fit(found["text_mask"], self.text_length)
      parts.append((own, found))
    if len(parts) == 1:
      return parts[0][1]
    places = np.argsort(np.concatenate([own for own, _ in parts]))
    join = lambda name: np.concatenate([found[name] for _, found in parts])
    return {name: join(name)[places] for name in parts[0][1]}

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
  mixture: Sequence[str] = (),
  weights: Sequence[float] = (),
) -> "Loader":
  """Batches of a cache, from any batch on.

  Args:
    batch: B over all processes.
    seed: of the order and of the noise that samples continuous tokens.
    shuffle: draw each epoch in an order of its own.
    epochs: None is a training stream: endless, continuous tokens are sampled as
      mean + std * noise, captions and mirror images are drawn. A number is an
      evaluation: tokens are the mean, captions the first, images as they are, and the
      last batch is filled with rows whose mask is False.
    rows: of each batch, the b rows to yield (sharding.local_rows; None: all).
    text_length: T (None: the cache's). Shorter is refused, it would cut prompts.
    workers: processes that read; 0 reads in a thread.
    memory: caches up to this many bytes are held decoded in memory.
    mixture: of a training stream, caches to draw from in the place of `cache`, as
      `weights` say.

  Raises:
    RecordError: the cache is missing, unfinished or damaged.
  """
  folders = mixture or (cache,)
  caches = [Records(f, split, memory=memory // len(folders)) for f in folders]
  length, longest = max((c.layout.text_length, str(c.cache)) for c in caches)
  if text_length is None:
    text_length = length
  if text_length < length:
    raise ConfigError(
      f"config key 'text.length' ({text_length}) is below the {length} that "
      f"{longest} was prepared with: use that, or prepare another folder"
    )
  batches = Batches(
    caches,
    Order(caches, weights or (1.0,), seed=seed, shuffle=shuffle, epochs=epochs),
    batch=batch,
    seed=seed,
    sample=epochs is None,
    rows=np.arange(batch) if rows is None else rows,
    text_length=text_length,
  )
  return Loader(batches, workers)


def loader(
  run: Run, split: str, mesh: jax.sharding.Mesh | None = None, *, batch: int, **kwargs
) -> "Loader":
  """A split of a run's cache; of each batch, the rows this process's devices hold.

  Without a mesh: all rows. Training draws from data.mixture, if there is one. `kwargs`
  as of make_loader.
  """
  if split == "train":
    _check_kept(run.data)
  if run.data.mixture and split == "train" and kwargs.get("epochs") is None:
    mixtures.check(run.data, run.text.FILE)
    kwargs |= {"mixture": run.data.mixture, "weights": run.data.weights}
  return make_loader(
    run.data.cache,
    split,
    batch=batch,
    seed=run.data.seed,
    rows=None if mesh is None else sharding.local_rows(batch, mesh),
    text_length=run.text.length,
    **kwargs,
  )


def _check_kept(data) -> None:
  """Raises ConfigError for what prepare was not told to keep and training asks for."""
  asked = identity(data, "data.", no=(*NONE, "drawn"))
  kept = ("data.captions", "data.flips", "data.dedupe")
  for folder in data.mixture or (data.cache,):
    made = read_metadata(folder).get("config", {})
    for key, value in asked.items():
      if key.startswith("data.filter.") or key in kept:
        if made.get(key) != value:
          raise ConfigError(
            f"config key '{key}' is {value!r}, but {folder} was prepared with "
            f"{said(made, key)}: prepare another folder, or leave it out"
          )


class Loader:
  """Iterates over batches; the only state is the number of the next one.

  Yields:
    tokens ([b, L] int32 or [b, L, C] float32), text ([b, T] int32, or [b, T, E]
    bfloat16 of a frozen encoder), text_mask [b, T] bool, id [b] int32, bad [b] int8
    (packing.BAD), mask [b] bool (False: a damaged record or a filler).

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
  # Smaller arrays go through the pipe, which takes as long. Grain frees shared memory
  # in a thread that does not end its work, so that Python warns of leaks at the end.
  small = grain.experimental.DatasetOptions(min_shm_size=2**20)
  dataset = grain.experimental.WithOptionsIterDataset(dataset, small)
  options = grain.MultiprocessingOptions(num_workers=workers)
  return dataset.mp_prefetch(options, worker_init_fn=_end_with_parent)


def _end_with_parent(worker: int, workers: int) -> None:
  """Ends a worker whose parent is killed: grain's would wait for good, memory held."""
  del worker, workers
  parent = multiprocessing.parent_process()
  assert parent is not None

  def wait():
    parent.join()
    os._exit(1)

  threading.Thread(target=wait, daemon=True).start()


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
