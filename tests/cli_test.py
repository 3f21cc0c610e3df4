"""Every entry point tells what it is, and how it ended."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

ENTRIES = [
  ".".join(file.relative_to(ROOT).with_suffix("").parts)
  for folder in ("fluid", "launch", "benchmarks")
  for file in sorted((ROOT / folder).rglob("*.py"))
  if re.search('^if __name__ == "__main__":', file.read_text(), re.M)
]

# A process of its own, as an entry defines flags; forked, as imports take seconds.
HELP = """
import os, runpy, sys
import jax, optax, orbax.checkpoint, grain
_, flag, *entries = sys.argv
for entry in entries:
  print("entry", entry, flush=True)
  if not (child := os.fork()):
    sys.argv = [entry, flag]
    runpy.run_module(entry, run_name="__main__", alter_sys=True)
    os._exit(99)
  print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def said():
  """Entry -> what it said to --help, and its status."""
  command = [sys.executable, "-c", HELP, "--help", *ENTRIES]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  parts = re.findall(r"^entry (.*)\n([^\0]*?)^status (.*)$", done.stdout, re.M)
  return {entry: (text, status) for entry, text, status in parts}


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_is_printed_and_no_failure(said, entry):
  text, status = said[entry]
  assert status == "0" and f"-m {entry.removesuffix('.__main__')} " in text
  # Those that fluid.console.cli defines for it among them; one of words has none.
  source = (ROOT / f"{entry.replace('.', '/')}.py").read_text()
  assert "cli.run" not in source or "words=True" in source or "\nflags:\n" in text


@pytest.mark.parametrize("flag", ["-h", "--helpfull"])
def test_help_needs_no_config_that_loads(flag):
  command = [sys.executable, "-m", "fluid.flops", "--size=none", flag]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0 and "--size" in done.stdout and not done.stderr
  assert ("--verbosity" in done.stdout) == (flag == "--helpfull")


LATE = """
import atexit, os, signal
from fluid import config
from fluid.console import cli
class Stopped(config.ConfigError):
  exit_code = 75
def main(argv):
  atexit.register(os.kill, os.getpid(), signal.SIGTERM)
  raise Stopped("saved")
cli.run(main)
"""


def test_a_late_signal_does_not_change_the_status_of_what_is_saved():
  done = subprocess.run([sys.executable, "-c", LATE], cwd=ROOT, capture_output=True)
  assert done.returncode == 75 and done.stderr == b"error: saved\n"


TWICE = """
from fluid.console import cli
CONFIG = cli.config_flag()
cli.run(lambda argv: print(cli.read(CONFIG).data.source.train))
"""
PAIR = """
from fluid.console import cli
CONFIG = cli.config_flag()
cli.run(lambda argv: print(cli.read(CONFIG).tokenizer.multipliers))
"""


@pytest.mark.parametrize("names", [("0.tar", "1.tar"), ("{0..1}.tar",)])
def test_a_pattern_that_the_shell_expanded_is_refused(names):
  """The last of its files would be all that is read."""
  given = [f"--config.data.source.train={name}" for name in names]
  config = "--config=configs/toy.py:data=webdataset"
  command = [sys.executable, "-c", TWICE, config, "--config.steps=1", *given]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if len(names) == 1:
    assert (done.returncode, done.stdout) == (0, "{0..1}.tar\n")
    return
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith(
    "error: config key 'data.source.train' is given 2 times"
  )


def test_a_tuple_of_several_is_given_once():
  given = ["--config=configs/toy.py", "--config.tokenizer.multipliers=(1, 2, 4)"]
  command = [sys.executable, "-c", PAIR, *given]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (done.stdout, done.stderr) == ("(1, 2, 4)\n", "")
