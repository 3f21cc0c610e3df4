"""Records: a number and all that it hangs on, JSON-able.

Metrics of images write their own (fluid.evals.measures); of other evaluators they are
made of the names of their values.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fluid import config
from fluid.evals.base import Evaluation

# Ends of names of values that say more of another one -> the key in its record.
_ENDS = {"_lo": "lo", "_hi": "hi", "_sem": "sem", "_n": "images", "_count": "images"}


def described(
  name: str,
  part: Evaluation,
  run: config.Run,
  values: Mapping[str, Any],
  own: Sequence[dict],
) -> list[dict]:
  """Records of an evaluator's numbers.

  Args:
    name: of the evaluator in config.evals.
    part: its config.
    run: the whole config.
    values: what it yielded, by name.
    own: records that it wrote itself (none: they are made of the values).

  Returns:
    Each with 'metric' and 'value'; 'of', the evaluator; its settings; 'sample', where
    it draws; 'source', where it is of a split of that.
  """
  common: dict[str, Any] = {"of": name} | part.said()
  if "split" in common:
    common["source"] = config.to_dict(run.data.source)
  if hasattr(part, "sample") and "noise_seed" in common:
    common["sample"] = run.sample.replace(**part.sample).flat()
  return [common | record for record in own or _named(values)]


def _named(values: Mapping[str, Any]) -> Iterator[dict]:
  """A record of each number, with its interval and its number of images."""
  more = {name + end for name in values for end in _ENDS} & values.keys()
  for name, value in values.items():
    if name in more or isinstance(value, str) or name.startswith("sample/"):
      continue
    record = {"metric": name, "value": value}
    for end, key in _ENDS.items():
      if (found := values.get(name + end)) is not None:
        record[key] = int(found) if key == "images" else found
    yield record
