"""Ends runs for good: python -m launch.stop --workdir DIR [RUN ...]

On a scheduler they are cancelled, and `launch.sweep` leaves them alone until
`launch.retry`. Here a stage saves and ends, and the next `launch.sweep` goes on with
it; without names so does the launcher with all of them, and kills what has not ended
within a minute: a program that is being compiled cannot be left.
"""

import os
import signal

from fluid.durable.lock import owner
from launch import engines, errors, view
from launch.order import hold


def main(argv: list[str] | None = None) -> int:
  args = view.parser("stop", names=True).parse_args(argv)
  workdir = view.folder(args)
  _, found, remote = view.open_sweep(workdir)
  names = view.chosen(found, args.run)
  if remote is not None:
    with hold(workdir):
      engines.patiently(remote.look)
      stopped = remote.stop([n for n in names if n in remote.entries])
    for entry in stopped:
      print(f"{entry.stage.id}: cancelled")
    print(f"{len(stopped)} of {len(names)} stages stopped")
    return 0
  if not args.run:
    running = {"the launcher": owner(workdir)}
  else:  # A run has its folder to itself, also where no launcher started it.
    running = {n: found[n].pid or owner(found[n].stage.folder) for n in names}
  for name, pid in running.items():
    if not pid:
      print(f"{name}: does not run here")
    else:
      try:
        os.kill(pid, signal.SIGTERM)
      except ProcessLookupError:  # A launcher that was killed: its jobs know of it.
        print(f"{name}: process {pid} has ended, what it started saves and ends")
      else:
        print(f"{name}: process {pid} saves and ends")
  return 0


if __name__ == "__main__":
  errors.end(main)
