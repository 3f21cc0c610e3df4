"""The shapes set: determinism, splits, withheld pairs, captions that tell the truth."""

import collections
import json

import numpy as np
import pytest

from fluid import config
from fluid.data import captions, shapes, sprites
from fluid.evals import geneval


def pairs(meta):
  return {(o["class"], o["color"]) for o in meta["objects"]}


def truth(meta):
  """Ground-truth boxes as detections."""
  found = collections.defaultdict(list)
  for o in meta["objects"]:
    found[o["class"]].append([*o["bbox"], 1.0, o["color"]])
  return found


def test_index_and_seed_determine_the_example():
  a, b = shapes.Shapes(split="train", seed=3), shapes.Shapes(split="train", seed=3)
  for i in (17, 5, 999_999):  # any order, from any instance
    x, y = a[i], b[i]
    assert b.caption(i) == x["caption"]
    assert (
      x["caption"] == y["caption"] and x["meta"] == y["meta"] and x["id"] == y["id"]
    )
    np.testing.assert_array_equal(x["image"], y["image"])
  other = shapes.Shapes(split="train", seed=4)
  assert any((a[i]["image"] != other[i]["image"]).any() for i in range(3))
  json.dumps(a[0]["meta"])


def test_splits_share_no_image_and_no_id():
  images, ids, count = set(), set(), 0
  for split in shapes.SPLITS:
    source = shapes.Shapes(split=split)
    for i in [*range(150), len(source) - 1]:
      example = source[i]
      images.add(example["image"].tobytes())
      ids.add(example["id"])
      count += 1
  assert len(images) == len(ids) == count
  assert 0 <= min(ids) and max(ids) < 2**31


def test_withheld_pairs_appear_only_in_their_split():
  total = len(captions.CLASSES) * len(captions.COLORS)
  assert 0.05 < len(captions.HELDOUT) / total < 0.15
  for split in ("train", "val"):
    source, seen = shapes.Shapes(split=split, image_size=16), set()
    for i in range(2000):
      meta = source[i]["meta"]
      seen |= pairs(meta)
      named = {(c["class"], c["color"]) for c in meta["include"] if "color" in c}
      assert not named & captions.HELDOUT
    assert not seen & captions.HELDOUT
    assert len(seen) == total - len(captions.HELDOUT)  # and every other one does
  source, seen = shapes.Shapes(split="heldout", image_size=16), set()
  for i in range(200):
    assert pairs(source[i]["meta"]) <= captions.HELDOUT
    seen |= pairs(source[i]["meta"])
  assert seen == captions.HELDOUT


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_captions_are_true_of_their_objects(split):
  source = shapes.Shapes(split=split, image_size=64, tags=captions.TAGS)
  tags = collections.Counter()
  for i in range(1200):
    example = source[i]
    meta = example["meta"]
    correct, reason = geneval.score(truth(meta), meta)
    assert correct, (example["caption"], reason)
    assert example["caption"] == meta["prompt"] and len(meta["prompt"].split()) <= 16
    assert len(meta["objects"]) == sum(c["count"] for c in meta["include"])
    tags[meta["tag"]] += 1
  assert min(tags.values()) > 1200 / 6 * 0.75  # uniform over the six tags
  assert set(tags) == set(captions.TAGS) == set(geneval.TAGS)


def test_captions_say_what_the_metadata_says():
  """Reads the caption back with word lists of its own."""
  words = {w: c for c, nouns in captions.NOUNS.items() for pair in nouns for w in pair}
  colors = {w: c for c, ws in captions.COLOR_WORDS.items() for w in ws}
  numbers = {"two": 2, "2": 2, "three": 3, "3": 3, "four": 4, "4": 4}
  source = shapes.Shapes(image_size=16)
  for i in range(600):
    meta = source[i]["meta"]
    text = meta["prompt"].split()
    spoken = [words[w] for w in text if w in words]
    include = meta["include"]
    if meta["tag"] == "position":
      include = include[::-1]  # the target is listed first and spoken last
      side = {"left", "right", "above", "over", "below", "under"} & set(text)
      synonyms = {"over": "above", "under": "below"}
      (side,) = side
      assert include[0]["position"] == [
        {"left": "left of", "right": "right of"}.get(side, synonyms.get(side, side)),
        0,
      ]
    assert spoken == [c["class"] for c in include]
    assert [colors[w] for w in text if w in colors] == [
      c["color"] for c in include if "color" in c
    ]
    count = [numbers[w] for w in text if w in numbers] or [1]
    assert count == [include[0]["count"]]
    for a, b in zip(text, text[1:]):
      assert a not in ("a", "an") or (a == "an") == (b[0] in "aeiou")


def test_objects_keep_apart_and_inside():
  source = shapes.Shapes(image_size=32, tags=("counting",))
  for i in range(200):
    boxes = [o["bbox"] for o in source[i]["meta"]["objects"]]
    assert all(min(b) > 0 and max(b) < 32 for b in boxes)
    assert all(max(b[2] - b[0], b[3] - b[1]) > 7 for b in boxes)


