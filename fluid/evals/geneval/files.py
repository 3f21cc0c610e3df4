"""Files of GenEval: metadata, detections, results, images laid out for its evaluator.

Legend: P prompts, K images of each, H, W pixels.
"""

import json
import math
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from fluid.errors import ConfigError, one_line
from fluid.evals.geneval.rules import RELATIONS, Detection, Objects

Row = TypeVar("Row")


def write_detections(path, objects: Iterable[Objects]) -> None:
  """One line of JSON an image: class -> [[x1, y1, x2, y2, score, colour], ...]."""
  with open(path, "w") as f:
    for found in objects:
      plain = {
        k: [[*map(float, d[:5]), d[5]] for d in boxes] for k, boxes in found.items()
      }
      f.write(json.dumps(plain) + "\n")


def read_detections(path, images: int) -> list[Objects]:
  """What write_detections wrote, or another detector's output in that form.

  A colour that is null or left out is for a ColorClassifier to find.

  Raises:
    ConfigError: the file is missing, damaged, or of another number of images.
  """
  form = "class -> [[x1, y1, x2, y2, score, colour], ...] of an image"
  found = _rows(path, _objects, "detections", form)
  if len(found) != images:
    raise ConfigError(
      f"detections {path} are of {len(found)} images, but there are {images}: detect "
      "again in the images that are judged (evals.geneval.layout writes those drawn)"
    )
  return found


def _objects(row) -> Objects:
  return {name: [_detection(name, d) for d in found] for name, found in row.items()}


def _detection(name: str, found) -> Detection:
  box = [*found, None][:6] if isinstance(found, list) else []
  numbers = [v for v in box[:5] if type(v) in (int, float) and math.isfinite(v)]
  if len(box) != max(6, len(found)) or len(numbers) != 5:
    raise ValueError(f"{name} has {found!r}")
  if not (box[5] is None or isinstance(box[5], str)):
    raise ValueError(f"{name} has the colour {box[5]!r}")
  return box


def read_metadata(path) -> list[dict]:
  """Lines of GenEval's metadata, as its evaluation_metadata.jsonl has them.

  Raises:
    ConfigError: the file is missing or empty, or a line is none of it.
  """
  form = "tag, include (class and count each) and prompt"
  found = _rows(path, _metadata, "metadata of GenEval", form)
  if not found:
    raise ConfigError(f"{path} is empty: it must have lines with {form}")
  return found


def _metadata(line) -> dict:
  for key, kind in (("tag", str), ("prompt", str), ("include", list)):
    if not isinstance(line[key], kind):
      raise ValueError(f"{key} is {line[key]!r}")
  for number, clause in enumerate([*line["include"], *line.get("exclude", ())]):
    if not (isinstance(clause["class"], str) and type(clause["count"]) is int):
      raise ValueError(f"a clause is {clause!r}")
    if "position" in clause:
      relation, target = clause["position"]
      earlier = type(target) is int and 0 <= target < number
      if relation not in RELATIONS or not earlier:
        raise ValueError(f"a position is {clause['position']!r}")
  return line


def read_results(path) -> list[dict]:
  """What the reference evaluator wrote: one line of JSON an image.

  Returns:
    'tag', 'prompt' and 'correct' of each image, as `summarize` takes them.

  Raises:
    ConfigError: the file is missing, or a line is none of its.
  """

  def result(row):
    kept = {"tag": row["tag"], "prompt": row["prompt"]}
    return kept | {"correct": bool(row["correct"])}

  form = "tag, prompt and correct"
  return _rows(path, result, "result of GenEval's evaluator", form)


def _rows(path, parse: Callable[[Any], Row], what: str, form: str) -> list[Row]:
  """Lines of JSON, each parsed; a ConfigError names the file, the line and the form."""
  try:
    lines = pathlib.Path(path).read_text().split("\n")
  except (OSError, ValueError) as e:
    raise ConfigError(
      f"{path} cannot be read ({one_line(e)}): name a file of lines with {form}"
    ) from e
  out = []
  for number, line in enumerate(lines, 1):
    try:
      if not line.strip():
        continue
      if not isinstance(row := json.loads(line), dict):
        raise ValueError("no object of JSON")
      out.append(parse(row))
    except (ValueError, KeyError, TypeError) as e:
      why = f"no {e}" if isinstance(e, KeyError) else one_line(e)
      raise ConfigError(
        f"{path} line {number} is no {what} ({why}): it must have {form}"
      ) from e
  return out


def write_layout(out, metadata: Sequence[dict], images: np.ndarray) -> None:
  """Writes images [P, K, H, W, 3] uint8 where the reference evaluator looks for them.

  OUT/00000/metadata.jsonl and OUT/00000/samples/0000.png, one folder a prompt. What an
  earlier call left there goes: it may have been of other prompts.
  """
  for old in pathlib.Path(out).glob("[0-9]" * 5):
    shutil.rmtree(old)
  for i, (line, group) in enumerate(zip(metadata, images, strict=True)):
    folder = pathlib.Path(out) / f"{i:05d}"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    for k, image in enumerate(group):
      Image.fromarray(np.asarray(image)).save(folder / "samples" / f"{k:04d}.png")
