"""`shapes`: a procedural text-to-image set, addressable by index and seed.

An example is drawn in three steps from the random stream of (seed, split, index):
metadata with its caption (captions.py), a layout of objects that satisfies it, and the
picture. Everything is placed in the unit square, so that the same index shows the same
scene at every resolution.

S: image side in pixels; N: objects; K: rejection candidates.
"""

import dataclasses
import functools

import numpy as np

from fluid import config
from fluid.config import rules
from fluid.data import captions, sprites

# Backgrounds stay within these levels of brightness, their channels within TINT of each
# other: at least 60 levels from every object colour. Without detail: all in the middle.
BACKGROUND = (160.0, 188.0)
PLAIN = np.float32(sum(BACKGROUND) / 2)
TINT = 14.0

# What the class of an image can be -> the names.
CLASSES = {"tag": captions.TAGS, "shape": captions.CLASSES}
SPLITS = ("train", "val", "heldout")
# Ids of the splits do not meet and stay below 2**31.
ID_OFFSET = {"train": 0, "val": 1_000_000_000, "heldout": 1_500_000_000}
LENGTH = {"train": 1_000_000, "val": 50_000, "heldout": 50_000}

geneval_prompts = captions.geneval_prompts  # evaluation prompts over this set


@functools.cache
def _smooth(size, knots):
  """[size, knots] weights of linear interpolation, averaged over each pixel."""
  fine = (np.arange(size * 8) + 0.5) / (size * 8) * (knots - 1)
  weights = np.clip(1 - np.abs(fine[:, None] - np.arange(knots)), 0, None)
  return weights.reshape(size, 8, knots).mean(1).astype(np.float32)


def _waves(rng, size, low, high):
  """A plane wave of `low` to `high` periods per image side, [S, S] in [-1, 1]."""
  angle, freq, phase = rng.random(3) * (np.pi, high - low, 2 * np.pi) + (0, low, 0)
  axis = (np.arange(size) + 0.5) / size * (2 * np.pi * freq)
  return np.sin(axis * np.cos(angle) + (axis * np.sin(angle))[:, None] + phase)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
  """A tinted gradient under a fine texture (grain, stripes, weave), [S, S, 3]."""
  low, high = BACKGROUND
  mean = low + 10 + (high - low - 20) * rng.random()
  tint = rng.random(3) * 2 * TINT - TINT
  corners = (rng.random((2, 2)) - 0.5) * 18
  w = _smooth(size, 2)
  plane = w @ corners.astype(np.float32) @ w.T  # [S, S]
  strength = 2 + 6 * rng.random()
  kind = int(rng.integers(4))
  if kind == 0:
    w = _smooth(size, 20)
    noise = rng.random((20, 20), dtype=np.float32) * 2 - 1
    plane += strength * 1.3 * (w @ noise @ w.T)
  elif kind == 1:
    plane += strength * _waves(rng, size, 4, 9)
  elif kind == 2:
    plane += strength * 1.3 * _waves(rng, size, 3, 7) * _waves(rng, size, 3, 7)
  return plane[..., None] + (mean + tint - tint.mean()).astype(np.float32)


def _texture(rng, x, y):
  """Shading of an object: gradient, stripes or dots, in levels of brightness."""
  kind, angle = int(rng.integers(4)), 2 * np.pi * rng.random()
  along = np.cos(angle) * x + np.sin(angle) * y
  if kind == 0:
    return -6 + 14 * along
  freq = 5 + 3 * rng.random()
  if kind == 1:
    return -6 + 15 * np.sin(freq * along)
  if kind == 2:
    across = np.cos(angle) * y - np.sin(angle) * x
    return -6 + 15 * np.sin(freq * along) * np.sin(freq * across)
  return np.zeros_like(x)


