"""How a command of this folder ends."""

import signal
import sys
from collections.abc import Callable

from fluid.errors import ConfigError, one_line


def end(main: Callable[[], int]) -> None:
  """Exits with what `main` returns, or with 2 and one line of what is wrong.

  Ctrl-C is 130, as shells have it.
  """
  try:
    sys.exit(main())
  except (ConfigError, OSError) as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)
