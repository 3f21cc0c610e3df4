"""Time of sampling tokens for any config, against this machine's matmul peak.

  python -m benchmarks.sample_speed --config=configs/fluid.py:size=166M --batch=2 \\
    [--peer=torch] [--positions] [--rounds=3] [--json=FILE] [--config.sample.steps=16]

Random parameters: the work does not depend on what was learned (benchmarks.sample
weighs speed against quality on trained runs). The sampler, the machine's best matmul
and, with --peer=torch, a plain PyTorch sampler of the same steps (benchmarks/peers, in
a process of its own) run in turn. FLOPs are those of the products in the sampler's
jaxpr, padding and masked keys included. --positions times a raster step by its position
in the image.
"""

import dataclasses
import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import timing, train_step
from fluid import config, flops, sampling
from fluid.console import cli
from fluid.models import Net, orders


def _arguments(net, batch: int):
  params = jax.jit(net.init)(jax.random.key(0))
  rows = train_step.random_batch(net, batch)
  keys = jax.random.split(jax.random.key(1), batch)
  return params, jnp.asarray(rows["text"]), jnp.asarray(rows["text_mask"]), keys


def peer(run: config.Run):
  """A call of the PyTorch sampler."""
  from benchmarks import peers

  net = Net.of(run)
  return peers.sample(net, train_step.random_batch(net, run.sample.batch), run.sample)


def measure(
  run: config.Run,
  other: timing.Apart | None,
  positions: bool,
  rounds: int,
  warmup: int = 1,
) -> dict:
  """The report, JSON-able, beside a peer where there is one."""
  cfg, net = run.sample, Net.of(run)
  args = _arguments(net, cfg.batch)

  def generate(*args):
    return sampling.generate(net, *args, cfg)

  work = flops.traced(generate, *args)
  start = time.perf_counter()
  program = jax.jit(generate).lower(*args).compile()
  report = {
    "cell": run.model.cell,
    "size": run.model.size,
    "batch": cfg.batch,
    "dtype": run.model.dtype,
    "sample": cfg.flat(),
    "device": jax.devices()[0].device_kind,
    "jax": jax.__version__,
    "flops": work,
    "compile_seconds": time.perf_counter() - start,
  }
  best, best_flops = timing.matmul(run.model.dtype)
  variants = {
    "ours": lambda: jax.block_until_ready(program(*args)),
    "matmul": best,
  }
  if other:
    variants["torch"] = other
  times = timing.interleave(variants, rounds=rounds, warmup=warmup)
  fastest = best_flops / min(times["matmul"])
  report["matmul_flops_per_s"] = fastest
  for name in [v for v in variants if v != "matmul"]:
    row = timing.summary(times[name])
    report[name] = row | {"seconds_per_image": row["median_s"] / cfg.batch}
  rate = work / report["ours"]["median_s"]
  report["ours"] |= {"flops_per_s": rate, "share_of_matmul": rate / fastest}
  if other:
    other.close()
    report["speedup"] = report["torch"]["median_s"] / report["ours"]["median_s"]
  if positions:
    report["positions"] = by_position(net, args, cfg, rounds)
  return report


def by_position(net, args, cfg: config.Sample, rounds: int) -> dict:
  """Seconds of a raster step at the first and the last tenth of the positions.

  The steps are those of orders.Raster, one call each, the cache donated.
  """
  if net.order.kind != "raster":
    raise cli.UserError("--positions: a raster model has positions in time")
  params, text, mask, keys = args
  now = orders.stage(cfg, 0.0)
  create = functools.partial(sampling.Decoder.create, net)

  @jax.jit
  def begin(params):
    decoder = create(params, text, mask, keys, cfg)
    return decoder.cond, (decoder.start(past=True), decoder.blank()[:, :1])

  @jax.jit(donate_argnums=2)
  def step(params, cond, carry, i):
    kept, before = carry
    decoder = sampling.Decoder(net, params, cfg, keys, cond, sampling.turned(cfg)[1])
    z, kept = decoder.run(before, net.order.step(i), kept)
    at = jnp.full((len(keys), 1), i)
    return kept, decoder.draw(z, at, now, known=0.0, decoded=1.0)[0]

  seconds = [[] for _ in range(net.tokens.length)]
  for _ in range(rounds + 1):
    cond, carry = begin(params)
    for i, found in enumerate(seconds):
      start = time.perf_counter()
      carry = jax.block_until_ready(step(params, cond, carry, i))
      found.append(time.perf_counter() - start)
  each = [statistics.median(s[1:]) for s in seconds]  # The first round compiles.
  tenth = max(1, len(each) // 10)
  first, last = statistics.median(each[:tenth]), statistics.median(each[-tenth:])
  return {"first_s": first, "last_s": last, "ratio": last / first}


def main(argv) -> None:
  """Entry point."""
  del argv
  f = flags.FLAGS
  run = cli.read(CONFIG)
  if f.batch:
    run = dataclasses.replace(
      run, sample=dataclasses.replace(run.sample, batch=f.batch)
    )
  if f.serve:
    timing.serve(peer(run))
    return
  command = ["-m", "benchmarks.sample_speed", *sys.argv[1:], "--serve"]
  other = timing.Apart(command) if f.peer == "torch" else None
  timing.write(f.json, measure(run, other, f.positions, f.rounds, f.warmup))


if __name__ == "__main__":
  CONFIG = cli.config_flag()
  flags.DEFINE_integer("batch", 0, "Images at once; 0: the config's.", lower_bound=0)
  flags.DEFINE_enum("peer", "none", ["none", "torch"], "What to time beside it.")
  flags.DEFINE_bool("positions", False, "Time raster steps by position as well.")
  flags.DEFINE_integer("rounds", 3, "Timed rounds.", lower_bound=1)
  flags.DEFINE_integer("warmup", 1, "Rounds before; 0: long ones.", lower_bound=0)
  flags.DEFINE_bool("serve", False, "Internal: the peer alone, for Apart.")
  flags.DEFINE_string("json", None, "Write the report to this file.")
  cli.run(main)