# Radius ranges by number of objects, as a share of the image side.
RADIUS = {1: (0.19, 0.3), 2: (0.17, 0.23), 3: (0.16, 0.2), 4: (0.155, 0.18)}
GAP = 0.06  # smallest distance between bounding boxes' circles
AXES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
# Component of the unit offset along the relation; GenEval asks for 0.5 of the offset
# shrunk by a tenth of the boxes, so that this leaves room for a detector's errors.
MARGIN = 0.8


def layout(meta: dict, rng: np.random.Generator, *, heldout: bool = False) -> list:
  """Objects that satisfy `meta`: dicts of class, color, center, radius, steps.

  Colours that the caption does not name are drawn from the class's palette, so a
  withheld pair never appears unless its name does.
  """
  names, colors, relation = [], [], None
  shared = rng.random() < 0.5
  for item in meta["include"]:
    free = captions.palette(item["class"], heldout=heldout)
    draws = [free[int(rng.integers(len(free)))] for _ in range(item["count"])]
    names += [item["class"]] * item["count"]
    if "color" in item:
      draws = [item["color"]] * item["count"]
    colors += [draws[0]] * item["count"] if shared else draws
    if "position" in item:
      relation = AXES[item["position"][0]]
  n = len(names)
  low, high = RADIUS[n]
  radii = low + (high - low) * rng.random(n)
  steps = rng.integers(-32, 33, n)
  boxes = np.stack(
    [sprites.extent(*args) for args in zip(names, steps.tolist())]
  )  # [N, 4]
  while True:
    # Candidates in which every box stays inside the image, the first valid one wins.
    scaled = boxes * radii[:, None]
    pad = 0.02
    lo, hi = pad - scaled[:, :2], 1 - pad - scaled[:, 2:]
    centers = lo + (hi - lo) * rng.random((48, n, 2))  # [K, N, 2]
    middle = centers + (scaled[:, :2] + scaled[:, 2:]) / 2
    good = np.ones(len(centers), bool)
    for i in range(n):
      for j in range(i):
        delta = middle[:, i] - middle[:, j]
        dist = np.hypot(delta[:, 0], delta[:, 1])
        good &= dist > (radii[i] + radii[j]) * 1.02 + GAP
        if relation:
          good &= delta @ np.array(relation) > MARGIN * dist
    if good.any():
      centers = centers[good.argmax()]
      break
    radii = np.maximum(radii * 0.97, low * 0.9)
  return [
    {"class": names[i], "color": colors[i], "center": centers[i].tolist()}
    | {"radius": float(radii[i]), "steps": int(steps[i])}
    for i in range(n)
  ]


def box(item: dict) -> list[float]:
  """Bounding box (x1, y1, x2, y2) of a layout's object in the unit square."""
  extent = sprites.extent(item["class"], item["steps"]) * item["radius"]
  cx, cy = item["center"]
  return [round(float(e + c), 4) for e, c in zip(extent, (cx, cy, cx, cy))]


def render(
  objects: list, size: int, rng: np.random.Generator, detail: float = 1.0
) -> np.ndarray:
  """Objects over a background -> uint8 [S, S, 3]; see ShapesConfig.detail."""
  image = background(rng, size) if detail else np.full((size, size, 3), PLAIN)
  if detail != 1:
    image = PLAIN + detail * (image - PLAIN)
  for o in objects:
    cx, cy = o["center"]
    rows, columns, mask, x, y = sprites.coverage(
      o["class"], cx, cy, o["radius"], o["steps"], size
    )
    color = np.array(sprites.COLORS[o["color"]])
    if detail:
      color = color + detail * _texture(rng, x, y)[..., None]
    color = np.minimum(np.maximum(color, 0), 255)
    image[rows, columns] += mask[..., None] * (color - image[rows, columns])
  return (np.minimum(np.maximum(image, 0), 255) + 0.5).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class ShapesConfig(config.Part):
  """Captioned scenes by index.

  Attributes:
    tags: GenEval tags drawn uniformly (empty: all; of 'heldout', those that name
      colours); a repeated tag weighs double.
    length: number of examples (0: a million for train, 50,000 else).
    detail: contrast of what captions do not tell: grain, stripes, tint and gradient of
      backgrounds, textures of objects. 0: plain objects on one grey.
    classes: what an image's class is, its GenEval 'tag' or the 'shape' that its caption
      names first.
  """

  kind = "shapes"

  tags: tuple[str, ...] = ()
  length: int = 0
  detail: float = 1.0
  classes: str = config.said("tag")

  def check(self, name):
    rules.choice(f"{name}classes", self.classes, CLASSES)
    rules.share(f"{name}detail", self.detail)

  def make(self, *, split: str, image_size: int, seed: int = 0) -> "Shapes":
    """The source of a split."""
    return Shapes(split=split, image_size=image_size, seed=seed, **vars(self))


