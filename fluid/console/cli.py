"""Command lines: flags, and errors a user can fix as one line instead of a traceback.

CONFIG = cli.config_flag()
WORKDIR = cli.workdir_flag()

def main(argv):
  del argv
  train(cli.read(CONFIG), WORKDIR.value)

if __name__ == '__main__':
  cli.run(main)
"""

import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping

from absl import app, flags, logging
from ml_collections import config_flags

from fluid import config, files, remote, shipped
from fluid.config.identity import places
from fluid.console import pages
from fluid.errors import REQUEUE, exit_code

flags.disclaim_key_flags()  # Flags belong to the entry that asks for them; see --help.

# Of a process that joined others: what an error means if one of them is the cause, and
# how they hear of an error of this one.
_explain: Callable[[BaseException], BaseException | None] | None = None
_failed: Callable[[BaseException, int], None] | None = None


class UserError(config.ConfigError):
  """Something the user can fix; the message is one line naming thing and remedy."""

  exit_code = 2


class _Parser(config_flags.config_flags.ConfigFileFlagParser):
  """Of --config: configs/toy.py is the one that came with the code, if none is here."""

  def parse(self, path):
    file, *argument = path.split(":", 1)
    return super().parse(":".join([shipped.find(file), *argument]))


def config_flag() -> flags.FlagHolder:
  """--config=FILE.py[:argument string] with dotted overrides --config.key=value.

  Asking twice gives the same flag: an entry point may import another one.
  """
  if "config" not in flags.FLAGS:
    config_flags.DEFINE_config_file(
      "config", help_string="Config file, e.g. configs/toy.py:tokens=continuous."
    )
    flags.FLAGS["config"].parser = _Parser("config")
  return flags.FlagHolder(flags.FLAGS, flags.FLAGS["config"])


def workdir_flag() -> flags.FlagHolder:
  """--workdir=DIR, the folder of one run."""
  if "workdir" not in flags.FLAGS:
    flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics.")
  return flags.FlagHolder(flags.FLAGS, flags.FLAGS["workdir"])


def joined(
  explain: Callable[[BaseException], BaseException | None],
  failed: Callable[[BaseException, int], None],
) -> None:
  """From now on this process is one of several: it ends at once, without the others.

  Args:
    explain: an error -> what it means if another process is its cause, or None.
    failed: tells the others of an error and the exit status that comes of it.
  """
  global _explain, _failed
  _explain, _failed = explain, failed


def require(holder: flags.FlagHolder):
  """Value of a flag that this entry point cannot do without."""
  if holder.value is None:
    raise UserError(f"missing flag --{holder.name}; see --help")
  if holder.name == "workdir":
    remote.check(files.place(holder.value, "--workdir"), "--workdir")
  return holder.value


def given(name: str) -> bool:
  """Whether a flag says something in this command; its default says nothing."""
  flag = flags.FLAGS[name]
  return not flag.using_default_value and flag.value not in (None, False)


def useful(
  *, needs: Mapping[str, str] | None = None, without: Mapping[str, str] | None = None
) -> None:
  """Refuses flags that would do nothing.

  Args:
    needs: flag -> another one that it says more of.
    without: flag -> another one that leaves it nothing to say.

  Raises:
    UserError: naming both.
  """
  for name, other in (needs or {}).items():
    if given(name) and not given(other):
      raise UserError(f"flag --{name} does nothing without --{other}: give both")
  for name, other in (without or {}).items():
    if given(name) and given(other):
      raise UserError(f"flag --{name} does nothing beside --{other}: leave one out")


def read(holder: flags.FlagHolder, *, buckets: bool = False) -> config.Run:
  """The config flag -> the dataclass of the whole run.

  Args:
    buckets: whether what it reads may lie in one (gs://...).
  """
  run = places(config.from_config_dict(require(holder)), shipped.find)
  for key, path in (
    ("data.cache", run.data.cache),
    *(("data.mixture", path) for path in run.data.mixture),
    ("tokenizer.path", run.tokenizer.path),
    ("init.workdir", run.init.workdir),
  ):
    (remote.check if buckets else files.on_disk)(path, f"config key '{key}'")
    if key != "tokenizer.path":  # Published weights may be one file.
      files.no_file(path, f"config key '{key}'")
  return run


