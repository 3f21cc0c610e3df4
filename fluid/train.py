"""Training: `python -m fluid.train --config=FILE:ARGS --workdir=DIR`.

A workdir holds config.json, model.json, metrics.jsonl, checkpoints/ and, at the end,
done.json. The same command continues a run that was interrupted; a larger
--config.steps continues one that was finished. docs/reliability.md says what a run
survives; the exit codes are 0 finished, 2 wrong input, 3 not finite, 4 bad data, 5 no
progress (five starts without a new checkpoint), 75 stopped: the same command goes on.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
from absl import flags

from fluid import config, flops, text, tokenizers
from fluid.config.identity import digest, identity
from fluid.console import cli
from fluid.data import mixtures, pipeline, records
from fluid.data.feed import Feed
from fluid.durable import checkpoint, compiled, parameters, paths
from fluid.durable.workdir import Workdir, commit
from fluid.evals.schedule import Evaluations, due
from fluid.models import Net
from fluid.parallel import distributed, sharding
from fluid.parallel.preemption import Preempted, Preemption
from fluid.parallel.watch import PATIENCE
from fluid.training import clocks as clocks_lib
from fluid.training.health import Health
from fluid.training.log import Log
from fluid.training.profile import Profile
from fluid.training.state import TrainState, abstract_state, init_state
from fluid.training.step import make_step

TEND_EVERY = 100  # Steps, where a run logs none.


def run(
  cfg: config.Run,
  workdir,
  *,
  starts: int = 0,
  grace: float | None = None,
  hang: float = PATIENCE,
  since: float | None = None,
) -> dict:
  """Trains until cfg.steps; returns what done.json says.

  Args:
    starts: in a row that may bring no new checkpoint; 0: any number.
    grace: seconds between SIGTERM and the end, whatever is done by then. A save that is
      under way is finished, and another one follows where there is time for it. None:
      as long as it takes.
    hang: seconds after which several processes end that wait for one that makes no
      steps; 0: never.
    since: when the process was started, in seconds since 1970; None: now.

  Raises:
    ConfigError: the workdir, the cache or the mesh does not fit the config, or what the
      disk, the data or the numbers do makes it pointless to go on.
    Preempted: it was told to stop, and has saved.
  """
  began = time.time()
  clocks = clocks_lib.Clocks(since, join=distributed.joined_in if since else 0.0)
  told, step = paths.made_absolute(cfg), 0
  with contextlib.ExitStack() as stack:
    stack.enter_context(distributed.steps(lambda: (step, clocks.cause), hang))
    preemption = stack.enter_context(Preemption())
    folder = stack.enter_context(Workdir(workdir))
    path, cfg = folder.path, paths.near(told)
    profile = Profile(cfg.profile_steps, path)
    mesh = sharding.make_mesh(cfg.mesh)
    sharding.check_batch(cfg.batch, mesh, cfg.accum)
    with clocks.of("data"):
      workers = cfg.data.workers
      data = pipeline.loader(
        cfg, "train", mesh, batch=cfg.batch, shuffle=True, workers=workers
      )
    tokenizer = functools.cache(functools.partial(tokenizers.of, cfg))
    net = Net.of(cfg, tokenizer=tokenizer)
    described = flops.describe(net, cfg)
    metadata = records.read_metadata(cfg.data.cache)
    model = _model_json(cfg, net, described, folder.place, metadata)
    _claim(folder, cfg, told, model, starts)
    finished = _finished(path)
    if finished["step"] >= cfg.steps:
      distributed.say(f"{folder.place} is finished: {finished['step']} steps")
      return finished
    distributed.say(flops.table({"parameters [M]": described["params"]}, 1e6, ""))
    if cfg.optim.warmup >= cfg.steps:
      distributed.say(
        f"warning: config key 'optim.warmup' is {cfg.optim.warmup}, but the run has "
        f"{cfg.steps} steps: its warm-up takes up all of it"
      )
    if (left := cfg.optim.ema**cfg.steps) > 0.02:
      distributed.say(
        f"warning: config key 'optim.ema' is {cfg.optim.ema}: after {cfg.steps} steps "
        f"the averaged weights, which are judged, are {left:.0%} those of the start"
      )
    if other := _other_source(told.data, metadata.get("config", {})):
      distributed.say(f"warning: {other}")
    peak = flops.peak(mesh.devices.flatten())

    stack.enter_context(compiled.kept(folder.place))
    stack.enter_context(jax.set_mesh(mesh))
    saved = checkpoint.Checkpoints(folder.place, keep=cfg.keep)
    stack.callback(saved.close)
    distributed.meet()  # What comes next begins with a wait of its own.
    with clocks.of("restore"):
      state, extra = _start(cfg, net, mesh, saved, data)
    account = path / clocks_lib.FILE if jax.process_index() == 0 else None
    clocks.resume(account, extra.get("seconds", {}))
    start = step = int(state.step)
    feed = Feed(data, mesh, start)
    stack.callback(feed.close)
    batches = data.batches
    health = Health(
      cfg,
      path,
      examples=batches.examples,
      damage=batches.damage,
      counts=extra["counts"],
    )
    log = Log(
      cfg,
      path,
      health,
      clocks,
      step=step,
      flops=described["forward_flops_per_image"]["total"],
      peak=peak,
    )
    stack.callback(log.close)
    loader = functools.partial(pipeline.loader, cfg, mesh=mesh)
    evaluations = Evaluations(
      net,
      cfg,
      mesh,
      path,
      loader,
      tokenizer,
      done={(start, name) for name in log.evaluated()},
      stop=preemption.reached,
    )
    tokenizer.cache_clear()  # Evaluators keep it, if there are any.
    train_step = jax.jit(make_step(net, cfg), donate_argnums=0)
    began -= extra["wall_seconds"]
    distributed.say(
      f"step {step} of {cfg.steps}, mesh {dict(mesh.shape)} of "
      f"{mesh.devices.flat[0].device_kind}, workdir {folder.place}"
    )

    @clocks.of("saves")
    def save():
      folder.check()
      log.sync()
      clocks.write()
      folder.push()
      extra.update(
        counts=health.counts,
        wall_seconds=round(time.time() - began, 3),
        images_per_s=log.images_per_s or extra["images_per_s"],
        seconds=clocks.total(),
      )
      saved.save(state, extra, step)

    @clocks.of("saves")
    def in_time():
      # All processes decide alike, by the slowest one. Where nothing is under way there
      # is nothing to lose: a save that is cut short has never been there.
      if grace is None or distributed.everyone(not saved.busy):
        return True
      saved.wait()
      return distributed.everyone(preemption.since + saved.seconds < grace)

    startup: dict[str, float] = {}
    while True:
      # Saved before it is judged: an evaluation that is cut short is done again.
      stop = preemption.reached()
      keep = step > start and (stop or due(step, cfg.checkpoint_every, cfg.steps))
      late = keep and stop and not in_time()
      keep = keep and not late
      if keep or evaluations.due(step):
        log.flush()  # A state that is not finite is neither saved nor judged.
        if keep:
          save()
        with clocks.of("evaluations"):
          for found in evaluations.run(state, step):
            log.results(step, found)
        if preemption.stopping and not (keep or late) and step > start and in_time():
          save()
      if step >= cfg.steps and not evaluations.due(step) and not late:
        break
      if preemption.stopping:
        with clocks.of("saves"):
          saved.wait()
        folder.check()
        clocks.write()
        kept = max(start, saved.last)
        which = "which is saved" if kept == step else f"that of step {kept} is saved"
        raise Preempted(
          f"{preemption.reason} after step {step} of {cfg.steps}, {which}; the same "
          "command goes on from there"
        )
      profile.before(step + 1, clocks)
      with clocks.of("input" if step > start else "data"):
        batch = feed.next()
      with clocks.of("steps" if step > start else "compile"):
        state, values = train_step(state, batch)
        feed.draw()
        if step == start:
          with distributed.waiting():
            jax.block_until_ready(values)
      step += 1
      log.step(step, values)
      if step == start + 1:
        startup = log.first(step)
      elif due(step, cfg.log_every or TEND_EVERY, cfg.steps):
        with clocks.of("saves"):
          folder.tend()
          saved.check()
          clocks.tend()
        if train_step._cache_size() > 1:  # type: ignore[attr-defined]
          distributed.say(f"warning: the train step was compiled again, by step {step}")
      profile.after(step, values, clocks)

    with clocks.of("saves"):
      saved.wait()
    folder.check()
    clocks.write(finished=True)
    goodput = clocks.shares()["goodput"]
  result = {
    "step": step,
    "wall_seconds": round(time.time() - began, 3),
    "images_per_s": log.images_per_s or extra["images_per_s"],
    "goodput": goodput,
    "startup_seconds": startup,
  }
  distributed.write_json(path / "done.json", result)
  folder.push()
  distributed.say(
    f"finished: {step} steps in {result['wall_seconds']:.0f} s, goodput {goodput:.1%}"
  )
  return result


def _claim(folder: Workdir, cfg, told, model, starts: int) -> None:
  """Takes the workdir for this run and says in it what the run is, as it was told."""
  path = folder.path

  def claim():
    folder.claim(cfg)
    if _finished(path)["step"] < cfg.steps:
      folder.count_start(starts)
      distributed.write_json(path / "config.json", config.to_dict(told))
      distributed.write_json(path / "model.json", model)
      text.copy(cfg.text, pathlib.Path(cfg.data.cache) / cfg.text.FILE, path)
    folder.push()

  distributed.first(claim)


def _other_source(data: config.Data, made_from: dict) -> str:
  """What a cache is made from that the config's source is not; '' for nothing."""
  for key, here in identity(data, "data.").items():
    there = made_from.get(key, here)
    if key.startswith("data.source.") and there != here:
      return (
        f"config key '{key}' is {here!r}, but {data.cache} was prepared with "
        f"{there!r}: evaluations take captions and real images of the former"
      )
  return ""


