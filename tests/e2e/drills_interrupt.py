"""Drills: a run is ended at any instant, and goes on."""

import signal
import time

from tests.e2e.lab import Failure, began, judged, last_step, newest, same, saving, steps

PER_RUN = 6  # Kills that one run has to bear before it may finish.


def _kills(lab, count, strike, counts=lambda workdir: True):
  """Kills runs where `strike(process, workdir)` says; compares what becomes of them.

  Args:
    counts: workdir after a kill -> whether it was a kill of the kind that is drilled.
  """
  done = 0
  while done < count:
    workdir, kills, lost, before = lab.new("killed"), 0, [0], 0
    while kills < min(PER_RUN, count - done):
      process = lab.train(workdir)
      goes_on = strike(process, workdir)
      if goes_on:
        process.kill()
      if began(process) is not None:  # Else it was killed before it got so far.
        lost.append(before - began(process))
      if not goes_on:
        break  # It had finished.
      kills += counts(workdir)
      before = last_step(workdir)
    process = lab.train(workdir)
    process.end()
    if began(process) is not None:
      lost.append(before - began(process))
    bitwise = same(lab.reference, workdir)
    for _ in range(kills):
      yield {"lost": max(lost), "bitwise": bitwise, "survived": bitwise}
    done += kills


def kill_any_time(lab, count):
  """At an instant drawn from the whole life of a process, imports included."""
  process = lab.train(lab.new("timed"))
  start = time.monotonic()
  process.end()
  life = time.monotonic() - start

  def strike(process, workdir):
    end = time.monotonic() + lab.random.uniform(0, life)
    process.until(lambda: time.monotonic() > end)
    return process.running

  yield from _kills(lab, count, strike)


def kill_in_save(lab, count):
  """While the files of a checkpoint are being written; only such kills count."""

  def strike(process, workdir):
    first = newest(workdir)
    wait = lab.random.randrange(0, 3)  # Saves to let pass.
    process.until(lambda: len([s for s in steps(workdir) if s > first]) >= wait)
    if not process.until(lambda: saving(workdir)):
      return False
    end = time.monotonic() + lab.random.uniform(0, 0.1)
    process.until(lambda: time.monotonic() > end or not saving(workdir))
    return process.running

  yield from _kills(lab, count, strike, lambda workdir: bool(saving(workdir)))


def sigterm(lab, count):
  """One signal: saved at the next step, status 75, nothing done twice."""
  for _ in range(count):
    workdir, step = lab.interrupted("sigterm", lab.random.randrange(1, 40))
    if step != last_step(workdir):
      raise Failure(f"step {last_step(workdir)} was done, step {step} was saved")
    process = lab.train(workdir)
    process.end()
    bitwise = same(lab.reference, workdir)
    yield {"lost": step - began(process), "bitwise": bitwise, "survived": bitwise}


def sigterm_in_evaluation(lab, count):
  """Does not wait for the evaluation, which is done again at the restart."""
  for _ in range(count):
    for _ in range(10):  # Until a signal falls into one.
      workdir, step = lab.interrupted("evaluating", 18)
      if step == 18 and not judged(workdir):
        break
    else:
      raise Failure("no signal of 10 fell into an evaluation")
    process = lab.train(workdir)
    process.end()
    bitwise = same(lab.reference, workdir)
    yield {"lost": step - began(process), "bitwise": bitwise, "survived": bitwise}


def sigterm_often(times):
  """However many signals come, one at a time: saved as after one."""

  def drill(lab, count):
    for _ in range(count):
      at = lab.random.randrange(1, 40)
      workdir, step = lab.interrupted("often", at, times=times)
      if step != last_step(workdir):
        raise Failure(f"step {last_step(workdir)} was done, step {step} was saved")
      process = lab.train(workdir)
      process.end()
      bitwise = same(lab.reference, workdir)
      yield {"lost": step - began(process), "bitwise": bitwise, "survived": bitwise}

  return drill


def sigint_twice(lab, count):
  """The second Ctrl-C ends the process at once, even while it compiles."""
  for _ in range(count):
    workdir = lab.new("twice")
    process = lab.train(workdir)
    process.until(lambda p=process: "mesh {" in p.said())
    process.signal(signal.SIGINT)
    process.until(lambda p=process: "SIGINT: saves" in p.said())
    process.signal(signal.SIGINT)
    start = time.monotonic()
    process.end(75)
    if time.monotonic() - start > 2:
      raise Failure("the second Ctrl-C took more than two seconds")
    lab.train(workdir).end()
    bitwise = same(lab.reference, workdir)
    yield {"bitwise": bitwise, "survived": bitwise}


# name -> (drill, tries in the long form, in the short form)
DRILLS = {
  "kill -9 at any instant": (kill_any_time, 24, 2),
  "kill -9 inside a save": (kill_in_save, 12, 1),
  "SIGTERM": (sigterm, 4, 1),
  "SIGTERM in an evaluation": (sigterm_in_evaluation, 2, 1),
  "2 SIGTERM within a second": (sigterm_often(2), 2, 0),
  "5 SIGTERM within a second": (sigterm_often(5), 2, 1),
  "Ctrl-C twice": (sigint_twice, 2, 0),
}