def run(main, argv: list[str] | None = None, *, words: bool = False) -> None:
  """absl's app.run(main), where user errors are one line and an exit code (2).

  On a CPU the command starts once more, with memory settings that make it faster.

  Args:
    main: called with the arguments that are not flags, after the program's name.
    argv: (default: of this process).
    words: whether there may be such arguments.
  """
  if argv is None:
    pages.settle()

  def guarded(args):
    try:
      return main(args)
    except Exception as e:
      known = isinstance(e, config.ConfigError | OSError)
      e = (_explain and _explain(e)) or e
      if known or isinstance(e, config.ConfigError):
        return _report(e)
      if _failed:  # An orderly end would wait for the others.
        traceback.print_exc()
        _failed(e, 1)
        os._exit(1)
      raise

  def parse(args):
    try:
      _help(args)
      rest = flags.FLAGS(args)
      _once()
      # absl is about to raise a default to INFO, which floods the terminal with the
      # logs of libraries.
      if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)
      if len(rest) > 1 and not words:
        raise UserError(f"argument '{rest[1]}' is not a flag; see --help")
      if "config" in flags.FLAGS and flags.FLAGS.config is not None:
        _readable(flags.FLAGS.config)
      return rest
    except Exception as e:
      # config_flags lets KeyError, TypeError and whatever get_config raises through.
      sys.exit(_report(_cause(e, args)))

  app.run(guarded, argv=argv, flags_parser=parse)


def _once() -> None:
  """Refuses a config key given again: of {0..9}.tar only the last would be read."""
  for name in flags.FLAGS:
    flag = flags.FLAGS[name]
    if isinstance(flag, flags.MultiFlag):  # A tuple, which counts its elements.
      continue
    if name.startswith("config.") and (times := flag.present) > 1:
      raise UserError(
        f"config key '{name.removeprefix('config.')}' is given {times} times: give it "
        "once, and a pattern with braces in quotes, as shells make one flag of each"
      )


def _help(args) -> None:
  """Ends with status 0 where help is asked for: absl calls that a failure."""
  for arg in args[1:]:
    if re.fullmatch(r"--?(h|\?|help\w*)", arg):
      with contextlib.suppress(SystemExit, BrokenPipeError):
        flags.FLAGS([args[0], "--help" if arg.strip("-") == "h" else arg])
      sys.exit(0)


def _readable(loaded) -> None:
  # A config file that does not load becomes an object that raises when it is used.
  error = getattr(type(loaded), "_ReportError", None)
  if error:
    error(loaded)


def _cause(error: BaseException, args: list[str]) -> BaseException:
  """An error of flag parsing -> one that says what is wrong in the user's terms."""
  chain = [error]
  while cause := chain[-1].__cause__ or chain[-1].__context__:
    chain.append(cause)
  for e in reversed(chain):
    if isinstance(e, config.ConfigError) and "Traceback" not in str(e):
      return e
  missing = re.search(r"No such file or directory: '(.*?)'", str(error))
  if missing:
    return UserError(f"config file not found: {missing[1]}")
  if isinstance(error, KeyError | AttributeError | TypeError):
    # config_flags names the last part of an override; name the whole of it.
    text = str(error.args[0]) if error.args else ""
    first = re.search(r"\w+", text)
    for arg in args:
      name = arg.split("=")[0].lstrip("-").removeprefix("config.")
      if name in text or first and first[0] in name.split("."):
        near = re.search(r'Did you mean "(\w+)"', text)
        hint = f"; did you mean '{near[1]}'?" if near else ""
        return UserError(f"unknown config key '{name}'{hint}")
  if "Traceback" in str(error) or not isinstance(error, flags.Error):
    root = chain[-1]
    return UserError(f"{type(root).__name__} while reading the config: {root}")
  return error


def _report(error: BaseException) -> int:
  label = getattr(error, "label", "error")
  code = exit_code(error)
  if code == REQUEUE:
    # All is saved: one more signal, while the process ends, must not change the status.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
  sys.stdout.flush()
  print(f"{label}:", config.one_line(error), file=sys.stderr, flush=True)
  if _failed:
    _failed(error, code)
  if getattr(error, "at_once", False) or _explain:
    os._exit(code)  # An orderly end would wait: for threads, or for other processes.
  return code
