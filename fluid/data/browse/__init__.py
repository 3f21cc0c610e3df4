"""A data set as one HTML page; see fluid.data.browse.__main__ for the command."""

import pathlib
from collections.abc import Callable, Sequence

from fluid import config, files
from fluid.data.browse.look import look

__all__ = ["browse", "look"]


def browse(
  run: config.Run,
  out: str | pathlib.Path,
  *,
  split: str = "train",
  n: int = 64,
  seed: int = 0,
  command: Sequence[str] = (),
  log: Callable[[str], None] = print,
) -> pathlib.Path:
  """Writes the page of a split; see `look`.

  Args:
    run: its sections data, text and tokenizer are used.
    out: file to write.
    split: of the data.
    n: examples to show.
    seed: of which.
    command: shown on the page as what makes it.
    log: receives lines of progress.

  Returns:
    The path of the page.

  Raises:
    ConfigError: there is neither a cache nor a source that can be read.
  """
  from fluid.data.browse import html  # Tables and their packages, for this alone.

  out = pathlib.Path(out)
  if out.is_dir():
    raise config.ConfigError(f"{out} is a folder: name a file to write")
  found = look(run, split, n, seed, log)
  files.write_text(out, html.render(run, split, found, command))
  return out
