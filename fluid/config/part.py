"""Parts: components that bring their own section of the config.

The section of a part is {kind, **fields}. Its family's registry maps the kind to a
frozen dataclass, whose fields are the schema, whose docstring is the documentation, and
whose methods make the component. A row of a registry is that class or 'module:Class',
imported when the kind is asked for; so this package, which all others import, knows
registries by name alone.

Field metadata says what a value is part of, for all who ask (fluid.config.identity):
`free` values may differ between a run and what continues it, `place` values say where
files lie, `said` values are of no account to tokenizers, `drawn` values only to how
training draws from caches. Everything else belongs to the identity of its section;
`added` values do where they are not at their defaults. Numbers that are `signed` may be
below 0.
"""

import dataclasses
import importlib
from collections.abc import MutableMapping
from typing import Any, ClassVar

from fluid.errors import ConfigError

# Family -> the registry of its kinds.
FAMILIES = {
  "head": "fluid.models.heads:HEADS",
  "order": "fluid.models.orders:ORDERS",
  "trunk": "fluid.models.trunks:TRUNKS",
  "condition": "fluid.models.conditions:CONDITIONS",
  "tokenizer": "fluid.tokenizers:TOKENIZERS",
  "text": "fluid.text:ENCODERS",
  "source": "fluid.data:SOURCES",
  "eval": "fluid.evals:EVALS",
}


@dataclasses.dataclass(frozen=True)
class Part:
  """Base of every part's config.

  Attributes:
    kind: the key of its row in the registry of its family.
  """

  kind: ClassVar[str] = ""

  def check(self, name: str) -> None:
    """Raises ConfigError for values that cannot be used; `name` is the section's."""

  def vouched(self, prefix: str) -> dict[str, str]:
    """What belongs to its identity beside the fields, by dotted name: of its files."""
    del prefix
    return {}


@dataclasses.dataclass(frozen=True)
class Draw:
  """How a head or an order draws tokens: its options in config section 'sample'."""

  def at(self, known: float) -> "Draw":
    """The options of a decoding step before which a share of the tokens is known."""
    del known
    return self


def free(default: Any = dataclasses.MISSING, **kwargs) -> Any:
  """A field that may differ between a run and what continues it."""
  return dataclasses.field(default=default, metadata={"free": True}, **kwargs)


def place(default: str | tuple[str, ...] = "") -> Any:
  """A field that says where a file or folder lies ('' for nowhere), or several."""
  return dataclasses.field(default=default, metadata={"place": True})


def said(default: Any) -> Any:
  """A field of a source that changes what is said of images, not the images."""
  return dataclasses.field(default=default, metadata={"said": True})


def added(default: Any, *kinds: str) -> Any:
  """A field that is younger than what is stored; at its default, identities lack it.

  Args:
    kinds: what else it is, such as 'said'.
  """
  return dataclasses.field(
    default=default, metadata=dict.fromkeys(("added", *kinds), True)
  )


def signed(default: float) -> Any:
  """A field whose number may be below 0; no other may (fluid.config.rules)."""
  return dataclasses.field(default=default, metadata={"signed": True})


def section(family: str, kind: str) -> Any:
  """A field that holds a part of a family, by default that of `kind`."""
  return dataclasses.field(
    default_factory=lambda: resolve(family, kind)(),
    metadata={"family": family, "kind": kind},
  )


def named(family: str) -> Any:
  """A field that maps names to parts; a name is the kind where none is given."""
  return dataclasses.field(
    default_factory=dict, metadata={"family": family, "named": True, "free": True}
  )


def registry(family: str) -> MutableMapping[str, Any]:
  """The table of a family: kind -> class, or 'module:Class'."""
  return _load(FAMILIES[family])


def resolve(family: str, kind: Any, name: str = "") -> type[Part]:
  """The class of a part's config.

  Args:
    family: key of FAMILIES.
    kind: key of its registry.
    name: of the config section, for the message.

  Raises:
    ConfigError: there is no such kind, naming those that there are.
  """
  table = registry(family)
  if not isinstance(kind, str) or kind not in table:
    raise ConfigError(
      f"config key '{name or family}.kind' is {kind!r}; choose from {', '.join(table)}"
    )
  return resolve_row(table[kind])


def resolve_row(row: Any) -> type[Any]:
  """What stands in a registry -> the class."""
  return _load(row) if isinstance(row, str) else row


def _load(where: str) -> Any:
  module, _, name = where.partition(":")
  return getattr(importlib.import_module(module), name)
