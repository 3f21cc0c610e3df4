"""Goodput of training on chips that are lost, simulated: how often should it save?

  python -m benchmarks.goodput                       # the table of the paper's sizes
  python -m benchmarks.goodput --chips=1024 --step=2 --block=1 --write=30 --restart=300

A run saves after every `period` seconds of steps. A save stops it for `block` seconds
(the copy to the hosts) and is on disk `write` seconds later, while steps go on. Chips
are lost at a constant rate; the loss of one ends all, and costs `restart` seconds
(scheduling, joining, compiling, restoring) and the steps since the last save that was
on disk. A loss may come in a restart, too. Of a share `warned` of the losses the run
hears in time and saves. Goodput is the share of wall time whose steps were kept.

Where a save is on disk at once the process begins anew at each save, and goodput has a
closed form (Daly 2006, "A higher order estimate of the optimum checkpoint interval for
restart dumps"), which tests compare; to first order sqrt(2 block / rate) is the best
period (Young 1974).
"""

import dataclasses
import math

import numpy as np
from absl import flags

from fluid import config, flops, models
from fluid.console import cli

# Llama 3 405B: 419 unexpected interruptions in 54 days of 16,384 accelerators
# (arXiv 2407.21783, section 3.3.4).
MTBF = 16_384 * 54 * 24 * 3600 / 419
# Assumed, of a host with four chips: bytes a second from its chips to its memory, and
# on to the store; each option can be given.
CHIPS_A_HOST, COPY, STORE = 4, 8e9, 0.5e9
PAUSE = 0.2  # Seconds that a save stops steps for beside the copy (measured: 0.17).
STATE = 16  # Bytes a parameter: it, its average and two moments in float32.
MFU = 0.5
PEAK = flops.PEAKS["TPU v5"]


@dataclasses.dataclass(frozen=True)
class Machine:
  """What a run pays, in seconds.

  Attributes:
    rate: losses a second, of all chips together.
    step: time of one.
    block: that a save stops the steps for.
    write: from then until it is on disk; a save waits for the one before.
    restart: from a loss to the first step.
    warned: share of losses that are announced early enough to save.
  """

  rate: float
  step: float
  block: float
  write: float
  restart: float
  warned: float = 0.0


def closed_form(m: Machine, period: float) -> float:
  """Goodput where a save is on disk at once and no loss is announced (Daly)."""
  if not m.rate:
    return period / (period + m.block)
  segment = math.expm1(m.rate * (period + m.block)) / m.rate
  return period / (segment * math.exp(m.rate * m.restart))


def best_period(m: Machine) -> float:
  """Seconds of steps between two saves: best by the closed form, and not below write.

  The time until a save is on disk is lost at each loss whatever the period, so it moves
  the optimum only where saves would have to wait for one another.
  """
  periods = np.geomspace(m.step, 86_400, 2000)
  found = max(periods, key=lambda p: closed_form(m, float(p)))
  return max(float(found), m.write)


def simulate(
  m: Machine, period: float, *, days: float = 365.0, seed: int = 0
) -> dict[str, float]:
  """Days of a run with a save after every `period` seconds of steps.

  Returns:
    goodput and what is lost, shares of time by the names of metrics.jsonl (lost/restart
    is all from `down` to `rest` there), losses, most (steps that one loss cost).
  """
  rng = np.random.default_rng(seed)
  next_loss = lambda now: now + rng.exponential(1 / m.rate) if m.rate else math.inf
  every = max(1, round(period / m.step))  # Steps between two saves.
  now = 0.0
  made = kept = 0  # Steps in memory, and on disk.
  written, writing = 0.0, 0  # When the newest save is on disk, and its steps.
  lost_at, losses, most = next_loss(now), 0, 0
  stepping = saves = restarts = 0.0  # Seconds.
  while now < days * 86_400:
    # Up to the next save, which waits for the end of a step and for the disk.
    steps = max(every, math.ceil((written - now) / m.step))
    if lost_at >= now + steps * m.step + m.block:
      now += steps * m.step
      made, kept = made + steps, writing
      now += m.block
      stepping, saves = stepping + steps * m.step, saves + m.block
      written, writing = now + m.write, made
      continue
    reached = made + min(steps, int((lost_at - now) / m.step))
    kept = writing if written <= lost_at else kept
    stepped = min(lost_at - now, steps * m.step)
    stepping, saves = stepping + stepped, saves + lost_at - now - stepped
    now = lost_at
    if rng.random() < m.warned:
      kept, now = reached, now + m.block + m.write
      saves += m.block + m.write
    losses, most = losses + 1, max(most, reached - kept)
    made = writing = kept
    begun = now
    while (lost_at := next_loss(now)) < now + m.restart:
      now, losses = lost_at, losses + 1
    now += m.restart
    written, restarts = now, restarts + now - begun
  return {
    "goodput": kept * m.step / now,
    "lost/redone": (stepping - kept * m.step) / now,
    "lost/saves": saves / now,
    "lost/restart": restarts / now,
    "losses": losses,
    "most": most,
  }


