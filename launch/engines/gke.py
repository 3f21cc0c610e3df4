"""Kubernetes with JobSet (GKE, or any cluster that has it): `kubectl` and a manifest.

A JobSet restarts as a whole, as slices do: whatever ends a pod but an exit code that no
restart mends. Field names: kubernetes-sigs/jobset, jobset.x-k8s.io/v1alpha2.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

import yaml

from fluid.errors import ConfigError
from fluid.remote import Url
from launch import code, engines
from launch.spec import FATAL, RESTARTS, Code, Rendered, RunSpec, slug

_LABEL = "jobset.sigs.k8s.io/jobset-name"
_PORT = 8476
OPTIONS = {
  "image": "the container, by digest",
  "namespace": "of the jobs",
  "queue": "of Kueue",
  "service_account": "of the pods",
  "priority": "priority class",
  "claim": "a PersistentVolumeClaim that holds the work folder",
  "mount": "where the claim is mounted (default: the work folder's first part)",
  "gpu": "GKE's name of the GPU, such as nvidia-h100-80gb",
  "grace": "seconds from SIGTERM to SIGKILL where no spot node is taken away",
}


class Engine(engines.Remote):
  """See launch.engines.Remote."""

  name = "gke"
  remedy = "cloud.google.com/kubernetes-engine/docs says how, then log in to a cluster"
  known = "AlreadyExists"
  mounts = {"claim": "NAME of a PersistentVolumeClaim (Filestore, GCS FUSE)"}
  gone = "cancelled"  # A JobSet stays until it is deleted.
  where = ("namespace",)

  def __init__(self, options: Mapping[str, str] | None = None):
    self.options = engines.checked(self.name, options, OPTIONS)

  def code(self, workdir: Path | Url) -> Code:
    del workdir
    image = self.options.get("image")
    if not image:
      raise ConfigError(
        "--on gke needs the image that has the code: --set image=NAME@sha256:..."
      )
    return code.in_image(image)

  def render(self, spec: RunSpec) -> Rendered:
    file = f"{spec.folder}/jobset.yaml"
    text = yaml.safe_dump(self.manifest(spec), sort_keys=False, width=1000)
    return Rendered(
      files={file: text},
      submit=self._kubectl("create", "-f", file),
    )

  def manifest(self, spec: RunSpec) -> dict:
    """The JobSet, as an object."""
    h, get = spec.hardware, self.options.get
    each = h.hosts // h.slices
    spot = {"cloud.google.com/gke-spot": "true"} if h.spot else {}
    if h.tpu:
      where = {
        "cloud.google.com/gke-tpu-accelerator": h.tpu.gke,
        "cloud.google.com/gke-tpu-topology": h.topology,
      }
      devices = {"google.com/tpu": h.chips // h.hosts}
    elif h.gpus:
      where = {"cloud.google.com/gke-accelerator": get("gpu")} if get("gpu") else {}
      devices = {"nvidia.com/gpu": h.gpus}
    else:
      where, devices = {}, {}
    container = {
      "name": "fluid",
      "image": spec.code.image,
      "command": ["bash", "-c", self._shell(spec)],
      "env": [{"name": k, "value": v} for k, v in spec.env.items()],
      **(
        {"resources": {"limits": devices, "requests": dict(devices)}} if devices else {}
      ),
      **({"ports": [{"containerPort": _PORT}]} if h.processes > 1 else {}),
    }
    pod = {
      "restartPolicy": "Never",
      "terminationGracePeriodSeconds": int(self._grace(spec)),
      # Between slices a pod finds the others by the addresses of their nodes.
      **(
        {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if h.tpu else {}
      ),
      **({"nodeSelector": where | spot} if where or spot else {}),
      **(
        {"serviceAccountName": get("service_account")} if get("service_account") else {}
      ),
      **({"priorityClassName": get("priority")} if get("priority") else {}),
      "containers": [container],
    }
    if get("claim"):
      mount = get("mount") or "/" + spec.workdir.strip("/").split("/")[0]
      container["volumeMounts"] = [{"name": "work", "mountPath": mount}]
      claim = {"claimName": get("claim")}
      pod["volumes"] = [{"name": "work", "persistentVolumeClaim": claim}]
    label = {"fluid/sweep": slug(spec.sweep, 63)}
    wrong = {"containerName": "fluid", "operator": "In", "values": list(FATAL)}
    job = {
      "backoffLimit": 0,
      "completionMode": "Indexed",
      "parallelism": each,
      "completions": each,
      "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": wrong}]},
      "template": {"metadata": {"labels": label}, "spec": pod},
    }
    exclusive = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    # One node pool is one slice.
    alone = {exclusive: "cloud.google.com/gke-nodepool"} if h.tpu and each > 1 else {}
    queue = {"kueue.x-k8s.io/queue-name": get("queue")} if get("queue") else {}
    return {
      "apiVersion": "jobset.x-k8s.io/v1alpha2",
      "kind": "JobSet",
      "metadata": {
        "name": spec.key,
        **({"namespace": get("namespace")} if get("namespace") else {}),
        "labels": label | queue,
        "annotations": {"fluid/stage": spec.stage, "fluid/commit": spec.code.commit}
        | alone,
      },
      "spec": {
        "failurePolicy": {
          "maxRestarts": RESTARTS,
          "rules": [
            {
              "name": "no-restart-mends-it",
              "action": "FailJobSet",
              "onJobFailureReasons": ["PodFailurePolicy"],
            }
          ],
        },
        "replicatedJobs": [
          {"name": "slice", "replicas": h.slices, "template": {"spec": job}}
        ],
      },
    }

  def _grace(self, spec: RunSpec) -> str:
    # Spot nodes give pods 15 seconds, whatever they ask for.
    return "15" if spec.hardware.spot else self.options.get("grace", "120")

  def _shell(self, spec: RunSpec) -> str:
    grace = self._grace(spec)
    h = spec.hardware
    if h.tpu or h.processes == 1:  # jax finds the others of a TPU by itself.
      return "exec " + shlex.join(engines.command(spec, grace=grace))
    if h.tasks > 1:
      raise ConfigError(f"{spec.stage}: a pod runs one process, not {h.tasks}: cpu:Nx1")
    first = f"{spec.key}-slice-0-0.{spec.key}:{_PORT}"
    argv = shlex.join(engines.command(spec, grace=grace, join=False))
    return (
      f"exec {argv} --coordinator={first} --processes={h.processes} "
      "--process=$JOB_COMPLETION_INDEX"
    )

  def states(self, keys: list[str]) -> dict[str, engines.Found]:
    said = self.ask_json(self._kubectl("get", "jobsets", "-o", "json"))
    found = {}
    for item in said["items"]:
      key, status = item["metadata"]["name"], item.get("status", {})
      if key not in keys:
        continue
      last = (status.get("conditions") or [{}])[-1]
      note = last.get("message", "")
      if status.get("terminalState") == "Failed":
        state = "failed"
        note = ": ".join(filter(None, (note, self._last(key))))
      elif status.get("terminalState") == "Completed":
        state = "ended"
      elif any(
        j.get("active") or j.get("ready")
        for j in status.get("replicatedJobsStatus", ())
      ):
        state = "running"
      elif item["spec"].get("suspend"):
        state = "queued"
      else:
        state = "restarting" if status.get("restarts") else "queued"
      found[key] = engines.Found(state, key, note)
    return found

  def stop(self, key: str, job: str) -> None:
    self.call(self._kubectl("delete", "jobset", key, "--ignore-not-found"))

  def logs(self, key: str, log: str, *, follow: bool) -> list[str]:
    flags = ["-f", "--max-log-requests=64"] if follow else []
    return [*self._printed(key), "--prefix", "--tail=-1", *flags]

  def _last(self, key: str) -> str:
    """The last line that it printed; '' where its pods are gone."""
    try:
      lines = self.ask([*self._printed(key), "--tail=1"]).strip().splitlines()
    except engines.Refused:
      return ""
    return lines[-1].strip()[-160:] if lines else ""

  def _printed(self, key: str) -> tuple[str, ...]:
    chosen = f"{_LABEL}={key},batch.kubernetes.io/job-completion-index=0"
    return self._kubectl("logs", "-l", chosen)

  def _kubectl(self, *args: str) -> tuple[str, ...]:
    space = self.options.get("namespace")
    return ("kubectl", *((f"--namespace={space}",) if space else ()), *args)
