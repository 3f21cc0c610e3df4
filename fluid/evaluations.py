"""The evaluators of a run in training: which are due, on which weights."""

from fluid import config
from fluid.state import TrainState


class Evaluations:
  """The evaluators of a run and when they are due."""

  def __init__(self, net, run: config.Run, mesh, workdir, make_loader):
    self._run, self._entries = run, []
    if not run.evals:
      return
    from fluid import evals, text, tokenizers

    def loader(split, batch):
      return make_loader(split, batch=batch, shuffle=False, epochs=1)

    tokenizer = tokenizers.load(run.tokenizer.path) if run.tokenizer.path else None
    vocabulary = text.load(run.text, run.data.cache)
    context = evals.EvalContext(run, tokenizer, vocabulary, mesh, workdir, loader)
    for name, evaluator in evals.make(net, context).items():
      args = run.evals[name]
      every, raw = args.get("every", run.eval_every), args.get("raw", False)
      self._entries.append((every, raw, evaluator))

  def due(self, step: int) -> list:
    return [e for e in self._entries if due(step, e[0], self._run.steps)]

  def run(self, state: TrainState, step: int):
    """Yields (name, value) of what is due: the EMA, then raw weights if asked."""
    for _, raw, evaluator in self.due(step):
      yield from evaluator.run(state.ema, step)
      if raw:
        for name, value in evaluator.run(state.params, step, "raw"):
          yield f"raw/{name}", value


def due(step: int, every: int, last: int) -> bool:
  """Every so many steps, and after the last one."""
  return step == last or bool(every) and step > 0 and step % every == 0
