"""Batches on the mesh, one ahead of the loop, drawn in a thread."""

import concurrent.futures

from fluid.data.pipeline import Loader
from fluid.parallel import sharding


class Feed:
  """Gives batch `start`, `start + 1`, ... of a loader.

  Step t takes batch t, so no state of an iterator has to be kept. The loop calls `next`
  and, once the step is dispatched, `draw`: before that, waking the thread could cost
  the loop its turn on a core that they share.
  """

  def __init__(self, loader: Loader, mesh, start: int = 0):
    self._iterator, self._mesh = loader.iterate(start), mesh
    self._total = loader.batches.batch
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._ahead: concurrent.futures.Future | None = None
    self.draw()

  def _draw(self):
    return sharding.shard_batch(next(self._iterator), self._mesh, self._total)

  def draw(self) -> None:
    """Lets the thread draw the next batch, unless it has been told to."""
    if self._ahead is None:
      self._ahead = self._pool.submit(self._draw)

  def next(self) -> dict:
    """Global arrays of the next batch."""
    self.draw()
    assert self._ahead is not None
    ahead, self._ahead = self._ahead, None
    return ahead.result()

  def close(self) -> None:
    self._pool.shutdown(cancel_futures=True)
