"""A sweep on a scheduler: looks how things stand, submits what is ready, and returns.

Nothing is kept in memory: WORKDIR/jobs/NAME/job.json says what was submitted, the
engine what is queued or runs, done.json what is finished, and exit.json how a job
ended. So it may be killed at any time, and called again by anyone.
"""

import dataclasses
import json
import time
from collections.abc import Iterable
from typing import Any

from fluid import files
from fluid.errors import REQUEUE, ConfigError
from launch import engines
from launch.entries import STOPPED, Entry, last_line, save
from launch.plan import Stage, read_json
from launch.spec import RESTARTS, RunSpec


class Remote:
  """The stages of a sweep on an engine.

  Args:
    stages: each after those it needs.
    specs: id of a stage -> what the engine gets.
  """

  def __init__(
    self,
    stages: list[Stage],
    specs: dict[str, RunSpec],
    workdir: Any,
    engine: engines.Remote,
  ):
    self._specs, self._workdir, self.engine = specs, workdir, engine
    self.entries = {s.id: Entry(s, engine=engine.name) for s in stages}
    self._found: dict[str, engines.Found] = {}

  def look(self) -> list[Entry]:
    """How each stage stands now."""
    jobs = {name: self.job(name) for name in self.entries}
    keys = {j["key"] for j in jobs.values() if j} | {
      s.key for s in self._specs.values()
    }
    # Before the files: what ends between the two must not look as if it had vanished.
    self._found = self.engine.states(sorted(keys))
    for name, entry in self.entries.items():
      job = jobs[name]
      # Whoever submitted it was ended before it could say so. (Of one that is over it
      # may have been told to try again.)
      known = self._found.get(job.get("key", self._specs[name].key))
      if known and known.state in engines.ALIVE and not job.get("job"):
        job = self._submitted(name, known.job)
      entry.key = job.get("key", "")
      entry.status, entry.note = self._state(entry, job)
    self._drop_unneeded()
    return list(self.entries.values())

  def _state(self, entry: Entry, job: dict) -> tuple[str, str]:
    stage = entry.stage
    found = self._found.get(job.get("key", ""))
    if found and job.get("again") and found.state not in engines.ALIVE:
      found = None  # That was before.
    if stage.finished():
      entry.skipped = True
      different = stage.mismatch()
      if different:
        return "failed", f"finished with another config: {different}"
      return "finished", ""
    if found and found.state in engines.ALIVE:
      spec = self._specs[stage.id]
      changed = [*spec.argv] != job["argv"] or str(spec.hardware) != job["hardware"]
      other = "of before the sweep file changed; launch.stop, then launch.retry"
      return found.state, other if changed else found.note
    broken = [n for n in stage.needs if self._status(n) in STOPPED]
    if job.get("stopped"):
      return "cancelled", "launch.retry goes on with it"
    end, name = self._ended(stage), self.engine.name
    if not (job and (job["times"] or found or end)):  # The engine never had it.
      return ("blocked", f"needs {broken[0]}") if broken else ("waiting", "")
    last = last_line(self._workdir / "logs" / entry.log)
    said = f": {last}" if last else ""
    if found and found.state == "failed":
      return "failed", found.note + said
    code = end.get("code", 0 if found and found.state == "ended" else REQUEUE)
    if code == 0:
      return "failed", f"stopped before its last step{said}"
    if code <= 128 and code != REQUEUE:
      return "failed", f"exit status {code}{said}"
    # Taken away, or ended while nobody could say why: that was no wish of anyone.
    gone = end.get("state") in ("", "PREEMPTED", "TIMEOUT")
    gone = gone or bool(found and found.state == "lost")
    if end.get("state", "RUNNING") != "RUNNING" and not gone:
      return "cancelled", f"{end['state'].lower()} on {name}; launch.retry"
    # One that was to be submitted again may be gone since we removed it ourselves.
    if not job.get("again"):
      if found and found.state == "cancelled":
        how = found.note.lower() or "cancelled"
        return "cancelled", f"{how} on {name}; launch.retry"
      if not found and self.engine.gone == "cancelled" and not self._elsewhere(job):
        return "cancelled", f"deleted on {name}; launch.retry"
    if end.get("restarts", 0) >= RESTARTS:
      return "failed", f"restarted {RESTARTS} times{said}"
    if end:
      return "lost", f"exit status {code}, and not queued again"
    if broken:
      return "blocked", f"needs {broken[0]}"
    if (times := self._losses(stage, job)["times"]) >= self.engine.losses:
      return "failed", f"{name} lost it {times} times without a new checkpoint{said}"
    if found:
      return "lost", f"{found.note.lower()} on {name}"
    return "lost", f"{name} does not know {job['key']} any more"

  def _status(self, name: str) -> str:
    return self.entries[name].status if name in self.entries else "finished"

  def submit(self) -> list[Entry]:
    """Submits what is ready, after `look`; -> those entries.

    Raises:
      ConfigError: the engine refuses; what was submitted before is recorded.
    """
    out = []
    save(self._workdir, self.entries.values())  # For calls that ask for other stages.
    for name, entry in self.entries.items():
      job = self.job(name)
      if entry.status == "cancelled" and job and not job.get("stopped"):
        self._write(name, job | {"stopped": True})  # The engine may forget it.
      if entry.status not in ("waiting", "lost"):
        continue
      needed = {n: self._status(n) for n in entry.stage.needs}
      alive = [n for n, s in needed.items() if s in engines.ALIVE]
      if any(s != "finished" for n, s in needed.items() if n not in alive):
        continue
      if alive and not self.engine.chains:
        continue
      spec = self._specs[name]
      self._refuse_twice(entry, spec)
      files.remove(self._exit(entry.stage))
      after = tuple(self.job(n)["job"] for n in alive)
      # Said first: if this ends before it knows the job, another call finds it by its
      # key, which will be another one once the code has changed.
      said = self._new(name) | self._losses(entry.stage, job) | {"again": True}
      self._write(name, said)
      self._submitted(name, self.engine.submit(spec, after))
      entry.key, entry.status, entry.note = spec.key, "queued", ""
      out.append(entry)
    save(self._workdir, self.entries.values())
    return out

  def _refuse_twice(self, entry: Entry, spec: RunSpec) -> None:
    # The same run under another key: of changed code, or of another engine.
    old, other = self.job(entry.stage.id), self.engine
    if not old:
      return
    if self._elsewhere(old):
      other = engines.remote(old["engine"], old["options"])
    elif old["key"] == spec.key:
      return
    found = other.states([old["key"]]).get(old["key"])
    if found and found.state in engines.ALIVE:
      raise ConfigError(
        f"{entry.stage.id} is {found.state} on {old['engine']} as {old['key']}: "
        f"python -m launch.stop --workdir {self._workdir} ends it first"
      )

  def _elsewhere(self, job: dict) -> bool:
    """Whether it was submitted where this engine does not look."""
    engine = self.engine
    return job["engine"] != engine.name or any(
      job["options"].get(k) != engine.options.get(k) for k in engine.where
    )

  def stop(self, names: Iterable[str]) -> list[Entry]:
    """Ends stages for good, also those not submitted yet; -> those entries."""
    out = []
    for name in names:
      entry = self.entries[name]
      if entry.status in ("finished", *STOPPED):
        continue
      job = self.job(name)
      # Said first: what is cancelled must not look lost to another call.
      self._write(name, (job or self._new(name)) | {"stopped": True})
      if job:
        self.engine.stop(job["key"], job["job"])
      entry.status, entry.note = "cancelled", ""
      out.append(entry)
    save(self._workdir, self.entries.values())
    return out

  def retry(self, names: Iterable[str]) -> None:
    """Forgets how stages ended, so that `submit` takes them again."""
    for name in names:
      entry = self.entries[name]
      if entry.status not in STOPPED:
        continue
      job = self.job(name)
      if job:  # A scheduler that keeps what is over would refuse the name.
        self.engine.stop(job["key"], job["job"])
      for file in (self._file(name), self._exit(entry.stage)):
        files.remove(file)
      # Of the run itself: it counts its starts without a new checkpoint.
      files.remove(entry.stage.folder / "starts.json")
      entry.status = "waiting"

  def job(self, name: str) -> dict[str, Any]:
    """What was submitted of a stage; empty if nothing was."""
    try:
      return json.loads(files.read_text(self._file(name)))
    except (FileNotFoundError, json.JSONDecodeError):
      return {}

  def _new(self, name: str) -> dict[str, Any]:
    spec = self._specs[name]
    return {
      "key": spec.key,
      "job": "",
      "engine": self.engine.name,
      "options": self.engine.options,
      "stage": spec.stage,
      "argv": [*spec.argv],
      "hardware": str(spec.hardware),
      "code": dataclasses.asdict(spec.code),
      "times": 0,
    }

  def _losses(self, stage: Stage, job: dict) -> dict[str, int]:
    """The step that is saved, and how often it was submitted since that one is."""
    saved = int(read_json(stage.folder, "saved.json").get("step", 0))
    same = job.get("saved", saved) == saved
    return {"saved": saved, "times": job.get("times", 0) if same else 0}

  def _submitted(self, name: str, job: str) -> dict[str, Any]:
    said = self.job(name) or self._new(name)
    said |= {"job": job, "submitted": time.time(), "times": said["times"] + 1}
    said.pop("again", None)
    self._write(name, said)
    return said

  def _write(self, name: str, job: dict) -> None:
    files.write_json(self._file(name), job)

  def _file(self, name: str) -> str:
    return f"{self._specs[name].folder}/job.json"

  def _exit(self, stage: Stage) -> str:
    return self._specs[stage.id].exit

  def _ended(self, stage: Stage) -> dict[str, Any]:
    try:
      return json.loads(files.read_text(self._exit(stage)))
    except (FileNotFoundError, json.JSONDecodeError):
      return {}

  def _drop_unneeded(self) -> None:
    """Leaves out tokenizers and caches that no run of these still needs."""
    needed: set[str] = set()
    for name, entry in reversed(list(self.entries.items())):
      if (
        entry.stage.kind in ("run", "tune")
        or name in needed
        or entry.status != "waiting"
      ):
        if entry.status != "finished":
          needed.update(entry.stage.needs)
      else:
        del self.entries[name]


def code_of(entries: Iterable[Entry]) -> int:
  """Exit status: 1 if anything failed or is blocked, else 0."""
  return int(any(e.status in ("failed", "blocked") for e in entries))
