"""The shapes detector, judged by GenEval on images whose captions are known."""

import functools

import numpy as np
import pytest
from scipy import ndimage

from fluid import config
from fluid.data import captions, shapes
from fluid.evals import detectors, geneval

COUNT = 240


@functools.cache
def examples(size):
  source = shapes.Shapes(split="val", image_size=size)
  return [source[i] for i in range(COUNT)]


def images(size, *, blur=0.0, noise=0.0):
  rng = np.random.default_rng(0)
  out = np.stack([e["image"] for e in examples(size)]).astype(np.float32)
  out = ndimage.gaussian_filter(out, (0, blur, blur, 0)) if blur else out
  return np.clip(out + noise * rng.normal(size=out.shape) + 0.5, 0, 255).astype(
    np.uint8
  )


def detect(size, **kwargs):
  return detectors.DETECTORS["shapes"](size)(images(size, **kwargs))


@pytest.mark.parametrize(
  "size, blur, noise, bound",
  [
    (32, 0, 0, 0.97),
    (64, 0, 0, 0.98),
    (100, 0, 0, 0.98),
    (32, 0.6, 0, 0.97),
    (32, 0, 10, 0.97),
    (32, 0.6, 10, 0.96),
    (32, 1.0, 8, 0.92),
    (64, 1.2, 10, 0.96),
  ],
)
def test_images_match_their_captions(size, blur, noise, bound):
  metas = [e["meta"] for e in examples(size)]
  assert geneval.overall(detect(size, blur=blur, noise=noise), metas) >= bound


@pytest.mark.parametrize("size", [32, 64])
def test_shuffled_captions_score_near_chance(size):
  """Chance: the true boxes under shuffled captions, where no detector is at work."""
  metas, found = [e["meta"] for e in examples(size)], detect(size)
  exact = [{} for _ in metas]
  for boxes, meta in zip(exact, metas):
    for o in meta["objects"]:
      boxes.setdefault(o["class"], []).append([*o["bbox"], 1.0, o["color"]])
  score, chance = (geneval.chance(f, metas) for f in (found, exact))
  assert abs(score - chance) < 0.01
  assert score < 0.08


@pytest.mark.parametrize("size", [32, 64, 256])
def test_boxes_classes_and_colours(size):
  source = shapes.Shapes(split="heldout", image_size=size, tags=captions.TAGS)
  detector = detectors.DETECTORS["shapes"](size)
  wrong = 0
  for i in range(60):
    example = source[i]
    found = detector(example["image"])
    wanted = sorted(
      (o["class"], o["color"], o["bbox"]) for o in example["meta"]["objects"]
    )
    got = sorted((c, d[5], d[:4]) for c, ds in found.items() for d in ds if d[4] > 0.9)
    if [w[:2] for w in wanted] != [g[:2] for g in got]:
      wrong += 1
      continue
    for *kind, box in wanted:
      errors = [np.abs(np.subtract(g[2], box)).max() for g in got if [*g[:2]] == kind]
      assert min(errors) <= 1.6 * size / 32
  assert wrong <= 1


def test_nothing_is_found_where_nothing_is():
  rng = np.random.default_rng(0)
  empty = [shapes.render([], 32, np.random.default_rng(i)) for i in range(50)]
  noise = list(rng.integers(0, 256, (20, 32, 32, 3), np.uint8))
  flat = [np.full((32, 32, 3), v, np.uint8) for v in (0, 128, 255)]
  found = detectors.DETECTORS["shapes"](32)(np.stack(empty + noise + flat))
  assert all(d[4] <= 0.3 for objects in found for ds in objects.values() for d in ds)


def test_fragments_and_doubles_score_low():
  """Two scenes laid over each other keep few objects that would be counted."""
  real = images(32)
  blend = ((real[::2].astype(int) + real[1::2]) // 2).astype(np.uint8)

  def per_image(batch):
    found = detectors.DETECTORS["shapes"](32)(batch)
    return np.mean([sum(d[4] > 0.9 for ds in o.values() for d in ds) for o in found])

  assert per_image(blend) < 0.35 * per_image(real)


def test_one_image_is_a_batch_of_one():
  detector = detectors.DETECTORS["shapes"](32)
  assert detector(images(32)[:2])[1] == detector(images(32)[1])


def test_wrong_sizes_are_named():
  with pytest.raises(config.ConfigError, match="at least 16 pixels, not 8"):
    detectors.DETECTORS["shapes"](8)
  with pytest.raises(ValueError, match="made for images of 32 pixels"):
    detectors.DETECTORS["shapes"](32)(np.zeros((64, 64, 3), np.uint8))