def _finished(path) -> dict:
  done = path / "done.json"
  return json.loads(done.read_text()) if done.exists() else {"step": -1}


def _start(cfg, net, mesh, saved, data) -> tuple[TrainState, dict]:
  """The newest checkpoint, or a new run's state; and what is saved beside it."""
  mark = mixtures.mark(cfg.data)
  found = saved.restore(abstract_state(net, cfg, mesh))
  if found is not None:
    if found[1]["cache"] != mark:
      raise config.ConfigError(
        f"the tokens in {', '.join((cfg.data.cache, *cfg.data.mixture))} are not those "
        "that this run began with; name those in config keys 'data.cache' and "
        "'data.mixture', or choose another --workdir"
      )
    return found
  state = init_state(net, cfg, mesh)
  if cfg.init.workdir:
    params = parameters.graft(state.params, cfg.init)
    state = dataclasses.replace(
      state, params=params, ema=jax.tree.map(jnp.copy, params)
    )
  cut = sum(
    c.metadata["splits"]["train"].get("cut_captions", 0) for c in data.batches.caches
  )
  counts = {"data/cut_captions": cut} if cut else {}
  return state, {
    "cache": mark, "counts": counts, "wall_seconds": 0.0, "images_per_s": None,
    "seconds": {},
  }  # fmt: skip


