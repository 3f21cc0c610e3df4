"""What a user can put right: errors that end as one line."""

REQUEUE = 75  # EX_TEMPFAIL, an exit status: nothing is wrong, the same command goes on.


class ConfigError(ValueError):
  """A configuration that cannot be used; the message names the key and the remedy."""


def one_line(error: BaseException) -> str:
  """An error's message on one line; of the operating system's, what and which file."""
  message = str(error)
  if isinstance(error, OSError) and error.strerror:
    message = (
      f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    )
  return " ".join(message.split())
