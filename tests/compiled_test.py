"""What XLA compiled is found again by the next start, where it was asked for."""

import jax
import numpy as np
import pytest

from fluid.durable import compiled
from launch import order
from launch.hardware import parse


def hits(folder, files):
  """Programs of two starts that came from the cache; the second one adds no file."""
  heard: list[str] = []
  listen = lambda name, **_: heard.append(name)
  jax.monitoring.register_event_listener(listen)
  out, there = [], []
  try:
    for _ in range(2):
      with compiled.kept(folder):
        assert float(jax.jit(lambda x: (x * 2.5).sum())(np.ones(3, np.float32))) == 7.5
      out.append(heard.count("/jax/compilation_cache/cache_hits"))
      there.append(sorted(map(str, files())))
      jax.clear_caches()  # As in a new process.
  finally:
    jax.monitoring.unregister_event_listener(listen)
  assert there[0] and there[0] == there[1]
  return out


def test_a_second_start_does_not_compile(tmp_path, uncached):
  files = lambda: [f for f in tmp_path.rglob("*") if f.is_file()]
  assert hits(tmp_path, files) == [0, 1]
  # Machine code of another kind of CPU is another folder's.
  assert {f.parent.parent for f in files()} == {tmp_path / "cache"}
  assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.parametrize("told", ["", "elsewhere"])
def test_what_jax_was_told_goes_before(tmp_path, uncached, told):
  jax.config.update("jax_compilation_cache_dir", told and str(tmp_path / told))
  with compiled.kept(tmp_path / "w"):
    assert float(jax.jit(lambda x: (x * 3.5).sum())(np.ones(3, np.float32))) == 10.5
  assert [p.name for p in tmp_path.iterdir()] == ([told] if told else [])


def test_accelerators_share_one(monkeypatch):
  assert compiled.folder("/w").startswith("/w/cache/cpu-")
  monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
  assert compiled.folder("gs://b/w") == "gs://b/w/cache"


@pytest.mark.parametrize(
  "machine, told, kept",
  [
    ("gpu:1x8", None, "/w/cache"),
    ("cpu:1x1", None, None),
    ("cpu:1x1", "/mine", "/mine"),
    ("gpu:1x8", "", ""),
  ],
)
def test_jobs_of_a_scheduler_are_told(monkeypatch, machine, told, kept):
  name = "JAX_COMPILATION_CACHE_DIR"
  monkeypatch.delenv(name, raising=False)
  if told is not None:
    monkeypatch.setenv(name, told)
  assert order.kept("/w", parse(machine)) == ({} if kept is None else {name: kept})
