"""One stage as an engine gets it, and what an engine makes of it.

Both are plain data: nothing here knows where a sweep runs, and rendering touches no
file, process or network.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping

from launch.hardware import Hardware

KEY = 40  # Characters: what is left of 63 once JobSet has named pods after it.
RESTARTS = 100  # By the engine, of a run that ends with 75 or by a signal.
FATAL = (2, 3, 4, 5)  # Exit codes that no restart mends (docs/reliability.md).


@dataclasses.dataclass(frozen=True)
class Code:
  """What a job runs, which a later commit does not change.

  Attributes:
    commit: that its runs record; with '+changes' where files differed from it.
    folder: a copy of the code, on a file system that the machines share.
    image: of a container, by digest.
    repository: that machines clone at `commit`.
  """

  commit: str
  folder: str = ""
  image: str = ""
  repository: str = ""


@dataclasses.dataclass(frozen=True)
class RunSpec:
  """One stage on some engine.

  Attributes:
    sweep: the sweep's name.
    stage: id of the stage, 'run/NAME'.
    argv: the command, beginning with 'python'; without what joins processes.
    env: of its processes.
    workdir: of the sweep.
    hardware, code: where and what.
  """

  sweep: str
  stage: str
  argv: tuple[str, ...]
  env: Mapping[str, str]
  workdir: str
  hardware: Hardware
  code: Code

  @property
  def key(self) -> str:
    """The name that the engine has for it, of [a-z0-9-], 40 characters at most."""
    made_of = [self.argv, self.workdir, self.code.commit, str(self.hardware)]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:6]
    return f"{slug(f'{self.sweep}-{self.stage}', KEY - 7)}-{digest}"

  @property
  def name(self) -> str:
    """Of its files: the run's name, or kind and name of another stage."""
    kind, _, name = self.stage.partition("/")
    return name if kind == "run" else f"{kind}-{name}"

  @property
  def folder(self) -> str:
    """Of what was rendered."""
    return f"{self.workdir}/jobs/{self.name}"

  @property
  def exit(self) -> str:
    """The file in which the job says how it ended."""
    return f"{self.folder}/exit.json"

  @property
  def log(self) -> str:
    return f"{self.workdir}/logs/{self.name}.log"


@dataclasses.dataclass(frozen=True)
class Rendered:
  """What is submitted.

  Attributes:
    files: path -> text, to write before.
    submit: the command.
  """

  files: Mapping[str, str]
  submit: tuple[str, ...]


def slug(text: str, length: int) -> str:
  """Text as a name of [a-z0-9-] that begins with a letter."""
  words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
  words = words if words[:1].isalpha() else f"s-{words}"
  return words[:length].rstrip("-")
