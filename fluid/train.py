"""Training: `python -m fluid.train --config=FILE:ARGS --workdir=DIR`.

A workdir holds config.json, model.json, metrics.jsonl, checkpoints/ and, at the end,
done.json. The same command continues a run that was interrupted; a larger
--config.steps continues one that was finished.
"""

import concurrent.futures
import contextlib
import copy
import json
import pathlib
import time

import jax
import optax

from fluid import checkpoint, cli, config, flops, metrics, models, optim, rng, sharding
from fluid.data import pipeline, records
from fluid.state import TrainState, abstract_state, init_state
from fluid.tokenizers.base import TokenSpec


def make_net(run: config.Run) -> models.Net:
  """The model of a run, for the tokens and the vocabulary in its cache."""
  metadata = records.read_metadata(run.data.cache)
  if "tokens" not in metadata:
    raise config.ConfigError(
      f"{run.data.cache} is unfinished; run python -m fluid.prepare again"
    )
  spec = TokenSpec.from_dict(metadata["tokens"])
  return models.build(run.model, spec, run.text, metadata["text"]["vocab_size"])


def make_step(net: models.Net, run: config.Run):
  """-> step(state, batch) -> (state, metrics: name -> scalar). Pure; not jitted."""
  optimizer = optim.make_optimizer(run.optim, run.steps)
  lr = optim.schedule(run.optim, run.steps)

  def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    key = rng.stream(run.seed, "train", state.step)

    def loss(params, batch):
      keys = rng.example_keys(key, batch["id"])
      out = net.loss(params, batch, keys, train=True)
      mask = out["mask"] & batch["mask"][:, None]
      names = ("loss", "mse", "vb", "accuracy")
      return {k: metrics.Mean.of(out[k], mask) for k in names if k in out}

    means, grads = optim.mean_grad(loss, state.params, batch, run.accum)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    values = {f"train/{k}": v.value for k, v in means.items()} | {
      "train/grad_norm": optax.global_norm(grads),
      "train/lr": lr(state.step),
    }
    ema = optim.update_ema(state.ema, params, run.optim.ema)
    return TrainState(state.step + 1, params, ema, opt_state), values

  return step


class Feed:
  """Batches on the mesh, one ahead of the loop, drawn in a thread.

  Attributes:
    state: of the iterator before the batch that `next` returns next.
  """

  def __init__(self, dataset, mesh, state: dict | None = None):
    self._iterator, self._mesh = iter(dataset), mesh
    if state is not None:
      self._iterator.set_state(state)
    self._pool = concurrent.futures.ThreadPoolExecutor(1)
    self._ahead = self._pool.submit(self._draw)

  def _draw(self):
    state = copy.deepcopy(self._iterator.get_state())
    return state, sharding.shard_batch(next(self._iterator), self._mesh)

  @property
  def state(self) -> dict:
    return self._ahead.result()[0]

  def next(self) -> dict:
    _, batch = self._ahead.result()
    self._ahead = self._pool.submit(self._draw)
    return batch

  def close(self) -> None:
    self._pool.shutdown(cancel_futures=True)


class Evaluations:
  """The evaluators of a run and when they are due."""

  def __init__(self, net, run: config.Run, mesh, workdir):
    self._run, self._entries = run, []
    if not run.evals:
      return
    from fluid import evals, text, tokenizers

    def loader(split, batch):
      return make_loader(run, split, batch=batch, shuffle=False, epochs=1)

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


def make_loader(run: config.Run, split: str, **kwargs):
  """This process's share of a split of the run's cache."""
  return pipeline.make_loader(
    run.data.cache,
    split,
    seed=run.data.seed,
    shard_index=jax.process_index(),
    shard_count=jax.process_count(),
    text_length=run.text.length,
    **kwargs,
  )