def machine(parameters: int, work: float, chips: int, restart: float) -> Machine:
  """A size of the ladder on so many chips.

  Args:
    parameters: of the model.
    work: FLOPs of a step.
  """
  hosts = math.ceil(chips / CHIPS_A_HOST)
  share = parameters * STATE / hosts
  return Machine(
    rate=chips / MTBF,
    step=work / (chips * PEAK * MFU),
    block=PAUSE + share / COPY,
    write=share / STORE,
    restart=restart,
  )


def markdown(counts: tuple[int, ...], restart: float, batch: int = 2048) -> str:
  """The table: continuous-random, the paper's batch."""
  from configs import fluid as paper
  from configs import sizes

  lines = [
    "| size | chips | step s | save stops s | written in s | a loss every h | best "
    "period s | goodput | at 10 min | at 1 h |",
    "|---|---|---|---|---|---|---|---|---|---|",
  ]
  for size in sizes.PAPER:
    run = config.from_config_dict(paper.get_config(f"size={size}"))
    net = models.Net.of(run, platform="tpu")
    parameters = flops.parameters(net)["total"]
    work = 3 * flops.forward(net)["total"] * batch
    for chips in counts:
      m = machine(parameters, work, chips, restart)
      best = best_period(m)
      cells = [simulate(m, p)["goodput"] for p in (best, 600, 3600)]
      lines.append(
        f"| {size} | {chips:,} | {m.step:.3g} | {m.block:.2g} | {m.write:.2g} | "
        f"{1 / m.rate / 3600:.1f} | {best:.0f} | "
        + " | ".join(f"{c:.2%}" for c in cells)
        + " |"
      )
  return "\n".join(lines)


def main(argv) -> None:
  """Prints the table, or one machine by its options."""
  del argv
  f = flags.FLAGS
  given = {k: f[k].value for k in ("step", "block", "write")}
  if all(v is None for v in given.values()):
    print(markdown(tuple(int(c) for c in f.chips), f.restart))
    return
  if missing := [k for k, v in given.items() if v is None]:
    raise cli.UserError(
      f"missing flag --{missing[0]}: step, block and write go together"
    )
  for chips in f.chips:
    m = Machine(
      rate=int(chips) / (f.mtbf * 3600), restart=f.restart, warned=f.warned, **given
    )
    best = best_period(m)
    for period in (best / 4, best / 2, best, 2 * best, 4 * best):
      out = simulate(m, period)
      mark = " (best)" if period == best else ""
      print(
        f"{chips} chips, a save every {period:.0f} s: goodput {out['goodput']:.2%} "
        f"(lost: redone {out['lost/redone']:.2%}, saves {out['lost/saves']:.2%}, "
        f"restart {out['lost/restart']:.2%}), "
        f"{out['losses']:.0f} losses a year, at most {out['most']:.0f} steps{mark}"
      )


if __name__ == "__main__":
  flags.DEFINE_list("chips", ["256", "1024", "4096"], "That run together.")
  flags.DEFINE_float("mtbf", MTBF / 3600, "Hours between two losses of one chip.")
  flags.DEFINE_float("step", None, "Seconds of a step.")
  flags.DEFINE_float("block", None, "Seconds that a save stops the steps for.")
  flags.DEFINE_float("write", None, "Seconds until it is on disk.")
  flags.DEFINE_float("restart", 300, "Seconds from a loss to the first step.")
  flags.DEFINE_float("warned", 0.0, "Share of the losses that are announced.")
  cli.run(main)
