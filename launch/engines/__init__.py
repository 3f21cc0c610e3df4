"""Where jobs run: `ENGINES` maps the value of `--on` to a module with an `Engine`.

`local` starts processes that live as long as the launcher. All others are `Remote`:
they render a stage to what a scheduler takes, hand it over, and ask about it later. The
launcher knows nothing else, so a scheduler is one new file here and one entry below.
"""

import abc
import atexit
import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fluid import files
from fluid.errors import ConfigError
from fluid.remote import Url, is_url
from launch.spec import Code, Rendered, RunSpec

ENGINES = {
  "local": "launch.engines.local",
  "slurm": "launch.engines.slurm",
  "gke": "launch.engines.gke",
  "tpu_vm": "launch.engines.tpu_vm",
  "skypilot": "launch.engines.skypilot",
}
ALIVE = ("queued", "running", "restarting", "held")
T = TypeVar("T")
ASKED = 3  # times that a scheduler is asked which does not answer, and
PAUSE = 5.0  # seconds between them.
MACHINE = ". launch/machine.sh -r"  # Shell that installs a file's requirements.


class Refused(ConfigError):
  """A scheduler's command that failed."""


class Unanswered(Refused):
  """A question that it did not answer: nothing was changed, it may be asked again."""


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


def remote(name: str, options: Mapping[str, str]) -> "Remote":
  """The engine `name`, which is not 'local', with what `--set` says."""
  return importlib.import_module(ENGINES[name]).Engine(options)


def checked(
  engine: str, given: Mapping[str, str] | None, options: Mapping[str, str]
) -> dict[str, str]:
  """What `--set` says, where the engine knows all of it."""
  for name in given or {}:
    if name not in options:
      lines = ", ".join(f"{k} ({v})" for k, v in options.items())
      raise ConfigError(f"--set {name}: --on {engine} knows {lines}")
  seconds((given or {}).get("grace", "0"))
  return dict(given or {})


def seconds(grace: str) -> str:
  """A grace of `--set`, which has to be a number of seconds."""
  if not grace.isdigit():
    raise ConfigError(f"--set grace={grace}: it is a whole number of seconds")
  return grace


def patiently(
  act: Callable[[], T],
  asked: int = 0,
  pause: float | None = None,
  of: type[ConfigError] | tuple[type[ConfigError], ...] = Unanswered,
) -> T:
  """act(), and again while a scheduler fails, which is said once.

  Args:
    asked: times in a row that it may fail (default: ASKED).
    pause: seconds between them (default: PAUSE).
    of: failures that may pass.

  Raises:
    ConfigError: the last failure.
  """
  asked, pause = asked or ASKED, PAUSE if pause is None else pause
  for failures in range(1, asked):
    try:
      return act()
    except of as e:
      if failures == 1:
        again = f"asked again every {pause:g} s, {asked} times in all"
        print(f"warning: {e}; {again}", file=sys.stderr, flush=True)
    time.sleep(pause)
  return act()


@dataclasses.dataclass(frozen=True)
class Found:
  """What an engine says of a job that it knows.

  Attributes:
    state: one of ALIVE, or where it keeps jobs that are over 'failed', 'ended',
      'cancelled' (by somebody) or 'lost' (taken away).
    job: the engine's id.
    note: why.
  """

  state: str
  job: str = ""
  note: str = ""


