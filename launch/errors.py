"""How a command of this folder ends."""

import os
import signal
import sys
from collections.abc import Callable

from fluid.errors import ConfigError, exit_code, one_line


def end(main: Callable[[], int]) -> None:
  """Exits with what `main` returns, or with one line of what is wrong.

  That is 2, or 75 where the same command may go on later; Ctrl-C is 130, as shells have
  it, and 141 where nobody reads on (| head), without a word.
  """
  try:
    code = main()
    sys.stdout.flush()
    sys.exit(code)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
  except (ConfigError, OSError) as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(exit_code(error))
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)
