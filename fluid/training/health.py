"""What a run bears, and when to stop: damaged data, steps that are not finite."""

import math
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from fluid import config
from fluid.data.packing import BAD
from fluid.data.records import RecordError
from fluid.parallel import distributed


class NonFiniteError(config.ConfigError):
  """Loss or gradient is not a number any more; the last good checkpoint is kept."""

  exit_code = 3


class BadDataError(RecordError):
  """More damaged examples than config key 'data.max_bad' allows."""

  exit_code = 4


class Health:
  """Looks at the values of every step, in order.

  Args:
    workdir: gets nonfinite/step_########.json of each step that is not finite.
    examples: in an epoch. The share of damaged ones is taken of what was seen, or of
      an epoch where that is more.
    damage: batch number -> what is wrong with its records; asked only at the end.
    counts: of the run so far, from its checkpoint.

  Attributes:
    counts: steps and examples skipped so far, by name.
  """

  def __init__(
    self,
    cfg: config.Run,
    workdir,
    *,
    examples: int,
    damage: Callable[[int], list[str]],
    counts: dict[str, int] | None = None,
  ):
    self._cfg, self._folder = cfg, pathlib.Path(workdir) / "nonfinite"
    self._examples, self._damage = examples, damage
    self.counts = dict(counts or {})

  def check(self, step: int, values: dict[str, float], report: dict) -> None:
    """Counts what is wrong with a step.

    Args:
      values: of the step, on the host.
      report: what fluid.training.step adds to them, on the devices.

    Raises:
      NonFiniteError, BadDataError: it is more than the config allows.
    """
    if "bad" in report:
      self._data(step, np.asarray(report["bad"]))
    names = [k for k, v in values.items() if not math.isfinite(v)]
    if names:
      self._nonfinite(step, names[0], values, report)

  def _data(self, step, bad):
    for kind, n in zip(BAD, bad.tolist()):
      if n:
        name = f"data/skipped_{kind}"
        self.counts[name] = self.counts.get(name, 0) + n
    skipped = sum(v for k, v in self.counts.items() if k.startswith("data/skipped"))
    share = self._cfg.data.max_bad
    if bad.any() and skipped > share * max(step * self._cfg.batch, self._examples):
      found = self._damage(step - 1)
      raise BadDataError(
        f"{skipped} damaged examples up to step {step} are more than config key "
        f"'data.max_bad' ({share:g}) allows; the last: {found[-1]}; prepare the data "
        "again, or raise it"
      )

  def _nonfinite(self, step, name, values, report):
    self.counts["train/skipped_steps"] = self.counts.get("train/skipped_steps", 0) + 1
    report = jax.device_get(report)
    loss = report["loss"].tolist()
    ids = report["id"].tolist()
    wrong = [i for i, v in zip(ids, loss) if not math.isfinite(v)]
    file = self._folder / f"step_{step:08d}.json"
    distributed.write_json(
      file,
      {
        "step": step,
        "values": _plain(values),
        "grad_norm": _plain(report["grad_norm"]),
        "examples": wrong,
        "batch": [{"id": i, "loss": _plain(v)} for i, v in zip(ids, loss)],
      },
    )
    limit = self._cfg.optim.max_skipped
    if self.counts["train/skipped_steps"] > limit:
      said = f" (examples {', '.join(map(str, wrong[:5]))})" if wrong else ""
      had = f", after {limit} steps that were skipped" if limit else ""
      raise NonFiniteError(
        f"{name} is {values[name]} at step {step}{said}{had}; {file} has the examples "
        "and the gradients; the last good checkpoint is kept. Lower optim.lr, or skip "
        "such steps with optim.max_skipped"
      )


def _plain(value):
  """JSON has neither NaN nor infinity: they become text."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  return float(value) if math.isfinite(value) else str(float(value))
