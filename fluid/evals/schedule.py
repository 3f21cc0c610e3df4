"""The evaluators of a run in training: which are due, and which are done."""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fluid import config
from fluid.training.state import TrainState


class _Stopped(Exception):
  """Told to stop between two batches of an evaluator."""


class Evaluations:
  """The evaluators of a run and when they are due.

  Args:
    make_loader: (split, batch=, shuffle=, epochs=) -> the split, to be passed over.
    tokenizer: gives that of the run (None: it names none).
    done: (step, name) of those whose results are there already.
    stop: whether to stop, asked before each batch (all processes ask equally often).
  """

  def __init__(
    self,
    net,
    run: config.Run,
    mesh,
    workdir,
    make_loader,
    tokenizer: Callable[[], Any],
    *,
    done: Iterable[tuple[int, str]] = (),
    stop: Callable[[], bool] = lambda: False,
  ):
    self._run, self._stop, self._done = run, stop, set(done)
    self._evaluators = {}
    if not run.evals:
      return
    from fluid import evals, text

    def loader(split, batch):
      return make_loader(split, batch=batch, shuffle=False, epochs=1)

    def before():
      # What evaluators look at as they are made belongs to no step, and ends by itself.
      if self._evaluators and stop():
        raise _Stopped

    vocabulary = text.load(run.text, workdir, run.data.cache)
    context = evals.EvalContext(run, tokenizer(), vocabulary, mesh, workdir, loader)
    context.track = functools.partial(context.track, before=before)
    self._evaluators = evals.make(net, context)

  def due(self, step: int) -> list[str]:
    """Names of those that are due at a step and not done."""

    def now(name):
      own = self._run.evals[name].every
      every = self._run.eval_every if own is None else own
      return due(step, every, self._run.steps) and (step, name) not in self._done

    return [name for name in self._evaluators if now(name)]

  def run(self, state: TrainState, step: int) -> Iterator[dict]:
    """Yields the results of each that is due; ends early where it has to stop.

    Results are those of the EMA and, if asked, of the raw weights ('raw/...'). 'evals'
    names the evaluator: its line in metrics.jsonl says that it is done.
    """
    for name in self.due(step):
      evaluator = self._evaluators[name]
      try:
        if self._stop():
          return
        found = dict(evaluator.run(state.ema, step))
        if self._run.evals[name].raw:
          raw = evaluator.run(state.params, step, "raw")
          found |= {f"raw/{k}": v for k, v in raw}
      except _Stopped:
        return
      self._done.add((step, name))
      yield {"evals": name} | found


def due(step: int, every: int, last: int) -> bool:
  """Every so many steps, and after the last one."""
  return step == last or bool(every) and step > 0 and step % every == 0
