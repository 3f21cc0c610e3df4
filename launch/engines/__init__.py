"""Where jobs run: `ENGINES` maps the value of `--on` to a module with a `Engine`.

A engine turns a `Job` into something that runs and can be asked about. The launcher
knows nothing else, so a cluster is one new file here and one new entry below.
"""

import dataclasses
import importlib
from pathlib import Path
from typing import Protocol

ENGINES = {"local": "launch.engines.local"}


@dataclasses.dataclass(frozen=True)
class Job:
  """One command: its argv, the extra environment, and the file its output goes to."""

  name: str
  argv: tuple[str, ...]
  env: dict[str, str]
  log: Path


class Engine(Protocol):
  """Runs jobs; `slots` is how many it takes at a time."""

  slots: int

  def submit(self, job: Job) -> object:
    """Starts the job and returns a handle; an exception means it could not start."""

  def poll(self, handle: object) -> int | None:
    """Exit status, or None while the job waits or runs."""

  def cancel(self, handles: list[object]) -> None:
    """Asks jobs to stop and returns when they have (or were made to)."""


def make(name: str, *, jobs: int, lock: int | None = None) -> Engine:
  """The engine `name`, taking `jobs` jobs at a time.

  Args:
    name: a key of ENGINES.
    jobs: how many may run together.
    lock: descriptor of the sweep's lock, for engines whose jobs can outlive a killed
      launcher on this machine: a job keeps it open, so a second launcher waits for it.
  """
  return importlib.import_module(ENGINES[name]).Engine(jobs, lock)
