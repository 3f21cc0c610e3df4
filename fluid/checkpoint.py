"""Checkpoints of (state, data iterator), and which config a workdir belongs to.

Nothing else imports orbax. A step holds four items, so that a reader takes what it
needs: params, ema, optimizer (with the step) and data (JSON, the same for any number of
processes). A step is there completely or not at all: Orbax renames it when it is done.
"""

import json
import os
import pathlib
import sys

import jax
import orbax.checkpoint as ocp

from fluid import config, optim
from fluid.state import TrainState


class CheckpointError(config.ConfigError):
  """A checkpoint that is missing, damaged, or of another model."""


def _manager(folder, **options) -> ocp.CheckpointManager:
  arrays = ("params", "ema", "optimizer")
  return ocp.CheckpointManager(
    folder,
    options=ocp.CheckpointManagerOptions(**options),
    item_handlers={k: ocp.StandardCheckpointHandler() for k in arrays}
    | {"data": ocp.JsonCheckpointHandler()},
  )


class Checkpoints:
  """The checkpoints of one run: asynchronous save, restore onto any mesh.

  Attributes:
    folder: WORKDIR/checkpoints.
  """

  def __init__(self, workdir, *, keep: int = 3):
    self.folder = pathlib.Path(workdir).absolute() / "checkpoints"
    self._manager = _manager(
      self.folder, max_to_keep=keep, cleanup_tmp_directories=True
    )

  def save(self, state: TrainState, data: dict, step: int) -> None:
    """Copies the state to the host and returns; files are written meanwhile.

    Args:
      data: state of the data iterator before the batch of the next step (JSON).
      step: updates done.
    """
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        ema=ocp.args.StandardSave(state.ema),
        optimizer=ocp.args.StandardSave(_optimizer(state)),
        data=ocp.args.JsonSave(data),
      ),
    )

  def restore(self, abstract: TrainState) -> tuple[TrainState, dict] | None:
    """Newest step that can be read -> state and data iterator state; None if no step.

    A step that cannot be read, where an older one can, is moved to
    WORKDIR/checkpoints-damaged with a warning.

    Args:
      abstract: `state.abstract_state` on the mesh to restore onto.

    Raises:
      CheckpointError: there are steps but none can be read, or their arrays have other
        shapes than `abstract`.
    """
    damaged = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        found = self._restore(step, abstract)
      except CheckpointError:
        raise
      except Exception as e:  # Orbax and tensorstore raise whatever they meet.
        damaged.append((step, " ".join(str(e).split())[:200]))
        continue
      self._set_aside(damaged)
      return found
    if damaged:
      step, why = damaged[0]
      raise CheckpointError(
        f"no checkpoint in {self.folder} can be read; step {step}: {why}"
      )
    return None

  def _restore(self, step, abstract):
    _check_shapes(_metadata(self._manager, step, "params"), abstract.params, step)
    found = self._manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(abstract.params),
        ema=ocp.args.StandardRestore(abstract.ema),
        optimizer=ocp.args.StandardRestore(_optimizer(abstract)),
        data=ocp.args.JsonRestore(),
      ),
    )
    state = TrainState(params=found.params, ema=found.ema, **found.optimizer)
    return state, found.data

  def _set_aside(self, damaged):
    for step, why in damaged:
      aside = self.folder.with_name("checkpoints-damaged") / str(step)
      print(
        f"warning: checkpoint of step {step} cannot be read and moves to {aside}; "
        f"an older one is used ({why})",
        file=sys.stderr,
      )
      if jax.process_index() == 0:
        aside.parent.mkdir(exist_ok=True)
        os.rename(self.folder / str(step), aside)
    if damaged:
      self._manager.reload()

  def wait(self) -> None:
    """Returns when everything saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then stops the writing threads."""
    self._manager.close()


def _optimizer(state):
  return {"step": state.step, "opt_state": state.opt_state}


def _metadata(manager, step, item):
  found = manager.item_metadata(step)[item]
  if found is None:
    raise ValueError(f"item {item} is missing")
  return found


