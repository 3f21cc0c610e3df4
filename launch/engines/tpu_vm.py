"""TPU VMs by queued resources: `gcloud`. Legacy: for multislice outside GKE.

Google no longer develops the Cloud TPU API; new generations are on GKE and Compute
Engine. What a spot resource loses is deleted and created anew by the next
`launch.sweep`, so use --watch. On each machine systemd restarts the training.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

from fluid.errors import NO_PROGRESS, ConfigError
from fluid.remote import Url, is_url
from launch import code, engines
from launch.spec import FATAL, RESTARTS, Code, Rendered, RunSpec

OPTIONS = {
  "zone": "of the TPUs",
  "project": "to bill (default: gcloud's)",
  "repository": "to clone (default: the remote 'origin')",
  "setup": "a line of shell that mounts the work folder and installs (default: "
  "'. launch/machine.sh -r requirements-tpu.txt')",
  "runtime": "image of the machines (default: the generation's)",
  "service_account": "of the machines; may delete queued resources",
  "network": "of the machines",
}
# Besides, what a clone or a setup that fails is made to end with, as Python is by a
# traceback, and what a shell says of no Python: no restart on chips that are paid for
# mends that.
_FATAL = (1, *FATAL, 126, 127, 128)
_STATES = {
  "ACTIVE": "running",
  "FAILED": "lost",
  "SUSPENDING": "lost",
  "SUSPENDED": "lost",
  "DELETING": "cancelled",
}


class Engine(engines.Remote):
  """See launch.engines.Remote."""

  name = "tpu_vm"
  remedy = "cloud.google.com/sdk/docs/install says how, then gcloud auth login"
  known = "ALREADY_EXISTS"
  losses = RESTARTS  # A spot resource that is taken away does not come back by itself.
  mounts = {"setup": "'mount ...; . launch/machine.sh -r requirements-tpu.txt'"}
  gone = "cancelled"  # It stays, suspended, until it is deleted.
  where = ("zone", "project")
  keeps = False

  def __init__(self, options: Mapping[str, str] | None = None):
    self.options = engines.checked(self.name, options, OPTIONS)
    if "zone" not in self.options:
      raise ConfigError("--on tpu_vm needs --set zone=ZONE")

  def code(self, workdir: Path | Url) -> Code:
    del workdir
    return code.cloned(self.options.get("repository", ""))

  def render(self, spec: RunSpec) -> Rendered:
    h, get = spec.hardware, self.options.get
    if not h.tpu:
      raise ConfigError(f"{spec.stage} is for {h}, and tpu_vm has TPUs: v5p:4x4x4")
    file = f"{spec.folder}/startup.sh"
    many = (
      [f"--node-count={h.slices}", f"--node-prefix={spec.key}"]
      if h.slices > 1
      else [f"--node-id={spec.key}"]
    )
    optional = {"service-account": get("service_account"), "network": get("network")}
    return Rendered(
      files={file: self._startup(spec)},
      submit=self._gcloud(
        "create",
        spec.key,
        f"--accelerator-type={h.accelerator}",
        f"--runtime-version={get('runtime') or h.tpu.runtime}",
        *many,
        *(["--spot"] if h.spot else []),
        *(f"--{k}={v}" for k, v in optional.items() if v),
        f"--metadata-from-file=startup-script={file}",
        "--async",
      ),
    )

  def _startup(self, spec: RunSpec) -> str:
    delete = shlex.join(
      self._gcloud("delete", spec.key, "--force", "--quiet", "--async")
    )
    folder, end, log = map(shlex.quote, (spec.folder, spec.exit, spec.log))
    if is_url(spec.workdir):  # An object is replaced whole.
      ready, send = ":", "gcloud storage cp -"
      keep = f"{{ gcloud storage cat {log} 2>/dev/null; cat; }} | {send} {log}"
      say = f"{send} {end}"
    else:
      ready = f'mkdir -p {folder} "$(dirname {log})"'
      keep, say = f"cat >> {log}", f"cat > {end}"
    return _STARTUP.format(
      env="\n".join(f"export {k}={shlex.quote(v)}" for k, v in spec.env.items()),
      repository=shlex.quote(spec.code.repository),
      commit=spec.code.commit,
      setup=self.options.get("setup") or f"{engines.MACHINE} requirements-tpu.txt",
      command=shlex.join(engines.command(spec, grace="28")),
      restarts=RESTARTS,
      given_up=NO_PROGRESS,
      fatal=" ".join(map(str, _FATAL)),
      cases="|".join(map(str, (0, *_FATAL))),
      ready=ready,
      keep=keep,
      say=say,
      delete=delete,
    )

  def submit(self, spec: RunSpec, after: tuple[str, ...]) -> str:
    code.committed(spec.code)
    # What was suspended never runs again, and goes on counting against the quota.
    if found := self.states([spec.key]).get(spec.key):
      if found.state in engines.ALIVE:
        return spec.key
      self.call(self._gcloud("delete", spec.key, "--force", "--quiet"))
    return super().submit(spec, after)

  def states(self, keys: list[str]) -> dict[str, engines.Found]:
    query = self._gcloud("list", "--format=json(name.basename(),state)")
    found = {}
    for item in self.ask_json(query, "[]"):
      key, state = item["name"].rpartition("/")[2], item["state"]["state"]
      if key in keys:
        found[key] = engines.Found(_STATES.get(state, "queued"), key, state)
    return found

  def stop(self, key: str, job: str) -> None:
    found = self.states([key]).get(key)
    if found and found.state != "cancelled":
      self.call(self._gcloud("delete", key, "--force", "--quiet", "--async"))

  def logs(self, key: str, log: str, *, follow: bool) -> list[str]:
    tail = f"journalctl -u fluid -o cat --no-pager{' -f' if follow else ''}"
    ssh = self._gcloud("ssh", key, "--node=0", "--worker=0", f"--command=sudo {tail}")
    return list(ssh)

  def _gcloud(self, verb: str, *args: str) -> tuple[str, ...]:
    where = [f"--zone={self.options['zone']}"]
    if project := self.options.get("project"):
      where.append(f"--project={project}")
    return ("gcloud", "compute", "tpus", "queued-resources", verb, *args, *where)


# Runs as root at every boot, and what it starts itself would hear SIGTERM too late.
# after.sh runs whenever the training ends: the first machine of a slice keeps what was
# printed, as a spot machine is about to vanish, and for good it deletes all of them.
_STARTUP = """#!/bin/bash
mkdir -p /opt/fluid && cd /opt/fluid
cat > run.sh <<'RUN'
#!/bin/bash
{env}
trap 'exit 1' ERR
cd /opt/fluid
starts=$(cat starts 2>/dev/null || echo 0)
echo $((starts + 1)) > starts
if [ $starts -gt {restarts} ]; then
  echo "error: started again {restarts} times on this machine"
  exit {given_up}
fi
for n in 1 2 3 4 5; do
  [ -d code ] && break
  rm -rf new
  git clone {repository} new && mv new code || sleep 10
done
cd code && git checkout --quiet {commit}
{setup}
{ready}
exec {command}
RUN
cat > after.sh <<'AFTER'
#!/bin/bash
of=http://metadata.google.internal/computeMetadata/v1/instance/attributes
[ "$(curl -s -H Metadata-Flavor:Google $of/agent-worker-number)" = 0 ] || exit 0
journalctl -o cat --no-pager "_SYSTEMD_INVOCATION_ID=$INVOCATION_ID" |
  {keep}
case "$EXIT_STATUS" in {cases})
  printf '{{"code": %d, "state": "RUNNING"}}\\n' "$EXIT_STATUS" | {say}
  {delete} ;;
esac
AFTER
chmod +x run.sh after.sh
systemd-run --unit=fluid -p KillMode=mixed -p TimeoutStopSec=28 \\
  -p Restart=on-failure -p RestartSec=10 -p RestartPreventExitStatus="{fatal}" \\
  -p ExecStopPost=/opt/fluid/after.sh /opt/fluid/run.sh
"""