@pytest.mark.parametrize("size", [32, 48])
def test_resolutions_show_the_same_scene(size):
  fine, coarse = shapes.Shapes(image_size=4 * size), shapes.Shapes(image_size=size)
  errors = []
  for i in range(40):
    a, b = fine[i], coarse[i]
    assert a["caption"] == b["caption"]
    image = a["image"].reshape(size, 4, size, 4, 3).mean((1, 3))
    errors.append(np.abs(image - b["image"]).mean())
    for p, q in zip(a["meta"]["objects"], b["meta"]["objects"]):
      np.testing.assert_allclose(p["bbox"], np.array(q["bbox"]) * 4, atol=0.05)
  assert np.mean(errors) < 0.8 and max(errors) < 3  # of 255: edges, fine textures


def test_without_detail_only_what_captions_tell_is_left():
  plain, half, whole = (shapes.Shapes(detail=d, image_size=48) for d in (0.0, 0.5, 1.0))
  for i in range(12):
    image = plain[i]["image"].astype(float)
    assert plain[i]["meta"] == whole[i]["meta"]
    assert (image[0] == 174).all() and (image[:, 0] == 174).all()
    for item in plain[i]["meta"]["objects"]:  # Its colour stands there unchanged.
      assert (image == sprites.COLORS[item["color"]]).all(-1).any()
    edge = (image[0] + whole[i]["image"][0]) / 2
    assert np.abs(half[i]["image"][0] - edge).max() <= 1.5


def test_evaluation_prompts():
  prompts = captions.geneval_prompts(8, seed=1)
  assert collections.Counter(p["tag"] for p in prompts) == dict.fromkeys(
    captions.TAGS, 8
  )
  assert len({p["prompt"] for p in prompts}) == len(prompts)
  assert all(p["prompt"].startswith("a photo of ") for p in prompts)
  assert prompts == captions.geneval_prompts(8, seed=1)
  assert prompts != captions.geneval_prompts(8, seed=2)
  for p in prompts:
    named = {(c["class"], c["color"]) for c in p["include"] if "color" in c}
    assert not named & captions.HELDOUT
    assert bool(named) == (p["tag"] in ("colors", "color_attr"))
  for p in captions.geneval_prompts(8, heldout=True):
    assert {(c["class"], c["color"]) for c in p["include"]} <= captions.HELDOUT


@pytest.mark.parametrize("classes", ["tag", "shape"])
@pytest.mark.parametrize("split", ["train", "val", "heldout"])
def test_the_class_is_what_the_caption_says_first(classes, split):
  made = shapes.ShapesConfig(classes=classes).make(split=split, image_size=16)
  assert made.classes == {"tag": captions.TAGS, "shape": captions.CLASSES}[classes]
  word = {w: c for c, nouns in captions.NOUNS.items() for pair in nouns for w in pair}
  for i in range(120):
    example = made[i]
    first = next(word[w] for w in example["caption"].split() if w in word)
    assert made.label(i) == {"tag": example["meta"]["tag"], "shape": first}[classes]
    assert made.label(i) in made.classes


def test_the_config_makes_the_source():
  made = shapes.ShapesConfig(tags=("counting",), length=9)
  source = made.make(split="val", image_size=24, seed=3)
  plain = shapes.Shapes(split="val", image_size=24, seed=3, tags=("counting",))
  assert len(source) == 9 and source[4]["image"].shape == (24, 24, 3)
  assert source.caption(4) == plain.caption(4)
  # As config.json and flags give it: no tags are all tags, of a split.
  for split in ("train", "heldout"):
    by_default = config.Data().source.make(split=split, image_size=32)
    plain = shapes.Shapes(split=split)
    assert [by_default.caption(i) for i in range(20)] == [
      plain.caption(i) for i in range(20)
    ]


@pytest.mark.parametrize(
  "section, message",
  [
    ({"classes": "color"}, "'data.source.classes' is 'color'; choose from tag, shape"),
    ({"length": -1}, "'data.source.length' must not be negative"),
    ({"tag": "x"}, "unknown config key 'data.source.tag'.*'data.source.tags'"),
  ],
)
def test_wrong_sections_are_named(section, message):
  with pytest.raises(config.ConfigError, match=message):
    config.from_config_dict({"data": {"source": {"kind": "shapes"} | section}})


@pytest.mark.parametrize(
  "args, message",
  [
    ({"split": "test"}, "no split 'test'"),
    ({"tags": ("colour",)}, "cannot draw tags"),
    ({"image_size": 8}, "at least 16"),
  ],
)
def test_wrong_arguments_are_named(args, message):
  with pytest.raises(config.ConfigError, match=message):
    shapes.Shapes(**args)


def test_index_out_of_range():
  source = shapes.Shapes(length=10)
  assert len(source) == 10 == len([source[i] for i in range(10)])
  with pytest.raises(IndexError):
    source[10]
