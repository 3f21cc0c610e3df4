"""What safety costs: checkpoints while training, and the way back to the first step.

  python -m benchmarks.safety --config=configs/toy.py:size=l --workdir=DIR \\
    [--every=50] [--rounds=5] [--json=FILE]

Step time: blocks of two periods with asynchronous checkpoints (checksums included) and
without run in turn; a block waits for what it writes. The ratio of processor time,
which other work on the machine hardly touches, stands beside that of the clock.
Restart: the command itself, started, interrupted and started again, says what the time
to its first step is made of; the compilation cache is empty at first, then full.
"""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
from absl import flags

from benchmarks import timing
from benchmarks.train_step import make_net, random_batch
from fluid import checkpoint, cli, config, flops, sharding, train
from fluid.state import init_state


def saving(run: config.Run, workdir: pathlib.Path, every: int, rounds: int) -> dict:
  """Seconds a step with and without checkpoints every so many steps."""
  mesh = sharding.make_mesh(run.mesh)
  net = make_net(run)
  with jax.set_mesh(mesh):
    holder = [init_state(net, run, mesh)]
    batch = sharding.shard_batch(random_batch(net, run.batch), mesh)
    step = jax.jit(train.make_step(net, run), donate_argnums=0)
    saved = checkpoint.Checkpoints(workdir, keep=2)
    count, processor = 0, {True: [], False: []}

    def block(save: bool):
      nonlocal count
      start = time.process_time()
      for i in range(2 * every):
        holder[0], values = step(holder[0], batch)
        count += 1
        if save and i % every == every // 2:
          saved.save(holder[0], {}, count)
      saved.wait()
      jax.block_until_ready(values)
      processor[save].append(time.process_time() - start)

    times = timing.interleave(
      {"without": lambda: block(False), "with": lambda: block(True)},
      rounds=rounds,
      warmup=1,
    )
    saved.close()
    size = sum(a.nbytes for a in jax.tree.leaves(holder[0]))
  report = {
    name: timing.summary([t / (2 * every) for t in seconds])
    for name, seconds in times.items()
  }
  # Neighbours come and go: each block is held against the one beside it.
  ratios = [b / a for a, b in zip(times["without"], times["with"])]
  return report | {
    "every": every,
    "state_bytes": size,
    "ratio": timing.summary(ratios)["median_s"],
    "ratios": ratios,
    "processor_ratio": sum(processor[True][1:]) / sum(processor[False][1:]),
  }


def restart(args: list[str], workdir: pathlib.Path) -> dict:
  """Seconds to the first step by part: new, and after an interruption."""
  workdir.mkdir()
  made = [f"--config.tokenizer.path={workdir}/vae", f"--config.data.cache={workdir}/c"]
  small = ["--config.tokenizer.steps=2", "--config.data.num_train=2000"]
  env = dict(
    os.environ,
    JAX_COMPILATION_CACHE_DIR=str(workdir / "xla"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
  )

  def command(module, *more):
    return [sys.executable, "-m", module, *args, *made, *small, *more]

  for module in ("fluid.tokenizers.train", "fluid.prepare"):
    subprocess.run(command(module), env=env, check=True, stdout=subprocess.DEVNULL)
  out = {}
  for name in ("first start", "restart"):
    log = workdir / f"{name}.log"
    with log.open("w") as f:
      run = subprocess.Popen(
        command("fluid.train", f"--workdir={workdir}/run"), env=env, stdout=f
      )
    line = ""
    while not line and run.poll() is None:
      time.sleep(0.1)
      found = [
        x for x in log.read_text().split("\n")[:-1] if x.startswith("first step")
      ]
      line = found[0] if found else ""
    run.send_signal(signal.SIGTERM)
    run.wait()
    parts = (p.rsplit(" ", 1) for p in line.split(": ", 1)[1].split(", "))
    out[name] = {part: float(seconds) for part, seconds in parts}
    print(f"{name}: {line}", file=sys.stderr, flush=True)
  return out


def main(argv) -> None:
  """Entry point."""
  del argv
  f = flags.FLAGS
  run = cli.read(CONFIG)
  workdir = pathlib.Path(cli.require(WORKDIR)).absolute()
  workdir.mkdir(parents=True, exist_ok=True)
  if any(workdir.iterdir()):
    raise config.ConfigError(f"--workdir={workdir} is not empty; name a new folder")
  if f.batch:
    run = dataclasses.replace(run, batch=f.batch)
  own = ("--workdir", "--every", "--rounds", "--json", "--batch")
  args = [a for a in sys.argv[1:] if not a.startswith(own)]
  args += [f"--config.batch={f.batch}"] * bool(f.batch)
  net = make_net(run)
  timing.write(
    f.json,
    {
      "size": run.model.size,
      "batch": run.batch,
      "parameters": flops.parameters(net)["total"],
      "device": jax.devices()[0].device_kind,
      "jax": jax.__version__,
      "step": saving(run, workdir / "saving", f.every, f.rounds),
      "restart": restart(args, workdir / "restart") if f.restart else None,
    },
  )


if __name__ == "__main__":
  CONFIG = cli.config_flag()
  WORKDIR = cli.workdir_flag()
  flags.DEFINE_integer("batch", 0, "Overrides the config's.", lower_bound=0)
  flags.DEFINE_integer("every", 50, "Steps between checkpoints.", lower_bound=2)
  flags.DEFINE_integer("rounds", 5, "Timed rounds.", lower_bound=1)
  flags.DEFINE_bool("restart", True, "Measure the way to the first step as well.")
  flags.DEFINE_string("json", None, "Write the report to this file.")
  cli.run(main)
