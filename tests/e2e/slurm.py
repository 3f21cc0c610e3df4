"""Slurm on one machine: a controller and two nodes, which end with the block.

Needs the package slurm-wlm and root; no munge, no database. Ports are free ones, as a
node without authentication obeys any controller that finds its port.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

# At the first node the processes of a job look for each other, so its name has to
# resolve: it is this machine's.
HOST = socket.gethostname().split(".")[0]
NODES = (HOST, f"{HOST}-2")
_CONF = """
ClusterName=fluid
SlurmctldHost={host}
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=DEFAULT CPUs=2 State=UNKNOWN
NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={first}
NodeName={host}-2 NodeHostname={host} NodeAddr=127.0.0.1 Port={second}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=0
PartitionName=soft Nodes=ALL MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=away Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str:
  """Why there can be none here; '' if there can."""
  for name in ("slurmctld", "slurmd", "sbatch", "srun"):
    if not _which(name):
      return f"{name} is not installed (apt-get install slurm-wlm)"
  return "" if os.geteuid() == 0 else "Slurm's daemons need root here"


def _which(name: str) -> str | None:
  return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
  """Commands of the cluster.

  Attributes:
    env: of processes that talk to it.
  """

  def __init__(self, folder: pathlib.Path):
    self.conf = folder / "slurm.conf"
    self.env = {**os.environ, "SLURM_CONF": str(self.conf)}
    self.since: dict[str, float] = {}  # When a requeued job was first seen.
    self.daemons: list[subprocess.Popen] = []

  def start(self, name: str, *args: str) -> None:
    """Starts one of Slurm's daemons, which ends with the block."""
    with open(self.conf.with_name(f"{name}-{len(self.daemons)}.log"), "w") as log:
      argv = [_which(name), "-D", *args, "-f", str(self.conf)]
      self.daemons.append(
        subprocess.Popen(argv, env=self.env, stdout=log, stderr=subprocess.STDOUT)
      )

  def call(self, *argv: str) -> str:
    done = subprocess.run(argv, env=self.env, capture_output=True, text=True)
    if done.returncode:
      raise RuntimeError(f"{argv}: {done.stderr.strip()}")
    return done.stdout.strip()

  def state(self, job: str) -> str:
    """PENDING, RUNNING, ... ; '' where it is forgotten."""
    said = self.call("squeue", "-h", "-t", "all", "-o", "%i %T").splitlines()
    return dict(line.split() for line in said).get(job, "")

  def soon(self) -> None:
    """Starts requeued jobs after seconds, which otherwise wait for two minutes.

    Not at once: a node refuses a job that it was told to kill in the same second.
    """
    said = self.call("squeue", "-h", "-t", "PENDING", "-o", "%i %r").splitlines()
    waiting = [
      j for j, why in (w.split(maxsplit=1) for w in said) if why == "BeginTime"
    ]
    now = time.monotonic()
    self.since = {job: self.since.get(job, now) for job in waiting}
    for job, since in self.since.items():
      if now - since > 4:
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now")


@contextlib.contextmanager
def cluster(folder: pathlib.Path):
  """-> a Cluster whose nodes are idle."""
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
    for s in sockets:
      s.bind(("", 0))
    ports = [s.getsockname()[1] for s in sockets]
  for name in ("state", *(f"spool/{node}" for node in NODES)):
    (folder / name).mkdir(parents=True, exist_ok=True)
  names = ("controller", "first", "second")
  found = Cluster(folder)
  found.conf.write_text(
    _CONF.format(host=HOST, folder=folder, **dict(zip(names, ports)))
  )
  try:
    found.start("slurmctld")
    for node in NODES:
      found.start("slurmd", "-N", node)
    end = time.monotonic() + 60
    while True:
      with contextlib.suppress(RuntimeError):
        if found.call("sinfo", "-h", "-p", "main", "-o", "%T %D") == "idle 2":
          break
      if time.monotonic() > end:
        raise RuntimeError(f"no idle nodes after a minute; see {folder}/*.log")
      time.sleep(0.2)
    yield found
  finally:
    with contextlib.suppress(RuntimeError):
      for job in found.call("squeue", "-h", "-o", "%i").split():
        found.call("scancel", "--signal=KILL", "--full", job)
        found.call("scancel", job)
      end = time.monotonic() + 10
      while found.call("squeue", "-h", "-o", "%i") and time.monotonic() < end:
        time.sleep(0.2)
    for daemon in reversed(found.daemons):
      daemon.send_signal(signal.SIGTERM)
    for daemon in found.daemons:
      try:
        daemon.wait(20)
      except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
