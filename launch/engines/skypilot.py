"""SkyPilot's managed jobs: single TPU slices and spot GPUs, on whatever cloud has them.

`sky` (in an environment of its own; no import here) keeps jobs going on spot machines.
No multislice. Machines clone the code from its repository.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

import yaml

from fluid.errors import REQUEUE, ConfigError
from fluid.remote import Url
from launch import code, engines
from launch.spec import Code, Rendered, RunSpec

OPTIONS = {
  "infra": "cloud/region/zone (default: wherever it is cheapest)",
  "repository": "to clone (default: the remote 'origin')",
  "gpu": "SkyPilot's name of the GPU, such as H100",
  "setup": "a line of shell that installs (default: by launch/machine.sh)",
  "mount": "PATH=gs://BUCKET, mounted at PATH: for data, or the work folder of one "
  "machine that is not spot",
}
_STATES = {
  "PENDING": "queued", "SUBMITTED": "queued", "STARTING": "queued",
  "RUNNING": "running", "RECOVERING": "restarting", "CANCELLING": "running",
  "SUCCEEDED": "ended", "CANCELLED": "cancelled",
}  # fmt: skip
# By itself it lists the newest 50 jobs, and not why one failed.
_QUEUE = ("sky", "jobs", "queue", "--all", "--verbose", "-o", "json")
# What it says where its controller is stopped, as it is some minutes after the last job
# ended, or is not there yet; and what, where one that is not there is to be started.
_STOPPED, _NEVER = "No in-progress managed jobs", "does not exist"


class Engine(engines.Remote):
  """See launch.engines.Remote."""

  name = "skypilot"
  mounts = {"mount": "PATH=gs://BUCKET", "setup": "'mount ...; ...'"}
  remedy = "pip install 'skypilot[gcp]' in an environment of its own, then sky check"

  def __init__(self, options: Mapping[str, str] | None = None):
    self.options = engines.checked(self.name, options, OPTIONS)

  def sees(self, workdir: Path) -> bool:
    path = self.options.get("mount", "").partition("=")[0]
    return "setup" in self.options or bool(path) and workdir.is_relative_to(path)

  def code(self, workdir: Path | Url) -> Code:
    del workdir
    return code.cloned(self.options.get("repository", ""))

  def render(self, spec: RunSpec) -> Rendered:
    file = f"{spec.folder}/task.yaml"
    text = yaml.safe_dump(self.task(spec), sort_keys=False, width=1000)
    return Rendered(
      files={file: text},
      submit=("sky", "jobs", "launch", "-n", spec.key, "-y", "-d", file),
    )

  def task(self, spec: RunSpec) -> dict:
    """The task, as an object."""
    h, get = spec.hardware, self.options.get
    if h.slices > 1:
      raise ConfigError(
        f"{spec.stage} is for {h}, and SkyPilot has no multislice: --on gke or tpu_vm"
      )
    if h.tasks > 1:
      raise ConfigError(f"{spec.stage}: a machine runs one process, not {h.tasks}")
    resources: dict = {}
    if get("infra"):
      resources["infra"] = get("infra")
    if h.tpu:
      resources["accelerators"] = f"tpu-{h.accelerator}:1"
      resources["accelerator_args"] = {"runtime_version": h.tpu.runtime}
    elif h.gpus:
      if not get("gpu"):
        raise ConfigError("--on skypilot needs the GPU's name: --set gpu=H100")
      resources["accelerators"] = f"{get('gpu')}:{h.gpus}"
    if h.spot:
      resources["use_spot"] = True
    resources["job_recovery"] = {"recover_on_exit_codes": [REQUEUE]}
    task = {
      "name": spec.key,
      "resources": resources,
      "num_nodes": 1 if h.tpu else h.hosts,
      "envs": dict(spec.env),
      "workdir": {"url": spec.code.repository, "ref": spec.code.commit},
      "setup": get("setup") or f"{engines.MACHINE} {_requirements(h)}",
      "run": self._shell(spec),
    }
    if mount := get("mount"):
      path, _, source = mount.partition("=")
      if Path(spec.workdir).is_relative_to(path) and (h.spot or h.hosts > 1):
        rest = Path(spec.workdir).relative_to(path)
        raise ConfigError(
          f"{spec.stage} is for {h}, and what is written to the mount {path} is sent "
          "on later: a machine that goes takes checkpoints with it, and others do not "
          f"see them: --workdir {source.rstrip('/')}/{rest}"
        )
      task["file_mounts"] = {path: {"source": source, "mode": "MOUNT_CACHED"}}
    return task

  def _shell(self, spec: RunSpec) -> str:
    h = spec.hardware
    begin = "exec" if self.options.get("setup") else ". .venv/bin/activate && exec"
    if h.tpu or h.processes == 1:
      return f"{begin} " + shlex.join(engines.command(spec, grace="30"))
    argv = shlex.join(engines.command(spec, grace="30", join=False))
    return (
      f'{begin} {argv} --coordinator="$(echo "$SKYPILOT_NODE_IPS" | head -n1):8476" '
      "--processes=$SKYPILOT_NUM_NODES --process=$SKYPILOT_NODE_RANK"
    )

  def submit(self, spec: RunSpec, after: tuple[str, ...]) -> str:
    code.committed(spec.code)
    # Names are not unique there: one that is known was submitted before.
    found = self.states([spec.key]).get(spec.key)
    if found and found.state in engines.ALIVE:
      return spec.key
    return super().submit(spec, after)

  def states(self, keys: list[str]) -> dict[str, engines.Found]:
    jobs = self.ask_json(_QUEUE, "null", known=_STOPPED)
    if jobs is None:  # Only a controller that runs knows how jobs ended.
      jobs = self.ask_json([*_QUEUE, "--refresh"], "[]", known=_NEVER)
    found: dict[str, engines.Found] = {}
    for job in sorted(jobs, key=lambda j: j["job_id"]):  # The last of a name counts.
      key, state = job["job_name"], job["status"].rpartition(".")[2]
      if key in keys:
        note = " ".join((job.get("failure_reason") or "").split())
        found[key] = engines.Found(
          _STATES.get(state, "failed"), str(job["job_id"]), note
        )
    return found

  def stop(self, key: str, job: str) -> None:
    found = self.states([key]).get(key)
    if found and found.state in engines.ALIVE:
      self.call(["sky", "jobs", "cancel", "-n", key, "-y"])

  def logs(self, key: str, log: str, *, follow: bool) -> list[str]:
    how = ["--follow", "--tail", "0"] if follow else ["--no-follow"]  # From its start.
    return ["sky", "jobs", "logs", "-n", key, *how]


def _requirements(h) -> str:
  if h.tpu:
    return "requirements-tpu.txt"
  return "requirements.txt" + (" 'jax[cuda12]>=0.10,<0.13'" if h.gpus else "")