def _check_shapes(saved, wanted, step):
  saved, wanted = optim.paths(saved), optim.paths(wanted)
  for name in sorted(saved.keys() | wanted.keys()):
    a, b = (tuple(t[name].shape) if name in t else None for t in (saved, wanted))
    if a != b:
      raise CheckpointError(
        f"checkpoint of step {step} does not fit this model: '{name}' is "
        f"{a or 'missing'} there and {b or 'missing'} here"
      )


def restore_params(
  workdir, which: str = "ema", step: int | None = None, mesh=None, like=None
):
  """Only the parameters of a checkpoint, for sampling and evaluation.

  Args:
    which: 'ema' or 'raw'.
    step: a saved step; None: the newest.
    mesh: devices to put the arrays on, replicated; None: the default device.
    like: tree of ShapeDtypeStruct with shardings, instead of `mesh`.

  Returns:
    params, step.

  Raises:
    CheckpointError: no such folder or step, or it cannot be read.
  """
  item = {"ema": "ema", "raw": "params"}.get(which)
  if item is None:
    raise CheckpointError(f"weights '{which}' are unknown; choose from ema, raw")
  folder = pathlib.Path(workdir).absolute() / "checkpoints"
  if not folder.is_dir():
    raise CheckpointError(f"no checkpoint in {workdir}: {folder} does not exist")
  with _manager(folder, create=False) as manager:
    steps = sorted(manager.all_steps())
    if not steps or (step is not None and step not in steps):
      wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
      there = ", ".join(map(str, steps)) or "none"
      raise CheckpointError(f"no {wanted} in {folder} (steps there: {there})")
    step = steps[-1] if step is None else step
    try:
      saved = _metadata(manager, step, item)
      if like is None:
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        if mesh is not None:
          place = jax.NamedSharding(mesh, jax.P())
        like = jax.tree.map(
          lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place), dict(saved)
        )
      else:
        _check_shapes(saved, like, step)
      args = ocp.args.Composite(**{item: ocp.args.StandardRestore(like)})
      return manager.restore(step, args=args)[item], step
    except CheckpointError:
      raise
    except Exception as e:
      raise CheckpointError(
        f"checkpoint of step {step} in {folder} cannot be read: "
        f"{' '.join(str(e).split())[:200]}"
      ) from e


# What may differ between a workdir's config and the run that continues it: nothing
# here changes what the parameters are or what the next update computes.
_FREE = {
    'steps', 'log_every', 'eval_every', 'checkpoint_every', 'keep', 'mesh', 'evals',
    'sample', 'profile_steps', 'tensorboard', 'accum', 'data.cache', 'data.workers',
    'tokenizer.path', 'text.path', 'model.remat', 'model.scan', 'model.attention',
}  # fmt: skip


def check_workdir(workdir, run: config.Run) -> None:
  """Refuses a workdir whose config.json belongs to another run.

  Raises:
    CheckpointError: naming the first keys that differ and both values.
  """
  path = pathlib.Path(workdir) / "config.json"
  mine = json.loads(json.dumps(config.to_dict(run)))
  if path.exists():
    try:
      theirs = json.loads(path.read_text())
    except ValueError as e:
      raise CheckpointError(f"{path} is damaged ({e}); restore or remove it") from e
    a, b = _flat(theirs), _flat(mine)
    differ = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
    if differ:
      named = ", ".join(
        f"{k} ({a.get(k)!r} there, {b.get(k)!r} here)" for k in differ[:3]
      )
      more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
      raise CheckpointError(
        f"workdir {workdir} belongs to another config: {named}{more}; "
        "choose another --workdir"
      )
  elif (path.parent / "checkpoints").exists():
    raise CheckpointError(f"workdir {workdir} has checkpoints but no config.json")


def write_json(path: pathlib.Path, value) -> None:
  """Replaces the file in one step; only process 0 writes."""
  if jax.process_index() == 0:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(scratch, path)


def _flat(tree: dict, prefix: str = "") -> dict:
  out = {}
  for key, value in tree.items():
    name = prefix + key
    if name in _FREE:
      continue
    # source_args is one value: its keys belong to the data source.
    if isinstance(value, dict) and name != "data.source_args":
      out |= _flat(value, name + ".")
    else:
      out[name] = value
  return out
