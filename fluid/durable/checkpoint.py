"""Checkpoints of (state, data iterator): saved in the background, restored anywhere.

Nothing else imports orbax. A step holds four items, so that a reader takes what it
needs: params, ema, optimizer (with the step) and data (JSON, the same for any number of
processes, with the checksums of all arrays). A step is there completely or not at all:
Orbax renames it when it is done, or in a bucket (gs://) adds an object that says so;
what damage does to it later, the checksums tell.
"""

import contextlib
import copy
import json
import logging
import os
import pathlib
import sys
import time
import zlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath  # Orbax's own paths.

from fluid import config, files, remote, trees
from fluid.durable import integrity
from fluid.errors import REQUEUE, passing
from fluid.parallel import distributed, parts
from fluid.training.state import TrainState

# Orbax raises the first error of its parallel writes; asyncio repeats all the others at
# exit, after what we say of it.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)

ARRAYS = ("params", "ema", "optimizer")


class CheckpointError(config.ConfigError):
  """A checkpoint that is missing, damaged, or of another model."""


class UnsavedError(CheckpointError):
  """A checkpoint that could not be written, by a disk that may be well again later."""

  exit_code = REQUEUE
  at_once = True  # Threads of Orbax may still try, and would have the last word.


class UnreadError(CheckpointError):
  """A checkpoint that cannot be read now: its disk is away, or its bucket."""

  exit_code = REQUEUE


class _Manager(ocp.CheckpointManager):
  def reached_preemption(self, step):
    # parallel.preemption asks jax this, with its own count; Orbax would ask with the
    # step, from its thread as well, and processes would miss the point they agreed on.
    return False


def _manager(folder, **options) -> _Manager:
  return _Manager(
    folder,
    options=ocp.CheckpointManagerOptions(**options),
    item_handlers={k: ocp.StandardCheckpointHandler() for k in ARRAYS}
    | {"data": ocp.JsonCheckpointHandler()},
  )


