"""GenEval: does an image show the objects, counts, colours and places of its prompt?

The rules, thresholds and reason strings are those of the reference evaluator
(djghosh13/geneval); the detector and the colour classifier are protocols, so real
detectors, detections read from a file and the detector of procedural images feed the
same code.

Legend: N images, H, W pixels, P prompts, K images of each.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from fluid.data.captions import TAGS

COLORS = (
  "red",
  "orange",
  "yellow",
  "green",
  "blue",
  "purple",
  "pink",
  "brown",
  "black",
  "white",
)
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD = 0.3
COUNTING_THRESHOLD = 0.9
MAX_OBJECTS = 16
POSITION_THRESHOLD = 0.1

# One detection is [x1, y1, x2, y2, score, colour]: corners in pixels, a score in [0, 1]
# and a colour name, or None where a ColorClassifier has yet to look.
Detection = Sequence[Any]
Objects = dict[str, list[Detection]]


class Detector(Protocol):
  """Finds objects: images [N, H, W, 3] uint8 -> per image, class -> detections."""

  def __call__(self, images: np.ndarray) -> list[Objects]: ...


class ColorClassifier(Protocol):
  """Colours of the boxes [x1, y1, x2, y2] of one class in an image [H, W, 3] uint8.

  `masks`, where a detector has some, are bool [H, W] of each box.
  """

  def __call__(
    self,
    image: np.ndarray,
    boxes: Sequence[Sequence[float]],
    name: str,
    masks: Sequence[np.ndarray | None] | None = None,
  ) -> list[str]: ...


def add_colors(
  image: np.ndarray,
  objects: Objects,
  classify: ColorClassifier,
  masks: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> Objects:
  """Detections of one image -> the same with every missing colour filled in."""
  out: Objects = {}
  for name, found in objects.items():
    blank = [i for i, d in enumerate(found) if d[5] is None]
    boxes = [found[i][:4] for i in blank]
    own = [masks[name][i] for i in blank] if masks else None
    colors = iter(classify(image, boxes, name, own) if blank else ())
    out[name] = [[*d[:5], next(colors) if d[5] is None else d[5]] for d in found]
  return out


def detect(
  detector: Detector,
  images: np.ndarray,
  metadata: Sequence[dict],
  classify: ColorClassifier | None = None,
  track=None,
) -> list[Objects]:
  """Objects of images [N, H, W, 3] uint8, with the colours that their prompts ask for.

  Args:
    detector: one that has `detect_with_masks` shows the classifier its masks.
    images: one for each line of metadata.
    metadata: says of which classes a colour is asked.
    classify: of detections whose colour the detector leaves open.
    track: (images, name, how many) -> the same images, see progress.track.
  """
  rows = getattr(detector, "detect_with_masks", None)
  found: Iterable = rows(images) if rows else ((o, None) for o in detector(images))
  if track:
    found = track(found, "objects", len(images))
  if classify is None:
    return [objects for objects, _ in found]  # Images may be files: none is opened.
  out = []
  for image, line, (objects, masks) in zip(images, metadata, found, strict=True):
    if wanted := _coloured(line):
      # The most confident alone are looked at, but counting them needs them all.
      asked = {k: v for k, v in objects.items() if k in wanted}
      objects = objects | add_colors(image, asked, classify, masks)
    out.append(objects)
  return out


def _coloured(line: dict) -> set[str]:
  """Classes of which a line of metadata asks for a colour."""
  return {c["class"] for c in line.get("include", ()) if "color" in c}


def colors_missing(objects: Iterable[Objects], metadata: Iterable[dict]) -> bool:
  """Whether a colour that a line asks for is left open in the objects of its image."""
  return any(
    detection[5] is None
    for found, line in zip(objects, metadata, strict=True)
    for name in _coloured(line)
    for detection in found.get(name, ())
  )


def score(objects: Objects, metadata: dict) -> tuple[bool, str]:
  """Verdict on one image.

  Args:
    objects: class -> detections, of any confidence and in any order.
    metadata: a line of GenEval's evaluation_metadata.jsonl: tag, include, exclude.

  Returns:
    Whether every clause of `include` and none of `exclude` holds, and why not, one
    line for each clause that fails.
  """
  objects = _confident(objects, metadata["tag"])
  reasons = []
  groups: list[list[Detection] | None] = []  # per clause: the boxes that met it
  for clause in metadata.get("include", []):
    found = objects.get(clause["class"], [])[: clause["count"]]
    reason = _unmet(clause, found, groups)
    groups.append(None if reason else found)
    if reason:
      reasons.append(reason)
  for clause in metadata.get("exclude", []):
    name, count = clause["class"], len(objects.get(clause["class"], []))
    if count >= clause["count"]:
      reasons.append(f"expected {name}<{clause['count']}, found {count}")
  return not reasons, "\n".join(reasons)


def _confident(objects: Objects, tag: str) -> Objects:
  """Detections above the tag's threshold, the best MAX_OBJECTS a class, best first."""
  threshold = np.float32(COUNTING_THRESHOLD if tag == "counting" else THRESHOLD)
  out = {}
  for name, found in objects.items():
    # float32 and reversed argsort: ties and scores at the threshold fall as they do in
    # the reference.
    scores = np.array([d[4] for d in found], np.float32)
    order = [i for i in np.argsort(scores)[::-1] if scores[i] > threshold]
    out[name] = [found[i] for i in order[:MAX_OBJECTS]]
  return out


