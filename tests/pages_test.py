"""Commands settle their memory once; jobs side by side have cores of their own."""

import os
import subprocess
import sys
import time

import pytest

from fluid.console import pages
from launch import engines
from launch.engines import local
from tests.conftest import ROOT

SAY = """
import os, sys
from fluid.console import pages
print(os.getpid(), end=" ", flush=True)
pages.settle()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")


def said(**env):
  """What a command prints, in an environment without those settings but `env`."""
  kept = {k: v for k, v in os.environ.items() if k not in pages.ENV}
  command = [sys.executable, "-c", SAY, "--flag", "a b"]
  done = subprocess.run(
    command,
    env={**kept, **env},
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    check=True,
  )
  return done.stdout


@linux
def test_a_command_starts_once_more_as_the_same_process():
  first, again, third, *rest = said(JAX_PLATFORMS="cpu").split(maxsplit=3)
  assert first == again == third
  assert " ".join(rest) == "glibc.malloc.hugetlb=1 ['--flag', 'a b']\n"


@linux
@pytest.mark.parametrize("env", [{"GLIBC_TUNABLES": ""}, {"JAX_PLATFORMS": "tpu"}])
def test_a_setting_of_the_users_own_and_other_platforms_are_left(env):
  first, again, tunables, *_ = said(**{"JAX_PLATFORMS": "cpu"} | env).split()
  assert first == again and tunables in ("None", "['--flag',")


@linux
def test_jobs_side_by_side_share_no_core(tmp_path, monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  code = "import os, time; print(sorted(os.sched_getaffinity(0)), flush=True)"
  jobs, all_cores = 2, os.sched_getaffinity(0)
  engine = local.Engine(jobs)
  found = []
  for turn in range(2):  # The share of a job that ended goes to the next.
    handles = [
      engine.submit(
        engines.Job(f"{turn}{n}", (sys.executable, "-c", code), {}, tmp_path / f"{n}")
      )
      for n in range(jobs)
    ]
    end = time.monotonic() + 60
    while any(engine.poll(h) is None for h in handles) and time.monotonic() < end:
      time.sleep(0.05)
    found = [(tmp_path / f"{n}").read_text().splitlines() for n in range(jobs)]
  cores = [[set(eval(line)) for line in lines] for lines in found]
  assert [len(lines) for lines in cores] == [2, 2]
  if len(all_cores) < jobs:
    assert all(c == all_cores for lines in cores for c in lines)
    return
  for first, second in zip(*cores, strict=True):
    assert not first & second and first | second == all_cores
