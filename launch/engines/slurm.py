"""Slurm: a batch script for each stage, on a file system that all nodes share.

Slurm restarts what it preempts and what loses a node; the script requeues what ended by
a signal or with 75. The rest is `sbatch`, `squeue` and `scancel`.
tests/e2e/drills_slurm.py drives a real one.
"""

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from fluid.errors import REQUEUE, ConfigError
from fluid.remote import Url
from launch import code, engines
from launch.spec import RESTARTS, Code, Rendered, RunSpec

_QUERY = ("squeue", "-h", "--me", "-t", "all", "-o", "%j|%i|%T|%r")
PATIENCE = 300  # seconds for which the script asks a controller that is away.
_OWN = ("job-name", "output", "error", "dependency", "array", "nodes", "ntasks",
        "ntasks-per-node")  # fmt: skip
_HELD = re.compile(r"held", re.I)  # In the reason for which a job waits.
_GONE = ("CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED",
         "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")  # fmt: skip


class Engine(engines.Remote):
  """See launch.engines.Remote.

  Options: any of sbatch, by its long name (partition, account, time, mem, qos; with an
  empty value where it takes none: exclusive=), and

  Attributes:
    setup: a line of shell that makes `python` the right one (default: this one).
    grace: seconds between SIGTERM and SIGKILL (KillWait of slurm.conf).
  """

  name = "slurm"
  chains = True
  buckets = False
  shares = True
  remedy = "submit from a login node of the cluster"

  def __init__(self, options: Mapping[str, str] | None = None):
    self.options = dict(options or {})
    options = dict(self.options)
    here = shlex.quote(os.path.dirname(sys.executable))
    self._setup = options.pop("setup", f'export PATH={here}:"$PATH"')
    self._grace = engines.seconds(options.pop("grace", "30"))
    for name in options:
      if not re.fullmatch(r"[a-z][a-z-]+", name):
        raise ConfigError(f"--set {name}: sbatch has no such option")
      if name in _OWN:
        raise ConfigError(f"--set {name}: that is the launcher's (--topology HOSTSxN)")
    self._options = options

  def code(self, workdir: Path | Url) -> Code:
    return code.copied(Path(workdir))

  def render(self, spec: RunSpec) -> Rendered:
    h = spec.hardware
    if h.tpu:
      raise ConfigError(
        f"{spec.stage} is for {h}, and Slurm has no TPUs: --topology gpu:1x8"
      )
    ask = {
      "job-name": spec.key,
      "nodes": h.hosts,
      "ntasks-per-node": h.tasks,
      **({"gpus-per-node": h.gpus} if h.gpus else {}),
      "output": spec.log,
      "open-mode": "append",
      "signal": "TERM@120",
      **self._options,
    }
    lines = [f"#SBATCH --{k}{_quoted(str(v))}" for k, v in ask.items()]
    script = "\n".join(
      [
        "#!/bin/bash",
        *lines,
        "#SBATCH --requeue",
        *(f"export {k}={shlex.quote(v)}" for k, v in spec.env.items()),
        _SCRIPT.format(
          folder=shlex.quote(spec.code.folder),
          setup=self._setup,
          command=shlex.join(engines.command(spec, grace=self._grace)),
          exit=shlex.quote(spec.exit),
          requeue=REQUEUE,
          restarts=RESTARTS,
          patience=PATIENCE,
        ),
      ]
    )
    file = f"{spec.folder}/run.sbatch"
    return Rendered(
      files={file: script},
      submit=("sbatch", "--parsable", "--kill-on-invalid-dep=yes", file),
    )

  def submit(self, spec: RunSpec, after: tuple[str, ...]) -> str:
    rendered = self.render(spec)
    code.write(spec.code)
    Path(spec.log).parent.mkdir(parents=True, exist_ok=True)
    first, *rest = engines.written(rendered)
    wait = ",".join(["singleton", *(f"afterok:{i}" for i in after)])
    said = self.call([first, f"--dependency={wait}", *rest])
    return said.strip().splitlines()[-1].split(";")[0]

  def states(self, keys: list[str]) -> dict[str, engines.Found]:
    found: dict[str, engines.Found] = {}
    lines = self.ask(_QUERY).splitlines()
    rows = [(x.strip().split("|") + [""] * 3)[:4] for x in lines]
    # What is over is known for minutes; of one name the last counts, if none lives.
    rows.sort(key=lambda row: (row[2] not in _GONE, len(row[1]), row[1]))
    for key, job, state, why in rows:
      if key not in keys:
        continue
      if state in _GONE:
        # Slurm itself cancels what waits for a job that fails.
        by_hand = state == "CANCELLED" and why != "DependencyNeverSatisfied"
        found[key] = engines.Found("cancelled" if by_hand else "lost", job, state)
      elif state != "PENDING":
        found[key] = engines.Found("running", job)
      elif _HELD.search(why):
        found[key] = engines.Found("held", job, f"{why}: scontrol release {job}")
      else:
        again = why == "BeginTime"
        found[key] = engines.Found("restarting" if again else "queued", job, why)
    return found

  def stop(self, key: str, job: str) -> None:
    self.call(["scancel", "--me", f"--name={key}"])

  def logs(self, key: str, log: str, *, follow: bool) -> list[str]:
    return ["tail", "-n", "+1", *(["-F"] if follow else []), log]


def _quoted(text: str) -> str:
  """What follows the name of an option: nothing, for one that is a flag."""
  plain = re.fullmatch(r"[\w@%+=:,./-]*", text)
  return ("=" if text else "") + (text if plain else f'"{text}"')


# The shell stands by while the processes save. Slurm is asked whether the job goes on:
# one that was cancelled must not come back, one that was preempted must, if need be by
# a new submission. A controller may be away meanwhile. $rc is the highest status of
# all processes.
_SCRIPT = """
trap : TERM
(cd {folder} && {setup} && exec srun --kill-on-bad-exit=0 --unbuffered {command}) &
child=$!
while wait $child; rc=$?; kill -0 $child 2>/dev/null; do :; done
SECONDS=0
until job=$(scontrol show job -o "$SLURM_JOB_ID" | grep JobState=) ||
  [ $SECONDS -ge {patience} ]; do sleep 5; done
[[ $job =~ JobState=([A-Z_]+) ]] && state=${{BASH_REMATCH[1]}} || state=
if [ "$state" != RUNNING ]; then
  [[ $job =~ PreemptTime=[0-9] ]] && state=PREEMPTED
  [[ $job =~ Reason=TimeLimit ]] && state=TIMEOUT
fi
tries=${{SLURM_RESTART_COUNT:-0}}
printf '{{"code": %d, "restarts": %d, "state": "%s"}}\\n' $rc $tries "$state" > {exit}
if [ "$state" = RUNNING ] && [ $tries -lt {restarts} ] &&
  {{ [ $rc = {requeue} ] || [ $rc -gt 128 ]; }}; then
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit $rc
"""