def _unmet(clause: dict, found: list[Detection], groups: list) -> str:
  """Why `found`, the most confident boxes of its class, fail a clause; '' if not."""
  name, count = clause["class"], clause["count"]
  if len(found) < count:
    return f"expected {name}>={count}, found {len(found)}"
  color = clause.get("color")
  if color is not None:
    colors = [d[5] for d in found]
    if colors.count(color) < count:
      seen = ", ".join(f"{colors.count(c)} {c}" for c in COLORS if c in colors)
      return (
        f"expected {color} {name}>={count}, found {colors.count(color)} {color}; and "
        + seen
      )
  if "position" in clause:
    relation, index = clause["position"]
    if groups[index] is None:
      return f"no target for {name} to be {relation}"
    for box in found:
      for target in groups[index]:
        relations = relative_position(box, target)
        if relation not in relations:
          return (
            f"expected {name} {relation} target, found {' and '.join(relations)} target"
          )
  return ""


def relative_position(a: Detection, b: Detection) -> list[str]:
  """Where box `a` lies as seen from box `b`: none, one or two relations.

  The offset of the centres is shrunk by a tenth of both boxes' sizes, so that boxes
  that nearly coincide have no relation; it is compared with the unshrunk distance.
  """
  boxes = np.array([a[:4], b[:4]], np.float32).reshape(2, 2, 2)
  center_a, center_b = boxes.mean(1)
  size_a, size_b = np.abs(boxes[:, 1] - boxes[:, 0])
  offset = center_a - center_b
  shrunk = np.abs(offset) - POSITION_THRESHOLD * (size_a + size_b)
  shrunk = np.maximum(shrunk, 0) * np.sign(offset)
  if np.all(np.abs(shrunk) < 1e-3):
    return []
  dx, dy = shrunk / np.linalg.norm(offset)
  holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5}
  holds["below"] = dy > 0.5
  return [relation for relation, true in holds.items() if true]


def judged(objects: Iterable[Objects], metadata: Iterable[dict]) -> list[dict]:
  """Rows of `summarize`: each image's verdict by its line."""
  return [
    {"tag": line["tag"], "prompt": line["prompt"], "correct": score(found, line)[0]}
    for found, line in zip(objects, metadata, strict=True)
  ]


def summarize(
  results: Iterable[dict], *, samples: int = 1000, seed: int = 0
) -> dict[str, float]:
  """Scores per tag and overall, with a 95 % interval.

  Args:
    results: one dict an image: 'tag', 'prompt' (any hashable; images of one prompt
      share it) and 'correct'.
    samples: bootstrap draws of prompts, within each tag.
    seed: of the bootstrap.

  Returns:
    tag -> share of correct images; 'overall', the mean of the tags (not of the
    images); 'overall_lo' and 'overall_hi', its interval.
  """
  prompts: dict[str, dict] = {}
  for r in results:
    by_prompt = prompts.setdefault(r["tag"], {})
    by_prompt.setdefault(r["prompt"], []).append(bool(r["correct"]))
  if not prompts:
    raise ValueError("geneval: no results to summarize")
  rng = np.random.default_rng(seed)
  means, draws = {}, []
  for tag in sorted(prompts, key=lambda t: (*TAGS, t).index(t)):
    right = np.array([sum(v) for v in prompts[tag].values()], np.float64)
    total = np.array([len(v) for v in prompts[tag].values()], np.float64)
    means[tag] = float(right.sum() / total.sum())
    picks = rng.integers(len(right), size=(samples, len(right)))
    draws.append(right[picks].sum(1) / total[picks].sum(1))
  low, high = np.quantile(np.mean(draws, 0), (0.025, 0.975))
  overall = float(np.mean(list(means.values())))
  return {
    **means,
    "overall": overall,
    "overall_lo": float(low),
    "overall_hi": float(high),
  }


def overall(objects: Sequence[Objects], metadata: Sequence[dict]) -> float:
  """Mean over the tags of the share of images that fit their line of metadata."""
  tags: dict[str, list[bool]] = {}
  for found, line in zip(objects, metadata, strict=True):
    tags.setdefault(line["tag"], []).append(score(found, line)[0])
  return float(np.mean([np.mean(v) for v in tags.values()]))


def chance(
  objects: Sequence[Objects],
  metadata: Sequence[dict],
  *,
  draws: int = 16,
  seed: int = 0,
) -> float:
  """`overall` where every image is judged by another's prompt: what luck alone scores.

  A model that has learned what images look like, and nothing of the text, scores this.
  """
  rng = np.random.default_rng(seed)
  scores = []
  for _ in range(draws):
    order = rng.permutation(len(metadata))
    shuffled = [objects[i] for i in order]
    scores.append(overall(shuffled, [metadata[i] for i in np.roll(order, 1)]))
  return float(np.mean(scores))
