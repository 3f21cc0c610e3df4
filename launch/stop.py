"""Ends runs for good: python -m launch.stop --workdir DIR [RUN ...]

On a scheduler they are cancelled, and `launch.sweep` leaves them alone until
`launch.retry`. Here a run saves and ends; without names so does the launcher.
"""

import os
import signal

from fluid.durable.lock import owner
from launch import errors, view
from launch.order import hold


def main(argv: list[str] | None = None) -> int:
  args = view.parser("stop", names=True).parse_args(argv)
  workdir = view.folder(args)
  _, found, remote = view.open_sweep(workdir)
  names = view.chosen(found, args.run)
  if remote is not None:
    with hold(workdir):
      remote.look()
      stopped = remote.stop([n for n in names if n in remote.entries])
    for entry in stopped:
      print(f"{entry.stage.id}: cancelled")
    print(f"{len(stopped)} of {len(names)} stages stopped")
    return 0
  if not args.run:
    folders = [("the launcher", workdir)]
  else:
    folders = [(n, found[n].stage.folder) for n in names]
  for name, folder in folders:
    pid = owner(folder)
    if pid is None:
      print(f"{name}: does not run here")
    else:
      os.kill(pid, signal.SIGTERM)
      print(f"{name}: process {pid} saves and ends")
  return 0


if __name__ == "__main__":
  errors.end(main)
