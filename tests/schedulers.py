"""Stand-ins for the commands of schedulers, which keep state and start jobs.

  schedulers.install(folder, state)  ->  folder has sbatch, kubectl, sky, gcloud, ...

A job is a process of this machine; a keeper beside it restarts it as its engine would.
State is a folder with a JSON file for each job.
"""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

SLURM = ("sbatch", "squeue", "scontrol", "scancel", "srun")
NAMES = (*SLURM, "kubectl", "sky", "gcloud")

# A stage that counts its starts, writes what it is told to and ends as it is told to.
FAKE = """
import json, os, pathlib, sys, time
folder, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
folder.mkdir(parents=True, exist_ok=True)
starts = folder / 'starts'
n = int(starts.read_text()) + 1 if starts.exists() else 1
starts.write_text(str(n))
if mode == 'fail':
  print('error: no luck'); sys.exit(3)
if mode == 'preempted' and n == 1:
  print('stopped: SIGTERM after step 2'); sys.exit(75)
if mode == 'hang' and n == 1:
  time.sleep(600)
line = {'step': 4, 'train/loss': .5, 'images_per_s': 9, 'goodput': .75}
(folder / 'metrics.jsonl').write_text(json.dumps(line) + '\\n')
done = {'step': 4, 'splits': {'train': {}, 'val': {}}}
name = 'metadata.json' if folder.parent.name == 'data' else 'done.json'
(folder / name).write_text(json.dumps(done))
"""


def install(folder: pathlib.Path, state: pathlib.Path) -> dict[str, str]:
  """Writes the commands, and `python`; -> environment in which they are found."""
  folder.mkdir(), state.mkdir()
  for name in NAMES:
    (state / _family(name)).mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
    file.chmod(0o755)
  python = folder / "python"
  python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  python.chmod(0o755)
  return {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE_STATE": str(state)}


def _family(name: str) -> str:
  return "slurm" if name in SLURM else name


def stop_all(state: pathlib.Path) -> None:
  """Ends what still runs."""
  for folder in state.iterdir():
    for job in jobs(folder):
      _cancel(folder, job)


def jobs(state: pathlib.Path) -> dict[str, dict]:
  found = {}
  for file in sorted(state.glob("*.json"), key=lambda f: int(f.stem)):
    found[file.stem] = json.loads(file.read_text())
  return found


def _write(state, job, /, **changes):
  file = state / f"{job}.json"
  old = json.loads(file.read_text()) if file.exists() else {}
  scratch = file.with_suffix(f".{os.getpid()}")
  scratch.write_text(json.dumps(old | changes))
  scratch.replace(file)


def _new(folder, /, **what) -> str:
  job = str(1 + max([0, *(int(f.stem) for f in folder.iterdir() if f.stem.isdigit())]))
  _write(folder, job, **what)
  subprocess.Popen(
    [sys.executable, __file__, "keeper", str(folder), job],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
  )  # fmt: skip
  return job


def keeper(state, job: str) -> None:
  """Runs a job to its end: after those it waits for, and again where that is due."""
  me = jobs(state)[job]
  while waits := [
    j for j in me.get("after", ()) if jobs(state)[j]["state"] != "COMPLETED"
  ]:
    if jobs(state)[job]["state"] == "CANCELLED":
      return None
    if any(jobs(state)[j]["state"] in ("FAILED", "CANCELLED") for j in waits):
      return _write(state, job, state="CANCELLED", why="DependencyNeverSatisfied")
    time.sleep(0.05)
  restarts = 0
  while True:
    env = {**os.environ, **me.get("env", {})}
    env |= {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restarts)}
    with open(me["log"], "ab") as log:
      process = subprocess.Popen(
        me["command"], shell=True, executable="/bin/bash", env=env, stdout=log,
        stderr=log, start_new_session=True,
      )  # fmt: skip
    _write(state, job, state="RUNNING", pid=process.pid, restarts=restarts)
    code = process.wait()
    now = jobs(state)[job]
    if now["state"] == "CANCELLED":
      return None
    again = now.get("requeue") or code % 256 in me["again"] or code < 0
    if not again:
      return _write(state, job, state="FAILED" if code else "COMPLETED", code=code)
    restarts += 1
    _write(state, job, requeue=False)


def _cancel(state, job) -> None:
  found = jobs(state)[job]
  _write(state, job, state="CANCELLED")
  if pid := found.get("pid"):
    for number in (signal.SIGTERM, signal.SIGKILL):
      try:
        os.killpg(pid, number)
      except ProcessLookupError:
        return
      time.sleep(0.3)


def _named(state, name) -> list[str]:
  return [j for j, job in jobs(state).items() if job["name"] == name]


def sbatch(state, *args):
  if os.environ.get("FAKE_REFUSES"):
    sys.exit("sbatch: error: Batch job submission failed: Invalid account")
  text = pathlib.Path(args[-1]).read_text()
  option = lambda name: re.search(rf"#SBATCH --{name}=(\S+)", text)[1]
  after = re.findall(r"afterok:(\d+)", " ".join(args))
  print(
    _new(
      state, name=option("job-name"), state="PENDING", after=after, again=[],
      log=option("output"), command=f"bash {shlex.quote(args[-1])}",
    )
  )  # fmt: skip


def squeue(state, *args):
  for job, found in jobs(state).items():
    why = found.get("why", "Dependency" if found.get("after") else "None")
    if found["state"] in ("PENDING", "RUNNING") or "all" in args:
      print(f"{found['name']}|{job}|{found['state']}|{why}")


def scontrol(state, verb, *args):
  job = args[-1]
  if verb == "show":
    print(f"JobId={job} JobState={jobs(state)[job]['state']} Restarts=0")
  else:
    _write(state, job, requeue=True)
    os.killpg(jobs(state)[job]["pid"], signal.SIGKILL)