class Remote(abc.ABC):
  """A scheduler, by its commands. Rendering needs none of them.

  Attributes:
    name: of ENGINES.
    chains: whether a job can wait for others; else stages are submitted as they become
      ready.
    losses: times that a job may vanish without a new checkpoint before it has failed.
    gone: what a job is that was submitted and that it does not know: 'cancelled' where
      it forgets none but those that somebody deletes, else 'lost'.
    buckets: whether the work folder may lie in one.
    mounts: options by which its machines see a folder of this one, and their values.
    shares: whether its machines have the files of this one, by the same paths.
    where: options that say which of its jobs it sees.
    keeps: whether it has what a job printed that is over.
    remedy: what to do where its command is not found.
    known: what its command says of a name that is there already.
    options: what `--set` said.
  """

  name: str
  chains = False
  losses = 5
  gone = "lost"
  buckets = True
  mounts: Mapping[str, str] = {}
  shares = False
  where: tuple[str, ...] = ()
  keeps = True
  remedy: str
  known = ""
  options: dict[str, str]

  @abc.abstractmethod
  def code(self, workdir: Path | Url) -> Code:
    """What jobs run, as it is now; writes nothing."""

  def sees(self, workdir: Path) -> bool:
    """Whether its machines have a folder of this one, as far as options say."""
    return self.shares or bool(self.options.keys() & self.mounts.keys())

  @abc.abstractmethod
  def render(self, spec: RunSpec) -> Rendered:
    """What would be submitted; raises ConfigError where the hardware does not fit."""

  def submit(self, spec: RunSpec, after: tuple[str, ...]) -> str:
    """Hands the stage over, where that was not done before; -> the engine's id.

    Args:
      after: ids of jobs that have to end well before; empty unless `chains`.
    """
    del after
    self.call(written(self.render(spec)), known=self.known)
    return spec.key

  @abc.abstractmethod
  def states(self, keys: list[str]) -> dict[str, Found]:
    """Key -> what the engine says, for those that it knows."""

  @abc.abstractmethod
  def stop(self, key: str, job: str) -> None:
    """Ends a job for good; no error where there is none."""

  @abc.abstractmethod
  def logs(self, key: str, log: str, *, follow: bool) -> list[str]:
    """The command that prints what a job printed."""

  def ask(self, argv, *, known: str = "") -> str:
    """What a command prints that changes nothing.

    Args:
      known: text in an error that is none.

    Raises:
      ConfigError: it is not installed.
      Unanswered: it failed.
    """
    return self.call(argv, known=known, error=Unanswered)

  def ask_json(self, argv, empty: str = "", *, known: str = "") -> Any:
    """What such a command prints as JSON; `empty` is what printing nothing means."""
    said = self.ask(argv, known=known)
    try:
      return json.loads(said or empty)
    except ValueError:
      raise Unanswered(f"{argv[0]} answers '{said.strip()[:80]}', no JSON") from None

  def call(self, argv, *, known: str = "", error: type[Refused] = Refused) -> str:
    """Runs a command of the engine; -> what it printed.

    Args:
      known: text in an error that is none.
      error: what is raised where it fails.

    Raises:
      ConfigError: it is not installed.
      Refused: it failed; one line.
    """
    try:
      done = subprocess.run(argv, capture_output=True, text=True)
    except FileNotFoundError:
      raise ConfigError(
        f"--on {self.name} needs the command {argv[0]}, which is not installed here: "
        f"{self.remedy}"
      ) from None
    if done.returncode and not (known and known in done.stderr):
      said = done.stderr.strip() or done.stdout.strip() or "no output"
      raise error(f"{argv[0]} refuses: {_wrong(said)}")
    return done.stdout


def _wrong(said: str) -> str:
  """What is wrong, on one line, by what a command printed: most say that last.

  gcloud says it first, and in the lines after it what to do.
  """
  lines = said.splitlines()
  for n, line in enumerate(lines):
    if line.startswith("ERROR:"):
      return " ".join(" ".join(lines[n:]).split())[:300]
  return lines[-1].strip()[-300:]


def command(spec: RunSpec, *, grace: str = "", join: bool = True) -> list[str]:
  """A stage's argv on its hardware: how its processes join, and what time they have."""
  argv = list(spec.argv)
  if join and spec.hardware.processes > 1:
    argv.append("--coordinator=auto")
  training = spec.stage.startswith("run/")
  if training and spec.hardware.slices > 1:
    argv.append(f"--config.mesh.slice={spec.hardware.slices}")
  if grace and training:
    argv.append(f"--grace={grace}")
  return argv


def written(rendered: Rendered) -> tuple[str, ...]:
  """Writes the files; -> the command that submits them."""
  submit = rendered.submit
  for path, text in rendered.files.items():
    files.write_text(path, text)
    if is_url(path):  # Commands read files of this machine alone.
      near = Path(tempfile.mkdtemp(prefix="fluid-")) / path.rpartition("/")[2]
      atexit.register(shutil.rmtree, near.parent, ignore_errors=True)
      near.write_text(text)
      submit = tuple(arg.replace(path, str(near)) for arg in submit)
  return submit
