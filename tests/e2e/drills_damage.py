"""Drills: files, disks, folders, configs, data and numbers that go wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys

from tests.e2e.lab import (
  Failure,
  NotHere,
  began,
  last_step,
  newest,
  rows,
  same,
  steps,
)


def _files(folder):
  return sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size)


def truncate(lab, step):
  file = lab.random.choice(_files(step))
  os.truncate(file, lab.random.randrange(file.stat().st_size))


def flip(lab, step):
  files = _files(step)
  file = lab.random.choices(files, [f.stat().st_size for f in files])[0]
  content = bytearray(file.read_bytes())
  content[lab.random.randrange(len(content))] ^= 1 << lab.random.randrange(8)
  file.write_bytes(content)


def delete_half(lab, step):
  files = _files(step)
  for file in lab.random.sample(files, (len(files) + 1) // 2):
    file.unlink()


def _interrupted(lab):
  """A workdir with three checkpoints, made once."""
  path = lab.folder / "interrupted"
  if not newest(path):
    made, _ = lab.interrupted("base", 32)
    shutil.copytree(made, path, dirs_exist_ok=True)
  return path


def damaged_step(damage):
  """The newest checkpoint is damaged: an older one is used, or it does not matter."""

  def drill(lab, count):
    base = _interrupted(lab)
    for _ in range(count):
      workdir = lab.new("damaged", base)
      step = newest(workdir)
      damage(lab, workdir / "checkpoints" / str(step))
      process = lab.train(workdir)
      process.end()
      if began(process) < step and not (
        f"step {step} cannot be read" in process.said()
        or f"step {step} was saved, but is gone" in process.said()
      ):
        raise Failure(f"an older step was used without a warning: {process.log}")
      bitwise = same(lab.reference, workdir)
      yield {"lost": step - began(process), "bitwise": bitwise, "survived": bitwise}

  return drill


def _refused(process, *parts, code=2):
  process.end(code)
  line = process.last()
  if not line.startswith("error:"):
    raise Failure(f"no clear last line: {line} ({process.log})")
  for part in parts:
    if part not in line:
      raise Failure(f"'{part}' is not in: {line}")


def nothing_left(lab, count):
  """All checkpoints damaged, or gone: refused, and nothing is touched."""
  for number in range(count):
    workdir = lab.new("hopeless", _interrupted(lab))
    for step in steps(workdir):
      folder = workdir / "checkpoints" / str(step)
      if number % 2:
        shutil.rmtree(folder)
      else:
        for file in _files(folder):
          file.write_bytes(b"?")
    before = _files(workdir), (workdir / "metrics.jsonl").read_bytes()
    _refused(lab.train(workdir), "checkpoint", str(workdir))
    if (_files(workdir), (workdir / "metrics.jsonl").read_bytes()) != before:
      left = {str(f) for f in _files(workdir)} ^ {str(f) for f in before[0]}
      if left - {str(workdir / ".lock")}:
        raise Failure(f"refused, but changed {left}")
    yield {"note": "refused, nothing touched"}


def _on_tmpfs(lab, workdir, script, size):
  """Runs a script with a file system of its own at `workdir`."""
  if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
    raise NotHere("'unshare -rm', which mounts a disk to fill, is not allowed")
  command = [sys.executable, "-m", "fluid.train", *lab.config, f"--workdir={workdir}"]
  text = (
    f"mount -t tmpfs -o size={size} tmpfs {workdir} && "
    f"run() {{ {' '.join(command)}; }}; {script}"
  )
  workdir.mkdir(parents=True)
  return lab.start_raw(["unshare", "-rm", "sh", "-c", text])


def full_disk(lab, count):
  """No space left at a save: named, the good checkpoint stays, and it goes on later."""
  for _ in range(count):
    kept = lab.new("freed")
    workdir = lab.new("full")
    size = f"{lab.random.randrange(300, 500)}k"
    script = (
      f"run > {kept}.log 2>&1; echo status $?; mount -o remount,size=50m {workdir}; "
      f"run; code=$?; cp -r {workdir} {kept}; exit $code"
    )
    process = _on_tmpfs(lab, workdir, script, size)
    process.end()
    first = kept.with_name(kept.name + ".log").read_text()
    if "status 75" not in process.said() or "No space left" not in first:
      raise Failure(f"not named: {first.splitlines()[-1]} ({process.log})")
    bitwise = same(lab.reference, kept)
    yield {"bitwise": bitwise, "survived": bitwise}


def read_only(lab, count):
  """A workdir that cannot be written is refused."""
  for _ in range(count):
    workdir = lab.new("readonly")
    script = (
      f"cp -r {_interrupted(lab)}/. {workdir}; mount -o remount,ro {workdir}; run"
    )
    process = _on_tmpfs(lab, workdir, script, "50m")
    _refused(process, "Read-only file system", str(workdir))
    yield {"note": "refused"}


def vanished(lab, count):
  """The workdir is moved away while the run goes on, and comes back."""
  for _ in range(count):
    workdir = lab.new("vanished")
    process = lab.train(workdir)
    at = lab.random.randrange(5, 30)
    process.reaches(workdir, at)
    before = last_step(workdir)
    away = workdir.rename(workdir.with_name(workdir.name + "-away"))
    _refused(process, str(workdir))
    shutil.rmtree(workdir, ignore_errors=True)
    away.rename(workdir)
    process = lab.train(workdir)
    process.end()
    bitwise = same(lab.reference, workdir)
    lost = max(0, before - began(process))
    yield {"lost": lost, "bitwise": bitwise, "survived": bitwise}


def two_runs(lab, count):
  """A second run on the same workdir is refused; the first does not notice."""
  for _ in range(count):
    workdir = lab.new("shared")
    first = lab.train(workdir)
    first.until(lambda p=first: "mesh {" in p.said())
    first.signal(signal.SIGSTOP)  # Or it would be done before the second is there.
    _refused(lab.train(workdir), "is in use by process")
    first.signal(signal.SIGCONT)
    first.end()
    bitwise = same(lab.reference, workdir)
    yield {"bitwise": bitwise, "survived": bitwise}


def _other_cache(lab):
  """A cache that says it was prepared from other images."""
  path = lab.folder / "other"
  if not path.exists():
    shutil.copytree(lab.folder / "cache", path)
    metadata = json.loads((path / "metadata.json").read_text())
    metadata["config"]["data.seed"] += 1
    (path / "metadata.json").write_text(json.dumps(metadata))
  return path


def other_config(lab, count):
  """A config, a model or data that this workdir does not belong to."""
  changes = [
    (["--config.optim.lr=0.5"], "optim.lr"),
    (["--config.model.trunk.width=32"], "model.trunk.width"),
    (["--config.seed=3"], "seed"),
    ([f"--config.data.cache={_other_cache(lab)}"], "data.cache"),
  ]
  for number in range(count):
    change, key = changes[number % len(changes)]
    workdir = lab.new("mismatch", _interrupted(lab))
    _refused(lab.train(workdir, *change), key)
    yield {"note": "refused"}


def _bad_cache(lab):
  """The cache with two records that hold nonsense: of 200, one percent."""
  from fluid.data import packing, records

  path = lab.folder / "bad"
  if path.exists():
    return path
  shutil.copytree(lab.folder / "cache", path)
  metadata = records.read_metadata(path)
  shard = metadata["splits"]["train"]["shards"][0]
  rows_ = list(records.read_shard(path / shard["name"]))
  rows_[3] = b"\xc1 no record"
  example = packing.unpack(rows_[7])
  example["meta"] = json.loads(example["meta"])
  rows_[7] = packing.pack(example | {"mean": example["mean"] * float("nan")})
  records.write_shard(path / shard["name"], rows_)
  shard["bytes"] = (path / shard["name"]).stat().st_size
  records.write_metadata(path, metadata)
  return path


def bad_data(lab, count):
  """Damaged records: counted and skipped alike by an interrupted run, then too many."""
  cache = _bad_cache(lab)
  change = [f"--config.data.cache={cache}"]
  for _ in range(count):
    whole, parts = lab.new("bad"), lab.new("bad-again")
    lab.train(whole, *change, "--config.data.max_bad=0.02").end()
    process = lab.train(parts, *change, "--config.data.max_bad=0.02")
    process.reaches(parts, 30)
    process.kill()
    lab.train(parts, *change, "--config.data.max_bad=0.02").end()
    counts = {k: v for k, v in rows(parts)[-2].items() if k.startswith("data/skipped")}
    if set(counts) != {"data/skipped_corrupt", "data/skipped_nonfinite"}:
      raise Failure(f"counted {counts}")
    stopped = lab.train(lab.new("bad-stop"), *change, "--config.data.max_bad=0")
    _refused(stopped, "data.max_bad", str(cache), "train-00000", code=4)
    bitwise = same(whole, parts)
    yield {"bitwise": bitwise, "survived": bitwise}


def not_finite(lab, count):
  """A learning rate beyond all bounds: stopped, reported, and nothing bad is saved."""
  for _ in range(count):
    workdir = lab.new("diverged")
    process = lab.train(
      workdir, "--config.optim.lr=1e38", "--config.checkpoint_every=1"
    )
    _refused(process, "at step", "nonfinite", code=3)
    report = json.loads(next((workdir / "nonfinite").glob("*.json")).read_text())
    if not report["batch"] or not report["grad_norm"]:
      raise Failure(f"the report lacks something: {report.keys()}")
    if newest(workdir) >= report["step"]:
      raise Failure("a state that is not finite was saved")
    yield {"note": "stopped, with a report"}


DRILLS = {
  "newest checkpoint truncated": (damaged_step(truncate), 4, 1),
  "newest checkpoint, one bit flipped": (damaged_step(flip), 8, 1),
  "newest checkpoint half deleted": (damaged_step(delete_half), 4, 0),
  "no good checkpoint left": (nothing_left, 2, 1),
  "disk full": (full_disk, 2, 1),
  "workdir read-only": (read_only, 1, 0),
  "workdir vanishes": (vanished, 2, 0),
  "two runs, one workdir": (two_runs, 1, 1),
  "another config or cache": (other_config, 4, 0),
  "damaged records": (bad_data, 1, 0),
  "loss not finite": (not_finite, 1, 1),
}
