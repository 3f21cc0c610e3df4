"""What safety costs: checkpoints while training, and the way back to the first step.

  python -m benchmarks.safety --config=configs/toy.py:size=l --workdir=DIR \\
    [--every=50] [--rounds=10] [--json=FILE]

Step time: as in the training loop, a checkpoint (checksums included) every so many
steps. What a save costs is how much longer the first half of its period takes than the
second, when nothing is written any more: the machine's own drift stays out of it.
Restart: the command itself, started, interrupted and started again, says what the time
to its first step is made of; the compilation cache is empty at first, then full.
"""

import dataclasses
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

import jax
from absl import flags

from benchmarks import timing
from benchmarks.train_step import random_batch
from fluid import config, flops
from fluid.console import cli
from fluid.durable import checkpoint
from fluid.models import Net
from fluid.parallel import sharding
from fluid.training.state import init_state
from fluid.training.step import make_step


def saving(run: config.Run, workdir: pathlib.Path, every: int, rounds: int) -> dict:
  """Seconds that a save costs, and the step time with it over that without."""
  mesh = sharding.make_mesh(run.mesh)
  net = Net.of(run)
  half = every // 2
  with jax.set_mesh(mesh):
    state = init_state(net, run, mesh)
    batch = sharding.shard_batch(random_batch(net, run.batch), mesh)
    step = jax.jit(make_step(net, run), donate_argnums=0)
    saved = checkpoint.Checkpoints(workdir, keep=2)
    state, before = step(state, batch)
    costs, pauses, steps = [], [], []
    for period in range(rounds + 1):
      seconds = []
      for i in range(every):
        start = time.perf_counter()
        if i == 0:
          saved.save(state, {}, period)
          pauses.append(time.perf_counter() - start)
        state, values = step(state, batch)
        float(before["train/loss"])  # The loop reads what the step before says.
        before = values
        seconds.append(time.perf_counter() - start)
        if i == half and not (saved.folder / str(period)).is_dir():
          raise config.ConfigError(
            f"a save takes longer than {half} steps; give a larger --every"
          )
      steps.append(statistics.mean(seconds[half : 2 * half]))
      costs.append(sum(seconds[:half]) - half * steps[-1])
      print(f"period {period} of {rounds}: {costs[-1]:.3f} s", file=sys.stderr)
    saved.close()
    size = sum(a.nbytes for a in jax.tree.leaves(state))
  # The first save compiles the checksums.
  report = {"cost": costs[1:], "pause": pauses[1:], "step": steps[1:]}
  report = {name: timing.summary(seconds) for name, seconds in report.items()}
  ratios = [1 + c / (every * s) for c, s in zip(costs[1:], steps[1:])]
  return report | {
    "every": every,
    "state_bytes": size,
    "arrays": len(jax.tree.leaves(state)),
    "first_pause_s": pauses[0],
    "ratio": statistics.median(ratios),
    "ratios": ratios,
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
  net = Net.of(run)
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
  flags.DEFINE_integer("rounds", 10, "Saves that are timed.", lower_bound=1)
  flags.DEFINE_bool("restart", True, "Measure the way to the first step as well.")
  flags.DEFINE_string("json", None, "Write the report to this file.")
  cli.run(main)
