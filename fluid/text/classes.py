"""Class names as prompts of one token.

B prompts.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from fluid import files
from fluid.config import ConfigError, rules
from fluid.text.base import TextConfig
from fluid.text.pieces import PromptError


@dataclasses.dataclass(frozen=True)
class ClassesConfig(TextConfig):
  """The classes of a source that has `classes` and `label(index)`; one name a line."""

  kind = "classes"
  FILE = "classes.txt"

  vocab_size: int = 1000
  length: int = 1

  def check(self, name):
    rules.positive(self, name, "vocab_size")
    if self.length != 1:
      raise ConfigError(f"config key '{name}length' must be 1, not {self.length}")

  def prompt(self, source, index, example=None):
    return source.label(index)

  def fit(self, source, total, path, keep=None):
    del total, keep
    names = list(getattr(source, "classes", ()))
    if not names:
      raise ConfigError(
        "config key 'text.kind' is 'classes', but the data source has no classes; "
        "choose another source or text encoder"
      )
    if len(names) > self.vocab_size:
      raise ConfigError(
        f"config key 'text.vocab_size' is {self.vocab_size}, but the data source has "
        f"{len(names)} classes"
      )
    files.write_text(path, "".join(f"{name}\n" for name in names))

  def open(self, path):
    return Classes(path)


class Classes:
  """Ids of classes, by name or number.

  Attributes:
    names: of the classes, by id.
    size: number of classes.
  """

  def __init__(self, path: pathlib.Path):
    if not path.is_file():
      raise ConfigError(
        f"no class names {path}: run python -m fluid.prepare, or set config key "
        "'text.path'"
      )
    self._path = path
    self.names = path.read_text("utf-8").removesuffix("\n").split("\n")
    self.size = len(self.names)
    self._ids = {name: i for i, name in enumerate(self.names)}

  def encode(
    self, prompts: Sequence[str], length: int = 1, *, on_unknown: str = "error", **_
  ) -> tuple[np.ndarray, np.ndarray]:
    """Class names or numbers (B) -> ids [B, 1] int32, mask [B, 1] bool.

    With on_unknown='keep' an empty prompt, such as stands in the place of an example
    that is skipped, is class 0.

    Raises:
      PromptError: naming the prompt, and the classes that there are.
    """
    of_data = on_unknown == "keep"
    found = [0 if of_data and not p else self._id(p, of_data) for p in prompts]
    ids = np.array(found, np.int32)[:, None]
    return ids, np.ones(ids.shape, bool)

  def count(self, prompt: str) -> int:
    """Tokens of a prompt."""
    return 1

  def decode(self, ids: np.ndarray) -> list[str]:
    """Ids [B, 1] -> names."""
    return [self.names[i] for i in np.asarray(ids)[:, 0].tolist()]

  def _id(self, prompt: str, of_data: bool) -> int:
    if prompt in self._ids:
      return self._ids[prompt]
    if prompt.strip().isdecimal():  # isdigit() has ² as well.
      number = int(prompt)
      if number < self.size:
        return number
      raise PromptError(f"class id {number} is out of range: there are {self.size}")
    some = ", ".join(self.names[:8]) + (", ..." if self.size > 8 else "")
    hint = ""
    if of_data:
      hint = (
        f"; images with other names for these: copy {self._path} beside their train"
      )
    raise PromptError(
      f"this model is conditioned on classes, not on text: {prompt!r} is none of {some}"
      + hint
    )