def scancel(state, *args):
  for job in _named(state, args[-1].removeprefix("--name=")):
    _cancel(state, job)


def srun(state, *args):
  argv = [a for a in args if not a.startswith("--") or "=" in a and "config" in a]
  os.execvp(argv[0], argv)


def kubectl(state, *args):
  if "create" in args:
    import yaml

    item = yaml.safe_load(pathlib.Path(args[-1]).read_text())
    name = item["metadata"]["name"]
    if _named(state, name):
      sys.exit(f'Error from server (AlreadyExists): jobsets "{name}" already exists')
    pod = item["spec"]["replicatedJobs"][0]["template"]["spec"]
    rule = pod["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    container = pod["template"]["spec"]["containers"][0]
    _new(
      state, name=name, state="PENDING", log=str(state / f"{name}.log"),
      again=[c for c in range(1, 256) if c not in rule],
      command=shlex.join(container["command"]),
      env={e["name"]: e["value"] for e in container["env"]},
    )  # fmt: skip
  elif "delete" in args:
    for job in _named(state, args[args.index("jobset") + 1]):
      _cancel(state, job)
      _write(state, job, name="")
  elif "get" in args:
    items = []
    for job in jobs(state).values():
      final = {"FAILED": "Failed", "COMPLETED": "Completed"}.get(job["state"])
      active = [{"active": 1}] if job["state"] == "RUNNING" else []
      status = {"replicatedJobsStatus": active, "restarts": job.get("restarts", 0)}
      if final:
        status["terminalState"] = final
        status["conditions"] = [{"type": final, "message": "jobset failed"}]
      items.append({"metadata": {"name": job["name"]}, "spec": {}, "status": status})
    print(json.dumps({"items": items}))
  else:
    label = next(a for a in args if "jobset-name=" in a)
    name = re.search(r"jobset-name=([^,]+)", label)[1]
    print((state / f"{name}.log").read_text())


def sky(state, jobs_, verb, *args):
  assert jobs_ == "jobs"
  name = args[args.index("-n") + 1] if "-n" in args else ""
  if verb == "launch":
    import yaml

    task = yaml.safe_load(pathlib.Path(args[-1]).read_text())
    again = task["resources"]["job_recovery"]["recover_on_exit_codes"]
    _new(
      state, name=name, state="PENDING", again=again, env=task["envs"],
      log=str(state / f"{name}.log"), command=task["run"],
    )  # fmt: skip
  elif verb == "queue":
    said, found = {"COMPLETED": "SUCCEEDED"}, jobs(state)
    if not any(f["state"] in ("PENDING", "RUNNING") for f in found.values()):
      # As a controller is stopped where nothing is in progress.
      if "--refresh" not in args:
        sys.exit("sky.exceptions.ClusterNotUpError: No in-progress managed jobs.")
      if not found:
        sys.exit("sky.exceptions.ClusterDoesNotExist: Cluster 'c' does not exist.")
    rows = [
      {"job_id": int(j), "job_name": f["name"], "status": said.get(s := f["state"], s)}
      | ({"failure_reason": f.get("why", "")} if "--verbose" in args else {})
      for j, f in found.items()
    ]
    print(json.dumps(rows if "--all" in args else rows[-50:]))
  elif verb == "cancel":
    for job in _named(state, name):
      if jobs(state)[job]["state"] in ("PENDING", "RUNNING"):  # What is over stays.
        _cancel(state, job)
  else:
    print((state / f"{name}.log").read_text())


def gcloud(state, *args):
  verb, key = args[3], args[4]
  if verb == "create":
    if any(jobs(state)[j]["state"] == "RUNNING" for j in _named(state, key)):
      sys.exit("ERROR: (gcloud) ALREADY_EXISTS: resource exists")
    file = next(a for a in args if a.startswith("--metadata-from-file"))
    text = pathlib.Path(file.rpartition("=")[2]).read_text()
    command = re.search(r"^exec (.*)$", text, re.M)[0]
    # Where the machine leaves what was printed; in a bucket that has no stand-in.
    found = re.search(r">> (\S+)", text)
    log = found[1] if found else str(state / f"{key}.log")
    pathlib.Path(log).parent.mkdir(exist_ok=True)
    _new(state, name=key, state="PENDING", again=[75], log=log, command=command)
  elif verb == "list":
    alive = [j for j in jobs(state).values() if j["state"] in ("PENDING", "RUNNING")]
    said = {"PENDING": "WAITING_FOR_RESOURCES", "RUNNING": "ACTIVE"}
    rows = [{"name": j["name"], "state": {"state": said[j["state"]]}} for j in alive]
    print(json.dumps(rows))
  elif verb == "delete":
    for job in _named(state, key):
      _cancel(state, job)
  else:
    running = [j for j in jobs(state).values() if j["state"] == "RUNNING"]
    (job,) = [j for j in running if j["name"] == key] or sys.exit("ERROR: no machine")
    print(pathlib.Path(job["log"]).read_text())


def _hiccup() -> None:
  """Does not answer as often as the file FAKE_HICCUPS says."""
  file = pathlib.Path(os.environ.get("FAKE_HICCUPS", "/nowhere"))
  left = int(file.read_text()) if file.exists() else 0
  if left:
    file.write_text(str(left - 1))
    sys.exit("error: Unable to contact slurm controller (connect failure)")


if __name__ == "__main__":
  name, *rest = sys.argv[1:]
  if name == "keeper":
    keeper(pathlib.Path(rest[0]), rest[1])
  else:
    if name == "squeue" or {"get", "queue", "list"} & set(rest):
      _hiccup()
    globals()[name](pathlib.Path(os.environ["FAKE_STATE"]) / _family(name), *rest)
