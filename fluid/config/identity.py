"""What makes two data sets, tokenizers or runs the same: written once, in the fields.

A value is part of the identity of its section unless its field says that it is free or
a place (fluid.config.part). fluid.prepare, launch.plan, workdirs, cached features and
tables of runs all ask here.
"""

import dataclasses
import hashlib
import json
from typing import Any

from fluid.config import upgrade
from fluid.config.read import part_from_dict, to_dict
from fluid.config.sections import Run

NONE = ("free", "place")  # Kinds of fields that are no part of any identity.
FILES = "data.files."  # Prefix of what vouches for the files of a source.


def identity(config: Any, prefix: str = "", *, no=NONE) -> dict[str, Any]:
  """Dotted name -> JSON-able value of all that belongs to the identity of a section.

  Args:
    config: dataclass.
    prefix: of the names.
    no: metadata of the fields that do not count.
  """
  out: dict[str, Any] = {}
  if kind := getattr(config, "kind", ""):
    out[f"{prefix}kind"] = kind
  for field in dataclasses.fields(config):
    if any(field.metadata.get(kind) for kind in no):
      continue
    value, name = getattr(config, field.name), prefix + field.name
    if field.metadata.get("added") and value == field.default:
      continue
    if dataclasses.is_dataclass(value):
      out |= identity(value, f"{name}.", no=no)
    else:
      out[name] = to_dict(value)
  return out


def of_tokenizer(run: Run) -> dict[str, Any]:
  """What a tokenizer is trained from: its architecture, its recipe, its images."""
  images = identity(run.data, "data.", no=(*NONE, "said", "drawn"))
  return identity(run.tokenizer, "tokenizer.") | images


def of_text(run: Run) -> dict[str, Any]:
  """What ids or features of a prompt depend on, beside a vocabulary that is made."""
  return identity(run.text, "text.") | run.text.vouched("text.")


def of_cache(run: Run, *, files: bool = True) -> dict[str, Any]:
  """What cached tokens are made from, beside the tokenizer's weights.

  Args:
    files: also what vouches for those of the source, which takes a look at them.
  """
  made = identity(run.data, "data.", no=(*NONE, "drawn"))
  vouched = run.data.source.vouched(FILES) if files else {}
  return made | vouched | of_text(run)


def stored(found: dict[str, Any]) -> dict[str, Any]:
  """The identity in a cache's metadata.json, also of one written before layout 2.

  Fields that its source has got since then are at their defaults.
  """
  prefix = "data.source."
  if "data.source" in found:
    section = {k: found[f"data.{k}"] for k in ("source", "source_args")}
    section = upgrade.data(section)["source"]
  else:
    section = {k[len(prefix) :]: v for k, v in found.items() if k.startswith(prefix)}
  if not section:
    return found
  out = {k: v for k, v in found.items() if not k.startswith("data.source")}
  return out | identity(part_from_dict(section, "source", prefix), prefix)


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
  """Names under which two identities differ, in order."""
  return [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]


def said(found: dict[str, Any], name: str) -> str:
  """What an identity says under a name, for messages."""
  return repr(found[name]) if name in found else "its default"


def digest(identity: dict[str, Any], length: int = 12) -> str:
  """A short name of an identity."""
  text = json.dumps(identity, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:length]


def places(run: Run, change) -> Run:
  """The run with `change(path)` in place of every path that it names."""

  def walk(node):
    changes = {}
    for field in dataclasses.fields(node):
      value = getattr(node, field.name)
      if field.metadata.get("place"):
        several = isinstance(value, tuple)
        changes[field.name] = tuple(map(change, value)) if several else change(value)
      elif dataclasses.is_dataclass(value):
        changes[field.name] = walk(value)
    return dataclasses.replace(node, **changes)

  return walk(run)