class Checkpoints:
  """The checkpoints of one run: asynchronous save, restore onto any mesh.

  Attributes:
    folder: WORKDIR/checkpoints.
    last: the step of the newest save of this process; 0 before the first.
    seconds: that the newest complete save took, from its call on; 0 before.
  """

  def __init__(self, workdir, *, keep: int = 3):
    self.folder = _absolute(workdir) / "checkpoints"
    self._ledger = self.folder.parent / "saved.json"
    self.last, self.seconds, self._began = 0, 0.0, 0.0
    self._manager = _manager(
      self.folder,
      max_to_keep=keep,
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._complete),
    )

  def save(self, state: TrainState, data: dict, step: int) -> None:
    """Copies the state to the host and returns; files are written meanwhile.

    Args:
      data: what to go on with beside arrays, first of all where the data are (JSON).
      step: updates done.

    Raises:
      UnsavedError: the save before this one, or the start of this one, failed.
    """
    began = time.monotonic()
    items = _items(state)
    sums = {k: integrity.checksums(v) for k, v in items.items()}
    # Written when its folder is there, by when the run may have counted on.
    sealed = _seal({"data": copy.deepcopy(data), "sums": sums})
    with self._written():
      self._manager.wait_until_finished()
      self.last, self._began = step, began
      # Of an object store, where nothing moves; below a step Orbax saves none.
      for damaged in sorted(s for s in _marked(self.folder) if s >= step):
        if damaged in self._manager.all_steps():
          self._manager.delete(damaged)
        if jax.process_index() == 0:
          _mark(self.folder, damaged).unlink()
      done = self._manager.save(
        step,
        args=ocp.args.Composite(
          **{k: ocp.args.StandardSave(v) for k, v in items.items()},
          data=ocp.args.JsonSave(sealed),
        ),
      )
      if not done:
        raise ValueError("there is a newer step")

  def check(self) -> None:
    """Raises UnsavedError where a save in the background failed. Does not wait."""
    with self._written():
      self._manager.check_for_errors()

  def wait(self) -> None:
    """Returns when all is on disk; raises UnsavedError where that failed."""
    with self._written():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then stops the writing threads."""
    with self._written():
      self._manager.close()

  @property
  def busy(self) -> bool:
    """Whether a save is being written."""
    return self._manager.is_saving_in_progress()

  def _complete(self):
    self.seconds = time.monotonic() - self._began
    distributed.write_json(self._ledger, {"step": self.last})

  @contextlib.contextmanager
  def _written(self):
    try:
      yield
    except Exception as e:
      there = self._known()
      kept = f"that of step {there} is the last good one" if there else "there is none"
      raise UnsavedError(
        f"checkpoint of step {self.last} cannot be written to {self.folder} "
        f"({_why(e)}); {kept}: free space or repair the folder, then start again"
      ) from e

  def _known(self) -> int:
    """The last step known to be complete."""
    try:
      return int(json.loads(self._ledger.read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
      return 0

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """Newest good step -> state and the data saved with it; None if none was saved.

    A step that is damaged, where an older one is good, is moved to
    WORKDIR/checkpoints-damaged with a warning. In a bucket nothing moves: it is named
    there, passed over, and deleted with the next save of that or an older step.

    Args:
      abstract: `state.abstract_state` on the mesh to restore onto.

    Raises:
      CheckpointError: there are or were steps but none is good, or their arrays have
        other shapes than `abstract`. UnreadError: the newest cannot be read now.
    """
    damaged: list[tuple[int, str]] = []
    steps = set(self._manager.all_steps()) - _marked(self.folder)
    for step in sorted(steps, reverse=True):
      found, why, away = None, "another process cannot read it", False
      try:
        found = _restore(self.folder / str(step), abstract)
      except CheckpointError:
        raise
      except Exception as e:  # Orbax and tensorstore raise whatever they meet.
        why, away = _why(e), passing(e)
      if distributed.everyone(found is not None):
        self._set_aside(damaged)
        if self._known() > step and not damaged:
          _warn(
            f"checkpoint of step {self._known()} was saved, but is gone; step {step} "
            "is used"
          )
        return found
      if not distributed.everyone(not away):  # It is not damaged for that.
        raise UnreadError(
          f"checkpoint of step {step} in {self.folder} cannot be read now ({why}); the "
          "same command goes on from it, or from the one before where it is moved away"
        )
      damaged.append((step, why))
    if damaged:
      step, why = damaged[0]
      raise CheckpointError(
        f"no checkpoint in {self.folder} can be read; step {step}: {why}"
      )
    if self._known():
      raise CheckpointError(
        f"checkpoint of step {self._known()} was saved in {self.folder}, but is gone: "
        "put it back, or start again in another --workdir"
      )
    return None

  def _set_aside(self, damaged):
    for step, why in damaged:
      if remote.is_url(self.folder):
        mark = _mark(self.folder, step)
        _warn(
          f"checkpoint of step {step} cannot be read, as {mark} now says; an older one "
          f"is used ({why})"
        )
        if jax.process_index() == 0:
          files.write_json(mark, {"step": step, "why": why})
        continue
      aside = self.folder.with_name("checkpoints-damaged") / str(step)
      while aside.exists():
        aside = aside.with_name(aside.name + "_")
      _warn(
        f"checkpoint of step {step} cannot be read and moves to {aside}; "
        f"an older one is used ({why})"
      )
      if jax.process_index() == 0:
        aside.parent.mkdir(exist_ok=True)
        os.rename(self.folder / str(step), aside)
    if damaged and distributed.everyone(True):  # Process 0 has moved them.
      self._manager.reload()


def _absolute(folder):
  if remote.is_url(folder):
    return epath.Path(str(folder))
  return pathlib.Path(folder).absolute()


def _mark(folder, step: int):
  """Of an object store: the object that says that a step is damaged."""
  return folder.parent / "checkpoints-damaged" / f"{step}.json"


def _marked(folder) -> set[int]:
  """Steps of an object store that are known to be damaged."""
  marks = folder.parent / "checkpoints-damaged"
  if not remote.is_url(folder) or not marks.exists():
    return set()
  return {int(mark.stem) for mark in marks.iterdir() if mark.suffix == ".json"}


def _items(state):
  optimizer = {"step": state.step, "opt_state": state.opt_state}
  return {"params": state.params, "ema": state.ema, "optimizer": optimizer}


def _restore(folder, abstract):
  found, data = _read(folder, _items(abstract), "params")
  return TrainState(**found | found.pop("optimizer")), data


def _read(folder, wanted: dict[str, Any], shown: str, *, partial=False):
  """Items of a step as `wanted` says, held against their checksums; and its data.

  A process that cannot read says so first: what comes then is done by all together.
  What is of another model is refused by the shapes of the item `shown`.
  """
  error: Exception | None = None
  sealed, found = {}, {}
  try:
    sealed = _unseal(folder)
    check_shapes(_metadata(folder, shown), wanted[shown], folder)
    for item, like in wanted.items():
      found[item] = _parts(folder / item, like, partial)
  except Exception as e:  # Orbax and tensorstore raise whatever they meet.
    error = e
  places = [x.sharding for x in jax.tree.leaves(wanted)]
  alone = all(place.is_fully_addressable for place in places)
  if not (error is None if alone else distributed.everyone(error is None)):
    raise error or ValueError("another process cannot read it")
  found = parts.joined(found, wanted)
  for item in wanted:
    for name, value in integrity.checksums(found[item]).items():
      if value != sealed["sums"][item][name]:
        raise ValueError(f"'{name}' in {item} differs from its checksum")
  return found, sealed["data"]


def _parts(folder, like, partial: bool):
  """Arrays like `like`, of which devices that hold the same read a part each.

  The handler is called directly: a manager's restore waits for all processes, and hangs
  where one of them fails.
  """
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parts.parted(x)), like
  )
  return ocp.PyTreeCheckpointHandler().restore(
    epath.Path(folder),
    args=ocp.args.PyTreeRestore(
      item=like,
      restore_args=ocp.checkpoint_utils.construct_restore_args(like),
      partial_restore=partial,
    ),
  )


def _seal(content: dict) -> dict:
  return content | {"crc32": zlib.crc32(json.dumps(content, sort_keys=True).encode())}


def _unseal(folder: pathlib.Path) -> dict:
  """The JSON of a step: 'data' and 'sums'."""
  sealed = ocp.JsonCheckpointHandler().restore(epath.Path(folder / "data"))
  content = {k: sealed[k] for k in ("data", "sums")}
  if sealed != _seal(content):
    raise ValueError("its item data differs from its checksum")
  return content


def _metadata(folder, item):
  return ocp.PyTreeCheckpointHandler().metadata(epath.Path(folder / item)).tree


def _warn(text):
  if jax.process_index() == 0:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _why(error):
  text = config.one_line(error)  # What the system said comes last.
  return text if len(text) < 260 else f"{text[:100]} ... {text[-150:]}"


def check_shapes(saved, wanted, folder):
  """Refuses arrays that are missing or have other shapes; `wanted` may be a part."""
  saved, wanted = trees.paths(saved), trees.paths(wanted)
  for name in sorted(wanted):
    a, b = (tuple(t[name].shape) if name in t else None for t in (saved, wanted))
    if a != b:
      raise CheckpointError(
        f"checkpoint {folder} does not fit this model: '{name}' is "
        f"{a or 'missing'} there and {b} here"
      )


def _open(workdir, which: str, step: int | None) -> tuple[pathlib.Path, str]:
  """-> (folder of a step, item of the weights `which`)."""
  item = {"ema": "ema", "raw": "params"}.get(which)
  if item is None:
    raise CheckpointError(f"weights '{which}' are unknown; choose from ema, raw")
  folder = _absolute(workdir) / "checkpoints"
  if not folder.is_dir():
    raise CheckpointError(f"no checkpoint in {workdir}: {folder} does not exist")
  steps = sorted(set(ocp.utils.checkpoint_steps(folder)) - _marked(folder))
  if not steps or (step is not None and step not in steps):
    wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
    there = ", ".join(map(str, steps)) or "none"
    raise CheckpointError(f"no {wanted} in {folder} (steps there: {there})")
  return folder / str(steps[-1] if step is None else step), item


@contextlib.contextmanager
def _reading(folder):
  try:
    yield
  except CheckpointError:
    raise
  except Exception as e:
    kind = UnreadError if passing(e) else CheckpointError
    raise kind(
      f"checkpoint of step {folder.name} in {folder.parent} cannot be read: {_why(e)}"
    ) from e


def restore_params(
  workdir, which: str = "ema", step: int | None = None, *, like=None, part=False
):
  """Only the parameters of a checkpoint, or a part of them.

  Args:
    which: 'ema' or 'raw'.
    step: a saved step; None: the newest.
    like: tree of ShapeDtypeStruct with shardings, to lay them out over a mesh; None:
      all on the default device.
    part: `like` need not have all of them.

  Returns:
    params, step.

  Raises:
    CheckpointError: no such folder or step, or it cannot be read.
  """
  folder, item = _open(workdir, which, step)
  with _reading(folder):
    if like is None:
      saved = _metadata(folder, item)
      place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
      like = jax.tree.map(
        lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place), dict(saved)
      )
    found, _ = _read(folder, {item: like}, item, partial=part)
    return found[item], int(folder.name)