class Shapes:
  """The set as a source: random access, deterministic in (seed, split, index).

  Args:
    split: 'train', 'val', or 'heldout' (colour-shape pairs that the others lack; by
      default only the tags that name colours).
    image_size: S.
    seed: another seed is another set.
    tags: GenEval tags drawn uniformly; a repeated tag weighs double.
    length: number of examples (0: a million for train, 50,000 else).
    detail, classes: see ShapesConfig.
  """

  def __init__(
    self,
    *,
    split="train",
    image_size=32,
    seed=0,
    tags=(),
    length=0,
    detail=1.0,
    classes="tag",
  ):
    if split not in SPLITS:
      raise config.ConfigError(
        f"shapes has no split '{split}'; choose from {', '.join(SPLITS)}"
      )
    if not tags:
      tags = ("colors", "color_attr") if split == "heldout" else captions.TAGS
    if set(tags) - set(captions.TAGS):
      raise config.ConfigError(
        f"shapes cannot draw tags {tags!r}; choose from {', '.join(captions.TAGS)}"
      )
    if image_size < 16:
      raise config.ConfigError(
        f"shapes needs an image size of at least 16, not {image_size}"
      )
    self.split, self.image_size, self.seed = split, image_size, seed
    self.tags = tuple(tags)
    self.detail = detail
    self.classes, self._by = CLASSES[classes], classes
    self.length = length or LENGTH[split]
    if self.length > 500_000_000:
      raise config.ConfigError("shapes has at most 500,000,000 examples a split")

  def __len__(self):
    return self.length

  def caption(self, index: int) -> str:
    """Caption of example `index`, without drawing it."""
    return self._describe(index)[1]["prompt"]

  def label(self, index: int) -> str:
    """Class of example `index`, without drawing it."""
    meta = self._describe(index)[1]
    if self._by == "tag":
      return meta["tag"]
    # Of two in a relation, the one that it is told of is listed first, spoken last.
    return meta["include"][-1 if meta["tag"] == "position" else 0]["class"]

  def __getitem__(self, index: int) -> dict:
    """Example `index`: image uint8 [S, S, 3], caption, id, meta.

    meta is GenEval's metadata with 'objects': class, color, bbox in pixels.
    """
    rng, meta = self._describe(index)
    heldout = self.split == "heldout"
    objects = layout(meta, rng, heldout=heldout)
    image = render(objects, self.image_size, rng, self.detail)
    meta["objects"] = [
      {"class": o["class"], "color": o["color"]}
      | {"bbox": [round(c * self.image_size, 2) for c in box(o)]}
      for o in objects
    ]
    return {
      "image": image,
      "caption": meta["prompt"],
      "id": ID_OFFSET[self.split] + int(index),
      "meta": meta,
    }

  def _describe(self, index: int) -> tuple[np.random.Generator, dict]:
    index = int(index)
    if not 0 <= index < self.length:
      raise IndexError(f"index {index} of {self.length} examples")
    rng = np.random.default_rng([self.seed, SPLITS.index(self.split), index])
    tag = self.tags[int(rng.integers(len(self.tags)))]
    return rng, captions.describe(tag, rng, heldout=self.split == "heldout")