def _model_json(cfg, net: Net, described: dict, workdir, metadata: dict) -> dict:
  """What tables, fluid.load and readers of the folder want to know of the run."""
  return {
    "workdir": paths.absolute(str(workdir)),
    "cell": cfg.model.cell,
    "tokens": net.tokens.kind,
    "order": cfg.model.order.kind,
    "size": cfg.model.size,
    **described,
    "batch": cfg.batch,
    "steps": cfg.steps,
    "tokens_per_image": net.tokens.length,
    "token_spec": net.tokens.to_dict(),
    "vocab": net.vocab,
    "tokenizer_sha256": metadata.get("config", {}).get("tokenizer.weights", ""),
    "identity": digest(identity(cfg)),
    **commit(),
  }


def main(argv) -> None:
  """Entry point."""
  del argv
  distributed.join_by_flags()
  args = flags.FLAGS
  workdir = cli.require(WORKDIR)
  run(
    cli.read(CONFIG, buckets=True),
    workdir,
    starts=args.starts,
    grace=args.grace,
    hang=args.hang_timeout,
    since=clocks_lib.process_start(),
  )


if __name__ == "__main__":
  CONFIG = cli.config_flag()
  WORKDIR = cli.workdir_flag()
  distributed.define_flags()
  flags.DEFINE_integer(
    "starts",
    5,
    "Starts in a row without a new checkpoint; 0: any number.",
    lower_bound=0,
  )
  flags.DEFINE_float(
    "grace", None, "Seconds from SIGTERM to the end (none: as long as it takes)."
  )
  flags.DEFINE_float(
    "hang_timeout",
    PATIENCE,
    "Seconds that processes wait for one that makes no steps; 0: for ever.",
    lower_bound=0,
  )
  cli.run(main)