def run(cfg: config.Run, workdir) -> dict:
  """Trains until cfg.steps; returns what done.json says.

  Raises:
    ConfigError: the workdir, the cache or the mesh does not fit the config.
    NonFiniteError: names the step.
  """
  began = time.time()
  workdir = pathlib.Path(workdir)
  cfg = config.absolute_paths(cfg)
  say = print if jax.process_index() == 0 else lambda *_: None
  profile = _parse_profile(cfg.profile_steps)
  mesh = sharding.make_mesh(cfg.mesh)
  sharding.check_batch(cfg.batch, mesh, cfg.accum)
  data = make_loader(
    cfg, "train", batch=cfg.batch, shuffle=True, workers=cfg.data.workers
  )
  net = make_net(cfg)
  checkpoint.check_workdir(workdir, cfg)
  done = workdir / "done.json"
  finished = json.loads(done.read_text()) if done.exists() else {"step": -1}
  if finished["step"] >= cfg.steps:
    say(f"{workdir} is finished: {finished['step']} steps")
    return finished

  described = flops.describe(net, cfg)
  peak = flops.peak(mesh.devices.flatten())
  checkpoint.write_json(workdir / "config.json", config.to_dict(cfg))
  checkpoint.write_json(
    workdir / "model.json", _model_json(cfg, net, described, workdir)
  )
  say(flops.table({"parameters [M]": described["params"]}, 1e6, ""))
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.set_mesh(mesh))
    saved = checkpoint.Checkpoints(workdir, keep=cfg.keep)
    stack.callback(saved.close)
    found = saved.restore(abstract_state(net, cfg, mesh))
    state, extra = found or (init_state(net, cfg, mesh), {})
    start = step = int(state.step)
    feed = Feed(data, mesh, extra.get("iterator"))
    stack.callback(feed.close)
    log = metrics.Log(
      cfg,
      workdir,
      step=step,
      flops=described["forward_flops_per_image"]["total"],
      peak=peak,
    )
    stack.callback(log.close)
    evaluations = Evaluations(net, cfg, mesh, workdir)
    train_step = jax.jit(make_step(net, cfg), donate_argnums=0)
    began -= extra.get("wall_seconds", 0.0)
    say(
      f"step {step} of {cfg.steps}, mesh {dict(mesh.shape)} of "
      f"{mesh.devices.flat[0].device_kind}, workdir {workdir}"
    )

    log.timer.lap()
    while True:
      if step > start and (
        evaluations.due(step) or due(step, cfg.checkpoint_every, cfg.steps)
      ):
        log.flush()  # A state that is not finite is neither judged nor saved.
        with log.timer.exclude():
          if evaluations.due(step):
            log.results(step, dict(evaluations.run(state, step)))
          if due(step, cfg.checkpoint_every, cfg.steps):
            wall = round(time.time() - began, 3)
            extra = {"wall_seconds": wall, "images_per_s": log.images_per_s}
            saved.save(state, {"iterator": feed.state} | extra, step)
      if step >= cfg.steps:
        break
      if profile and step + 1 == profile[0]:
        with log.timer.exclude():
          jax.profiler.start_trace(str(workdir / "profile"))
      with log.timer.wait():
        batch = feed.next()
      state, values = train_step(state, batch)
      step += 1
      log.step(step, values)
      if profile and step == profile[1]:
        jax.block_until_ready(values)
        with log.timer.exclude():
          jax.profiler.stop_trace()

    saved.wait()
  result = {
    "step": step,
    "wall_seconds": round(time.time() - began, 3),
    "images_per_s": log.images_per_s or extra.get("images_per_s"),
  }
  checkpoint.write_json(done, result)
  say(f"finished: {step} steps in {result['wall_seconds']:.0f} s")
  return result


def _model_json(cfg: config.Run, net: models.Net, described: dict, workdir) -> dict:
  return {
    "workdir": config.absolute(str(workdir)),
    "cell": f"{net.tokens.kind}-{cfg.model.order}",
    "tokens": net.tokens.kind,
    "order": cfg.model.order,
    "size": cfg.model.size,
    **described,
    "batch": cfg.batch,
    "steps": cfg.steps,
    "tokens_per_image": net.tokens.length,
    "token_spec": net.tokens.to_dict(),
    "vocab": net.vocab,
  }


def _parse_profile(text: str) -> tuple[int, int] | None:
  if not text:
    return None
  try:
    first, last = map(int, text.split(":"))
  except ValueError:
    first, last = 0, -1
  if not 1 <= first <= last:
    raise config.ConfigError(
      f"config key 'profile_steps' must be 'first:last' with 1 <= first <= last, "
      f"not '{text}'"
    )
  return first, last


def main(argv) -> None:
  """Entry point."""
  del argv
  run(cli.read(CONFIG), cli.require(WORKDIR))


if __name__ == "__main__":
  CONFIG = cli.config_flag()
  WORKDIR = cli.workdir_flag()
  cli.run(main)
