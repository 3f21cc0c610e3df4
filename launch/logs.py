"""What a run printed: python -m launch.logs RUN --workdir DIR [--follow]"""

import subprocess

from fluid import files
from fluid.errors import ConfigError
from fluid.remote import is_url
from launch import engines, errors, view


def main(argv: list[str] | None = None) -> int:
  parser = view.parser("logs")
  parser.add_argument("run", help="name of a run, or KIND/NAME of a stage")
  parser.add_argument("--follow", action="store_true", help="goes on until Ctrl-C")
  args = parser.parse_args(argv)
  workdir = view.folder(args)
  _, found, remote = view.open_sweep(workdir)
  run = f"run/{args.run}"  # Its tuning has its name, too.
  names = [run] if run in found else view.chosen(found, [args.run])
  if len(names) > 1:
    raise ConfigError(f"'{args.run}' means {len(names)} stages: {', '.join(names)}")
  entry = found[names[0]]
  log = workdir / "logs" / entry.log
  over = entry.status not in engines.ALIVE
  kept = files.tail(log, 1) != b""
  if over and kept and is_url(log):
    print(files.read_text(log), end="")
    return 0
  if remote is None or over and kept:
    command = ["tail", "-n", "+1", *(["-F"] if args.follow else []), str(log)]
  elif not entry.key:
    raise ConfigError(f"{entry.stage.id} is {entry.status}: it has not been submitted")
  elif over and not remote.engine.keeps:
    raise ConfigError(
      f"{entry.stage.id} is {entry.status} and its machines are gone with what it "
      f"printed; what they sent before would be in {log}, which is not there"
    )
  else:
    command = remote.engine.logs(entry.key, str(log), follow=args.follow)
  if command[0] == "tail" and not kept and not args.follow:
    raise ConfigError(f"{entry.stage.id} is {entry.status} and has printed nothing yet")
  try:
    return subprocess.run(command).returncode
  except FileNotFoundError:
    raise ConfigError(f"the command {command[0]} is not installed here") from None
  except KeyboardInterrupt:
    return 0


if __name__ == "__main__":
  errors.end(main)
