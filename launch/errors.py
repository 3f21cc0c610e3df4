"""How a command of this folder ends."""

import sys
from collections.abc import Callable

from fluid.errors import ConfigError, one_line


def end(main: Callable[[], int]) -> None:
  """Exits with what `main` returns, or with 2 and one line of what is wrong."""
  try:
    sys.exit(main())
  except (ConfigError, OSError) as error:
    print(f"error: {one_line(error)}", file=sys.stderr)
    sys.exit(2)
