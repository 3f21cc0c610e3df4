"""Time of one training step of any config, against this machine's matmul peak.

  python -m benchmarks.train_step --config=configs/fluid.py:size=166M --batch=4 \\
    [--peer=torch] [--rounds=7] [--json=FILE] [--config.model.dtype=float32]

A step is forward, backward, clipping, AdamW and the moving average, on random tokens.
The step, the machine's best matmul and, with --peer=torch, a plain PyTorch eager step
of the same shapes (benchmarks/peers, autocast for bfloat16; a process of its own with
the same settings of the allocator) run in turn, each twice, of which the second counts.
Peak memory comes from one process for each, compared with a process that only imports;
`program_bytes` is the compiled step alone (state and temporaries, as XLA assigned
them), without the compiler and what initialisation left behind.
FLOPs are the model's (fluid.flops), three times the forward pass.
"""

import dataclasses
import sys
import time

import jax
import numpy as np
from absl import flags

from benchmarks import timing
from fluid import config, flops, models
from fluid.console import cli
from fluid.parallel import sharding
from fluid.training.state import init_state
from fluid.training.step import make_step


def random_batch(net: models.Net, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Tokens and texts drawn at random, every text half full."""
  r = np.random.default_rng(seed)
  b = {k: np.array(v) for k, v in net.example(batch).items()}
  if net.tokens.kind == "discrete":
    b["tokens"] = r.integers(0, net.tokens.vocab, b["tokens"].shape, np.int32)
  else:
    b["tokens"] = r.normal(size=b["tokens"].shape).astype(np.float32)
  b["text"] = r.integers(0, net.vocab, b["text"].shape, np.int32)
  b["text_mask"] = np.tile(np.arange(net.text.length) < net.text.length / 2, (batch, 1))
  b["id"] = np.arange(batch, dtype=np.int32)
  return b


def ours(run: config.Run):
  """-> (step to call, its result waited for; the compiled program's numbers)."""
  mesh = sharding.make_mesh(run.mesh)
  sharding.check_batch(run.batch, mesh, run.accum)
  net = models.Net.of(run)
  with jax.set_mesh(mesh):
    state = init_state(net, run, mesh)
    batch = sharding.shard_batch(random_batch(net, run.batch), mesh)
    start = time.perf_counter()
    step = jax.jit(make_step(net, run), donate_argnums=0)
    step = step.lower(state, batch).compile()
    seconds = time.perf_counter() - start
  holder, m = [state], step.memory_analysis()
  held = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
  facts = {
    "compile_seconds": seconds,
    "program_bytes": held + m.temp_size_in_bytes,
  }

  def call():
    holder[0], values = step(holder[0], batch)
    jax.block_until_ready((holder[0], values))

  return call, facts


def peer(run: config.Run):
  """The PyTorch step, likewise."""
  from benchmarks import peers

  net = models.Net.of(run)
  return peers.step(net, random_batch(net, run.batch), run.optim)


def apart(args: list[str], variant: str, steps: int = 0) -> timing.Apart:
  """A process that takes steps of `variant`, the first ones at once."""
  run = timing.Apart(["-m", "benchmarks.train_step", *args, f"--only={variant}"])
  for _ in range(steps):
    run()
  return run


def measure(run: config.Run, args: list[str], with_peer: bool, rounds: int) -> dict:
  """The report, JSON-able."""
  call, facts = ours(run)
  dtype = run.model.dtype
  best, best_flops = timing.matmul(dtype)
  variants = {"ours": call, "matmul": best}
  if with_peer:
    variants["torch"] = other = apart(args, "torch")
  times = timing.interleave(variants, rounds=rounds, lead=1)
  peaks = {"torch": other.close()} if with_peer else {}
  net = models.Net.of(run)
  work = 3 * flops.forward(net)["total"] * run.batch
  fastest = best_flops / min(times["matmul"])
  report = {
    "cell": run.model.cell,
    "size": run.model.size,
    "batch": run.batch,
    "dtype": dtype,
    "remat": run.model.trunk.remat,
    "device": jax.devices()[0].device_kind,
    "devices": jax.device_count(),
    "jax": jax.__version__,
    "parameters": flops.parameters(net)["total"],
    "flops": work,
    "matmul_flops_per_s": fastest,
    **facts,
  }
  peaks["ours"] = apart(args, "ours", steps=2).close()
  idle = apart(args, "none").close()
  for name in [v for v in variants if v != "matmul"]:
    row = timing.summary(times[name])
    rate = work / row["median_s"]
    row |= {"flops_per_s": rate, "share_of_matmul": rate / fastest}
    row["images_per_s"] = run.batch / row["median_s"]
    row["memory_bytes"] = peaks[name] - idle
    report[name] = row
  if with_peer:
    report["speedup"] = report["torch"]["median_s"] / report["ours"]["median_s"]
  return report


def main(argv) -> None:
  """Entry point."""
  f = flags.FLAGS
  del argv
  run = cli.read(CONFIG)
  if f.batch:
    run = dataclasses.replace(run, batch=f.batch)
  if f.only:
    calls = {
      "none": lambda: None,
      "ours": lambda: ours(run)[0],
      "torch": lambda: peer(run),
    }
    timing.serve(calls[f.only]())
    return
  args = [a for a in sys.argv[1:] if not a.startswith(("--json", "--rounds"))]
  timing.write(f.json, measure(run, args, f.peer == "torch", f.rounds))


if __name__ == "__main__":
  CONFIG = cli.config_flag()
  flags.DEFINE_integer("batch", 0, "Overrides the config's.", lower_bound=0)
  flags.DEFINE_enum("peer", "none", ["none", "torch"], "What to time beside it.")
  flags.DEFINE_integer("rounds", 7, "Timed rounds.", lower_bound=1)
  flags.DEFINE_string("json", None, "Write the report to this file.")
  flags.DEFINE_enum(
    "only", None, ["none", "ours", "torch"], "Internal: one, for Apart."
  )
  cli.run(main)
