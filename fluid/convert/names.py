"""Tables of names: which tensors of a published file become which parameter.

A `Spelling` is one way to write a family's names, read from our side: its rows turn the
name of a parameter into that of its source, so that nothing of ours is left empty, and
what no parameter asks for is left over and must be on the list of names to skip.

  rows      (pattern, source): the first pattern that fits the whole name gives the
            source, a template as of re.sub, or a function of the family's config and
            the pattern's groups where a number has to be computed.
  words     replace whole components of those groups, whose slashes become dots:
            'conv1/scale' goes into the source as 'conv1.weight'.
  layout    turns the array into ours; `torch` and `same` are here.

The source of one parameter can also be a part of a tensor, several tensors, or one of
each layer:

  name[1/3]   the second of three equal parts along the first axis (of a fused q, k, v)
  name[2:18]  rows of a table, whatever axes of size one come before them; so may be
              name[2:]
  a + b       one after another along the first axis
  blocks.*.x  one for each index of the parameter's first axis (of scanned layers)
"""

import collections
import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from fluid.convert.weights import Weights
from fluid.errors import ConfigError

TORCH = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
LISTED = 6  # Names of each kind that an error lists.


def same(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """A file of flax's, whose arrays lie as ours."""
  del name, shape
  return array


def torch(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Kernels [out, in] and [out, in, h, w] -> [in, out] and [h, w, in, out].

  A Linear and a 1x1 convolution become one another where ours is the other.
  """
  if not name.endswith("kernel"):
    return array
  array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
  if array.ndim == 2 and len(shape) == 4:
    return array[None, None]
  if array.shape[:2] == (1, 1) and len(shape) == 2:
    return array[0, 0]
  return array


Row = tuple[str, str | Callable[..., str]]


@dataclasses.dataclass(frozen=True)
class Spelling:
  """One way to write the names of a family.

  Attributes:
    rows, words, layout: see the module.
    sections: where in a file the weights are; the first that is there.
    skip: patterns of whole names in that section that are of no use to us.
  """

  rows: tuple[Row, ...]
  words: Mapping[str, str] = dataclasses.field(default_factory=lambda: TORCH)
  layout: Callable[[str, np.ndarray, tuple[int, ...]], np.ndarray] = torch
  sections: tuple[str, ...] = ("",)
  skip: tuple[str, ...] = ()

  def source(self, name: str, config: Any) -> str:
    """Our name 'a/b/c' -> the source, as the module's table says; '' for none."""
    for pattern, row in self.rows:
      if match := re.fullmatch(pattern, name):
        groups = [self._spelled(group) for group in match.groups()]
        if isinstance(row, str):
          return _expand(row, groups)
        return row(config, *groups)
    return ""

  def _spelled(self, ours: str) -> str:
    """'conv1/kernel' -> 'conv1.weight'."""
    return ".".join(self.words.get(part, part) for part in ours.split("/"))

  def section(self, weights: Weights) -> Weights:
    """The tensors of the first section that is there."""
    found = (weights.under(section) for section in self.sections)
    return next((part for part in found if part), Weights({}))


def tensors(source: str, shape: tuple[int, ...]) -> list[str]:
  """The tensors, or parts of them, that a source asks for."""
  each = [source]
  if "*" in source:
    each = [source.replace("*", str(i)) for i in range(shape[0])]
  return [name for part in each for name in part.split(" + ") if name]


def fill(
  shapes: Mapping[str, Any],
  weights: Weights,
  spellings: Iterable[Spelling],
  *,
  config: Any,
  given: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
  """Every parameter from its source, and every tensor in its place, once.

  Args:
    shapes: our names -> what has shape and dtype.
    weights: of a file.
    spellings: of the family; the one that finds most parameters is taken.
    config: for rows that compute.
    given: values of parameters that no file has.

  Returns:
    Our names -> arrays of our shapes and dtypes.

  Raises:
    ConfigError: names and shapes of all that is missing, left over or of other shapes.
  """
  given = {k: np.asarray(v) for k, v in (given or {}).items()}
  wanted = {k: v for k, v in shapes.items() if k not in given}
  out = {k: np.broadcast_to(v, shapes[k].shape) for k, v in given.items()}
  out |= _arrays(wanted, weights, spellings, config)
  return {k: np.ascontiguousarray(v, shapes[k].dtype) for k, v in out.items()}


def spell(
  values: Mapping[str, np.ndarray],
  like: Weights,
  spellings: Iterable[Spelling],
  *,
  config: Any,
) -> dict[str, np.ndarray]:
  """The way back: parameters under the names, and in the shapes, of a file.

  A row moves elements and changes none: its inverse is found by moving their numbers.

  Args:
    values: our names -> arrays, of parameters that `fill` would give.
    like: a file of the same model. What no parameter asks for is taken from it.
    spellings, config: as of `fill`.

  Returns:
    The file's names -> arrays of its shapes and dtypes.

  Raises:
    ConfigError: as of `fill`.
  """
  arrays = {name: np.asarray(like[name]) for name in like}
  starts = np.cumsum([0, *(a.size for a in arrays.values())])
  numbers = {
    name: (lambda start=start, a=a: start + np.arange(a.size).reshape(a.shape))
    for start, (name, a) in zip(starts, arrays.items())
  }
  wanted = {k: jax.ShapeDtypeStruct(v.shape, np.int64) for k, v in values.items()}
  flat = {name: a.reshape(-1).copy() for name, a in arrays.items()}
  named = list(flat)
  # One by one: numbers take two to four times as much as what they are of.
  for name, at in _arrays(wanted, Weights(numbers), spellings, config):
    at, new = at.reshape(-1), np.asarray(values[name]).reshape(-1)
    of = np.searchsorted(starts, at, "right") - 1
    for i in np.unique(of):
      here = of == i
      flat[named[i]][at[here] - starts[i]] = new[here]
  return {name: flat[name].reshape(a.shape) for name, a in arrays.items()}


def _arrays(wanted, weights, spellings, config) -> Iterator[tuple[str, np.ndarray]]:
  """Parameters and what they are filled with, by the spelling that finds most.

  Raises:
    ConfigError: as of `fill`, at the end.
  """
  plans = [_Plan(s, s.section(weights), wanted, config) for s in spellings]
  plan = max(plans, key=lambda plan: plan.found)
  yield from plan.arrays(wanted)
  if plan.faults:
    raise ConfigError("the file does not fit: " + "; ".join(plan.faults))


class _Plan:
  """One spelling tried on one file."""

  def __init__(self, spelling: Spelling, weights: Weights, wanted, config):
    self.spelling, self.weights = spelling, weights
    self.sources = {k: spelling.source(k, config) for k in wanted}
    self.asked = {k: tensors(s, wanted[k].shape) for k, s in self.sources.items()}
    self.found = sum(
      bool(names) and all(_whole(n) in weights for n in names)
      for names in self.asked.values()
    )
    self.faults: list[str] = []

  def arrays(self, wanted) -> Iterator[tuple[str, np.ndarray]]:
    """What can be filled; `faults` then says the rest."""
    missing, odd = [], []
    for name, like in wanted.items():
      lacking = [n for n in self.asked[name] if _whole(n) not in self.weights]
      if lacking or not self.asked[name]:
        said = f" ({', '.join(lacking[:2])})" if lacking else ""
        missing.append(f"{name} {tuple(like.shape)}{said}")
        continue
      try:
        array = self._one(self.sources[name], name, like.shape)
      except ValueError as e:
        odd.append(f"{name} {tuple(like.shape)} from {self.sources[name]} ({e})")
        continue
      if array.shape != tuple(like.shape):
        odd.append(f"{name} is {tuple(like.shape)}, in the file {array.shape}")
        continue
      # Now: in the end, what they were made of would still be held for all of them.
      yield name, np.ascontiguousarray(array, like.dtype)
    used = [n for names in self.asked.values() for n in names]
    self._fault("missing", missing)
    self._fault("of other shapes", odd)
    self._fault("left over", self._left(used))
    self._fault(
      "used twice", [n for n, k in collections.Counter(used).items() if k > 1]
    )

  def _one(self, source: str, ours: str, shape) -> np.ndarray:
    if "*" in source:
      layers = [source.replace("*", str(i)) for i in range(shape[0])]
      return np.stack([self._one(s, ours, shape[1:]) for s in layers])
    parts = [self._tensor(name) for name in source.split(" + ")]
    array = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return self.spelling.layout(ours, array, tuple(shape))

  def _tensor(self, name: str) -> np.ndarray:
    array = self.weights[_whole(name)]
    if "[" not in name:
      return array
    array = _table(array)
    rows = _rows(name, len(array))
    return array[rows.start : rows.stop]

  def _left(self, used: list[str]) -> list[str]:
    """Tensors, or rows of them, that no parameter asks for."""
    parts: dict[str, list[str]] = {}
    for name in used:
      parts.setdefault(_whole(name), []).append(name)
    out = []
    for name in self.weights:
      asked = parts.get(name, [])
      if name in asked or any(re.fullmatch(p, name) for p in self.spelling.skip):
        continue
      array = self.weights[name]
      if asked:
        total = len(_table(array))
        rows = set(range(total))
        with contextlib.suppress(ValueError):  # Said of what asks for them.
          rows.difference_update(*(_rows(part, total) for part in asked))
        if rows:
          out.append(f"{len(rows)} rows of {name} {array.shape}")
      else:
        out.append(f"{name} {array.shape}")
    return out

  def _fault(self, what: str, names: list[str]) -> None:
    if names:
      more = len(names) - LISTED
      listed = ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
      self.faults.append(f"{len(names)} {what}: {listed}")


def _expand(template: str, groups: list[str]) -> str:
  """A template as of re.sub."""
  return re.sub(r"\\(\d)", lambda m: groups[int(m[1]) - 1], template)


def _table(array: np.ndarray) -> np.ndarray:
  """Without axes of size one before the rows."""
  lead = next((i for i, n in enumerate(array.shape) if n > 1), 0)
  return array.reshape(array.shape[lead:])


def _rows(name: str, total: int) -> range:
  """Rows that 'x[1/3]' or 'x[2:18]' asks for, of so many.

  Raises:
    ValueError: the tensor does not have them.
  """
  if part := re.search(r"\[(\d+)/(\d+)\]$", name):
    of, parts = int(part[1]), int(part[2])
    if total % parts:
      raise ValueError(f"its {total} rows are not {parts} equal parts")
    return range(of * total // parts, (of + 1) * total // parts)
  start, stop = re.search(r"\[(\d+):(\d*)\]$", name).groups()  # type: ignore[union-attr]
  end = int(stop) if stop else total
  if end > total:
    raise ValueError(f"it has {total} rows")
  return range(int(start), end)


def _whole(name: str) -> str:
  return name.partition("[")[0]
