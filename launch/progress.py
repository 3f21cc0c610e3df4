"""What a sweep shows: one live table, or plain lines where there is no terminal."""

import json
import time

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fluid import files
from fluid.console.progress import clock

PLAIN_SECONDS = 30.0  # between two progress lines of a running stage
_TAIL = 65_536  # bytes of metrics.jsonl that surely hold the newest training record
COLOURS = {
  "finished": "green", "running": "cyan", "failed": "bold red", "blocked": "red",
  "interrupted": "yellow", "waiting": "dim", "queued": "dim", "restarting": "yellow",
  "held": "yellow", "lost": "yellow", "cancelled": "yellow",
}  # fmt: skip
_SAID = ("failed", "blocked", "cancelled", "interrupted", "held")
# name -> field of metrics.jsonl
_SHOWN = {
  "loss": "train/loss", "images_per_s": "images_per_s", "mfu": "mfu",
  "goodput": "goodput",
}  # fmt: skip


def progress(stage) -> dict[str, float]:
  """Newest step, loss, images/s, MFU, goodput and seconds left, if a run wrote them."""
  if stage.kind != "run":
    return {}
  out = {}
  for record in reversed(_tail(stage.folder / "metrics.jsonl")):
    for name, key in _SHOWN.items():
      if key in record:
        out.setdefault(name, record[key])
        out.setdefault("step", record["step"])
  if out.get("images_per_s"):
    images = (stage.run.steps - out["step"]) * stage.run.batch
    out["eta"] = images / out["images_per_s"]
  return out


def _tail(path) -> list[dict]:
  records = []
  for line in files.tail(path, _TAIL).decode(errors="replace").splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:  # the cut-off first line, or one being written
      continue
  return [r for r in records if isinstance(r, dict) and "step" in r]


class Screen:
  """Shows the entries of a sweep; `progress(stage)` supplies the numbers of a run."""

  def __init__(self, progress=lambda stage: {}, *, plain: bool = False, console=None):
    self._progress = progress
    self._console = console or Console()
    self._live = None
    if self._console.is_terminal and not plain:
      self._live = Live(console=self._console, auto_refresh=False)
    self._shown: dict[str, tuple[str, float]] = {}
    self._refreshed = 0.0

  def __enter__(self):
    if self._live:
      self._live.__enter__()
    return self

  def __exit__(self, *error):
    if self._live:
      self._live.__exit__(*error)

  def update(self, entries, *, final: bool = False):
    """Shows how things stand now; with `final`, also which stages failed and why."""
    entries = list(entries)
    if self._live:
      if final or time.monotonic() - self._refreshed > 1:
        self._refreshed = time.monotonic()
        self._live.update(self._table(entries), refresh=True)
    else:
      for entry in entries:
        self._line(entry)
    if final:
      self._summary(entries)

  def _table(self, entries) -> Table:
    table = Table(title=f"{_done(entries)} stages finished", title_justify="left")
    table.add_column("stage", overflow="fold")
    table.add_column("status")
    for name in ("step", "loss", "images/s", "ETA", "time"):
      table.add_column(name, justify="right")
    for entry in entries:
      p = self._numbers(entry)
      table.add_row(
        entry.stage.id.removeprefix("run/"),
        f"[{COLOURS[entry.status]}]{entry.status}[/]",
        f"{p['step']}/{entry.stage.run.steps}" if "step" in p else "",
        f"{p['loss']:.4f}" if "loss" in p else "",
        f"{p['images_per_s']:.0f}" if "images_per_s" in p else "",
        clock(p["eta"]) if "eta" in p and entry.status == "running" else "",
        clock(_seconds(entry)) if _seconds(entry) else "",
      )
    return table

  def _line(self, entry):
    now = time.monotonic()
    status, shown = self._shown.get(entry.stage.id, ("waiting", now))
    changed = entry.status != status
    due = entry.status == "running" and now - shown > PLAIN_SECONDS
    if not changed and not due:
      return
    self._shown[entry.stage.id] = entry.status, now
    p = self._numbers(entry)
    words = [f"{entry.stage.id}: {entry.status}"]
    if entry.skipped:
      words.append("(before)")
    elif (entry.status != "running" or due) and (seconds := _seconds(entry)):
      words.append(f"after {clock(seconds)}")
    if "step" in p:
      words.append(f"step {p['step']}/{entry.stage.run.steps}")
    if "loss" in p:
      words.append(f"loss {p['loss']:.4f}")
    if "images_per_s" in p:
      words.append(f"{p['images_per_s']:.0f} images/s")
    if "eta" in p and entry.status == "running":
      words.append(f"ETA {clock(p['eta'])}")
    print(" ".join(words), file=self._console.file, flush=True)

  def _numbers(self, entry) -> dict:
    return {} if entry.status in ("waiting", "blocked") else self._progress(entry.stage)

  def _summary(self, entries):
    bad = [e for e in entries if e.status in _SAID]
    lines = [f"{_done(entries)} stages finished"]
    lines += [f"{e.status}: {e.stage.id}: {e.note}" for e in bad]
    print("\n".join(lines), file=self._console.file, flush=True)


def _done(entries) -> str:
  return f"{sum(e.status == 'finished' for e in entries)} of {len(entries)}"


def _seconds(entry) -> float:
  """That it has worked here; 0 where a scheduler has it, whose clock is not asked."""
  if entry.status == "running" and entry.started:
    return time.time() - entry.started
  return entry.seconds
