"""Takes up again what ended: python -m launch.retry --failed --workdir DIR [RUN ...]

Stages that failed (--failed), were cancelled (--cancelled) or are named are submitted
again, with the code as it is now; on this machine the sweep goes on, as launch.sweep.
"""

from fluid.errors import ConfigError
from launch import engines, errors, sweep, view
from launch.entries import STOPPED
from launch.order import hold


def main(argv: list[str] | None = None, build=None) -> int:
  parser = view.parser("retry", names=True)
  parser.add_argument("--failed", action="store_true", help="what failed or is blocked")
  parser.add_argument("--cancelled", action="store_true", help="what was stopped")
  args = parser.parse_args(argv)
  workdir = view.folder(args)
  states = ("failed", "blocked") * args.failed + ("cancelled",) * args.cancelled
  if not states and not args.run:
    raise ConfigError("--failed, --cancelled or the names of runs are needed")
  order, found, remote = view.open_sweep(workdir, build)
  wanted = [
    n for n in view.chosen(found, args.run) if found[n].status in (states or STOPPED)
  ]
  for name in view.chosen(found, args.run) if args.run else ():
    if name not in wanted:
      print(f"{name} is {found[name].status}: there is nothing to try again")
  print(f"{len(wanted)} stages to try again: {', '.join(wanted) or 'none'}")
  if not wanted:
    return 0
  if remote is None:
    for name in wanted:
      (found[name].stage.folder / "starts.json").unlink(missing_ok=True)
    return sweep.launch(order, workdir, also=wanted)
  with hold(workdir):
    engines.patiently(remote.look)
    remote.retry([n for n in wanted if n in remote.entries])
  return sweep.submit(order, workdir, build=build, also=wanted)


if __name__ == "__main__":
  errors.end(main)
