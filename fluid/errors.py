"""What a user can put right: errors that end as one line."""

import errno
import os
import re
from collections.abc import Iterator

NO_PROGRESS = (
  5  # An exit status: started again and again, and no checkpoint came of it.
)
REQUEUE = 75  # EX_TEMPFAIL, an exit status: nothing is wrong, the same command goes on.


class ConfigError(ValueError):
  """A configuration that cannot be used; the message names the key and the remedy."""


# What a file system says when something is wrong with it, rather than with a path.
_PASSES = {
  errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.ETIMEDOUT, errno.EBUSY,
  errno.ENOTCONN, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN,
  errno.EHOSTUNREACH, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED,
  errno.EREMOTEIO, errno.ENFILE, errno.EMFILE, errno.ENOLCK, errno.ENOMEM,
  errno.ESHUTDOWN,
}  # fmt: skip
# What TensorStore says of a server that is away.
_AWAY = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED)\b")


def exit_code(error: BaseException) -> int:
  """The exit status of an error: 2 unless it says otherwise.

  A file system that is full, stale or away for a while is one that the same command may
  go on with: REQUEUE, whatever was made of the error since.
  """
  if code := getattr(error, "exit_code", 0):
    return code
  passes = (isinstance(e, OSError) and e.errno in _PASSES for e in causes(error))
  return REQUEUE if any(passes) else 2


def passing(error: BaseException) -> bool:
  """Whether an error says nothing of a file: no memory, or what it lies on is away."""
  said = any(_number(e) or _AWAY.search(str(e)) for e in causes(error))
  return said or exit_code(error) == REQUEUE


def _number(error: BaseException) -> int | None:
  """Of _PASSES, which one it is."""
  if isinstance(error, MemoryError):
    return errno.ENOMEM
  if isinstance(error, OSError):
    return error.errno if error.errno in _PASSES else None
  # Libraries in C++ pass on what the system said, not its number.
  return next((c for c in _PASSES if os.strerror(c) in str(error)), None)


def raise_passing(error: Exception, name: str | os.PathLike) -> None:
  """Raises what says nothing of a file: no memory, or a file system that is away.

  Whoever takes errors for damage asks first: the same command may go on later.

  Args:
    error: of reading a file.
    name: of the file.

  Raises:
    OSError: naming it, with exit_code REQUEUE.
  """
  if code := _number(error):
    raise OSError(code, os.strerror(code), str(name)) from error


def causes(error: BaseException) -> Iterator[BaseException]:
  """An error, what it was made of, and so on."""
  cause: BaseException | None = error
  while cause is not None:
    yield cause
    hidden = cause.__suppress_context__
    cause = cause.__cause__ or (None if hidden else cause.__context__)


def one_line(error: BaseException) -> str:
  """An error's message on one line; of the operating system's, what and which file."""
  message = str(error)
  if isinstance(error, OSError) and error.strerror:
    message = (
      f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    )
  return " ".join(message.split())
