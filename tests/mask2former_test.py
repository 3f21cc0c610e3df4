"""Mask2Former: transformers' own outputs and a slow pipeline in numpy say the same."""

import functools
import hashlib
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fluid import config
from fluid.evals import detectors, parts
from fluid.evals.detectors import mask2former, mask2former_net, mmdet, swin
from fluid.parallel import sharding

FIXTURE = pathlib.Path(__file__).parent / "data/mask2former"


@pytest.fixture(scope="module")
def expected():
  return dict(np.load(FIXTURE / "expected.npz"))


def close(found, wanted, tolerance=1e-4):
  assert found.shape == wanted.shape
  assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


def test_every_part_equals_transformers_in_any_batch(expected):
  """59 x 75 pixels: maps of no whole windows, the last smaller than one."""
  net, params = mask2former.load(str(FIXTURE))

  @jax.jit
  def run(p, x):
    maps = net.backbone(swin.under(p, "model.pixel_level_module.encoder"), x)
    levels, features = net.pixels(p, maps)
    classes, masks = net.decode(p, levels, features)
    maps, levels = (
      {f"{name}{i}": x for i, x in enumerate(xs)}
      for name, xs in (("map", maps), ("level", levels))
    )
    return maps | levels | dict(features=features, classes=classes, masks=masks)

  image = expected["image"].astype(np.float32)
  found = run(params, np.concatenate([3 * image[:, ::-1], image]))
  for name, x in found.items():
    close(x[1:], expected[name])


def test_group_norm_equals_torch(expected):
  p = {k: expected[f"group_{k}"] for k in ("weight", "bias")}
  found = mask2former_net.group_norm(
    swin.above("norm", p), "norm", expected["group_in"]
  )
  close(found, expected["group_out"], 1e-5)


def test_names_and_shapes_are_those_of_the_published_size(tmp_path):
  published = json.loads((FIXTURE / "published.json").read_text())
  (tmp_path / "config.json").write_text(json.dumps(published["config"]))
  network = mask2former.read_config(tmp_path / "config.json")
  assert network == mask2former.Network()
  lines = sorted(f"{k} {list(v)}" for k, v in network.shapes().items())
  assert len(lines) == published["tensors"]
  text = "\n".join(lines).encode()
  assert hashlib.sha256(text).hexdigest() == published["sha256"]


@pytest.mark.parametrize(
  "size, inner",
  [
    ((256, 256), (800, 800)),
    ((1024, 1024), (800, 800)),
    ((480, 640), (800, 1067)),
    ((1000, 300), (1333, 400)),
  ],
)
def test_images_fit_1333_by_800(size, inner):
  assert mmdet.inner(size, (1333, 800)) == inner


# A slow pipeline, written for itself. -------------------------------------------------


def bilinear(x, size):
  """[h, w] -> size, half-pixel centres, the border repeated."""
  out = np.zeros(size)
  for i in range(size[0]):
    for j in range(size[1]):
      y, z = (
        np.clip((k + 0.5) * n / m - 0.5, 0, n - 1)
        for k, n, m in zip((i, j), x.shape, size)
      )
      a, b = int(y), int(z)
      c, d = min(a + 1, x.shape[0] - 1), min(b + 1, x.shape[1] - 1)
      v, w = y - a, z - b
      top, bottom = ((1 - w) * x[r, b] + w * x[r, d] for r in (a, c))
      out[i, j] = (1 - v) * top + v * bottom
  return out


def slow_input(image, inner):
  padded = [n + -n % 32 for n in inner]
  out = np.full((*padded, 3), 128.0)
  for c in range(3):
    out[: inner[0], : inner[1], c] = np.floor(bilinear(image[..., c], inner) + 0.5)
  return (out - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]


def slow_detections(classes, masks, inner, size):
  """-> [(class, score, box, mask)] of one image, the likeliest pairs first."""
  padded = [n + -n % 32 for n in inner]
  odds = np.exp(classes - classes.max(1, keepdims=True))
  odds /= odds.sum(1, keepdims=True)
  pairs = [(odds[q, k], q, k) for q in range(len(odds)) for k in range(80)]
  whole = []
  for m in masks:
    m = bilinear(m, padded)[: inner[0], : inner[1]]
    whole.append(bilinear(m, size))
  out = []
  for chance, q, k in sorted(pairs, reverse=True)[:100]:
    mask = whole[q] > 0
    if not mask.any():
      continue
    score = chance * np.mean(1 / (1 + np.exp(-whole[q][mask])))
    y, x = np.nonzero(mask)
    box = [x.min(), y.min(), x.max() + 1, y.max() + 1]
    out.append((mask2former.CLASSES[k], score, box, mask))
  return out


WAVES = np.random.RandomState(0).normal(size=(7, 3)).astype(np.float32)
BIAS = np.float32([0, 0, 0.3, -0.3, 0, -50, 1])  # The sixth has an empty mask.
LOGITS = np.random.RandomState(1).normal(size=(7, 81)).astype(np.float32) * 2


class Shallow(mask2former.Network):
  """Masks are mixtures of the colours, and classes the same for all images."""

  def __call__(self, p, x):
    n, h, w, _ = x.shape
    cells = x.reshape(n, h // 4, 4, w // 4, 4, 3).mean((2, 4))
    masks = jnp.einsum("nhwc,qc->nqhw", cells, WAVES) + BIAS[:, None, None]
    return jnp.broadcast_to(LOGITS, (n, *LOGITS.shape)), masks


def make(size, edges, kind=mask2former.Network, **changes):
  """A detector whose network sees small images; layers less than the file has."""
  detector = mask2former.Mask2Former(size, str(FIXTURE))
  detector.network = kind(**vars(detector.network) | changes | {"edges": edges})
  return detector


def pictures(n, size):
  """Smooth images [n, H, W, 3]."""
  rs = np.random.RandomState(2)
  cells = rs.randint(0, 256, (n, -(-size[0] // 8), -(-size[1] // 8), 3))
  out = cells.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]]
  return np.clip(out + rs.randint(-20, 20, out.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
  "size, edges", [((40, 50), (96, 64)), ((64, 36), (40, 36)), ((32, 32), (50, 32))]
)
def test_pipeline_equals_a_slow_one(size, edges):
  """Larger, smaller and the same; padded to the right, below, and not at all."""
  detector, images = make(size, edges, Shallow), pictures(2, size)
  inner = mmdet.inner(size, edges)
  for image, (objects, masks) in zip(images, detector.detect_with_masks(images)):
    x = np.asarray(mmdet.preprocess(image[None], inner)[0], np.float64)
    levels = np.abs(x - slow_input(image, inner)) * 57  # Halves may round up or down.
    assert levels.max() < 1.1 and (levels > 1e-3).mean() < 0.01
    cells = x.reshape(x.shape[0] // 4, 4, x.shape[1] // 4, 4, 3).mean((1, 3))
    maps = np.einsum("hwc,qc->qhw", cells, WAVES) + BIAS[:, None, None]
    wanted = slow_detections(LOGITS, maps, inner, size)
    assert sum(map(len, objects.values())) == len(wanted) > 70
    for name, score, box, mask in wanted:
      assert len(masks[name]) == len(objects[name])
      best = min(
        range(len(masks[name])), key=lambda i: abs(objects[name][i][4] - score)
      )
      *corners, found, color = objects[name][best]
      assert color is None and corners == box
      assert found == pytest.approx(score, rel=1e-4)
      np.testing.assert_array_equal(masks[name][best], mask)


def test_batches_and_devices_do_not_matter_and_a_size_is_compiled_once():
  size, images = (40, 50), pictures(3, (40, 50))
  before = mask2former._detect._cache_size()
  few = functools.partial(make, size, (64, 48), encoder_layers=1, decoder_layers=1)
  detector = few()
  found = detector(images)
  assert detector(images[1]) == detector(images[1:2])[0] == found[1]
  assert [objects for objects, _ in detector.detect_with_masks(images)] == found
  assert few()(images[::-1]) == found[::-1]
  assert mask2former._detect._cache_size() == before + 1
  assert found[0] != found[1] and all(map(len, found))
  for objects, masks in detector.detect_with_masks(images):
    for name, boxes in objects.items():
      for (x1, y1, x2, y2, score, color), mask in zip(boxes, masks[name], strict=True):
        assert mask.shape == size and 0 <= score <= 1 and color is None
        assert mask[int(y1) : int(y2), int(x1) : int(x2)].sum() == mask.sum() > 0

  with jax.set_mesh(sharding.make_mesh(config.Mesh())):
    again = detector(images)
  for a, b in zip(found, again, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_allclose(
        [d[:5] for d in a[name]], [d[:5] for d in b[name]], rtol=1e-4
      )


def test_images_of_another_size_are_named():
  with pytest.raises(ValueError, match=r"images of 32 x 40, got \(1, 40, 32, 3\)"):
    make((32, 40), (64, 48))(np.zeros((1, 40, 32, 3), np.uint8))


def test_classes_are_spelled_as_geneval_does():
  assert len(set(mask2former.CLASSES)) == 80
  renamed = ("computer mouse", "tv remote", "computer keyboard")
  assert mask2former.CLASSES[64:67] == renamed


# Files. -------------------------------------------------------------------------------


def change_weights(folder, **changes):
  """Sets tensors by their last names; None removes them."""
  weights = load_file(folder / "model.safetensors")
  for name, value in changes.items():
    for key in [k for k in weights if k.endswith(name)] or [name]:
      weights.pop(key, None)
      if value is not None:
        weights[key] = value
  save_file(weights, folder / "model.safetensors")


def change_config(folder, *, backbone=None, **changes):
  content = json.loads((folder / "config.json").read_text()) | changes
  content["backbone_config"] |= backbone or {}
  (folder / "config.json").write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path):
  for name in ("config.json", "model.safetensors"):
    shutil.copy(FIXTURE / name, tmp_path / name)
  return tmp_path


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
  "change, found",
  [
    (
      lambda f: change_weights(f, class_predictor=ONE, level_embed=None),
      r"model.safetensors is not the network of its config.json; .* 1 missing: "
      r"model.pixel_level_module.decoder.level_embed \(3, 32\).* 1 left over: "
      r"class_predictor \(1,\); take both from facebook/mask2former-swin-small",
    ),
    (
      lambda f: change_config(f, num_queries=12),
      r"2 of other shapes: .*queries_embedder.weight is \(12, 32\), in the file "
      r"\(10, 32\)",
    ),
    (
      lambda f: change_config(f, id2label={"0": "cat"}),
      "config.json has 1 classes, but GenEval's are COCO's 80",
    ),
    (
      lambda f: change_config(f, pre_norm=True),
      "has pre_norm True, but only False is known",
    ),
    (
      lambda f: change_config(f, backbone={"model_type": "resnet"}),
      "has model_type 'resnet', but only 'swin' is known",
    ),
    (
      lambda f: (f / "config.json").write_text("{}"),
      r"is damaged or no config of Mask2Former \(KeyError\('backbone_config'\)\)",
    ),
    (
      lambda f: (f / "model.safetensors").write_bytes(b""),
      "model.safetensors: is empty",
    ),
  ],
)
def test_files_of_another_network_are_named_in_one_line(folder, change, found):
  change(folder)
  with pytest.raises(config.ConfigError, match=found) as e:
    mask2former.load(str(folder))
  assert "\n" not in str(e.value)


def test_tensors_of_the_loss_and_buffers_are_skipped(folder):
  index = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0"
  index += ".attention.self.relative_position_index"
  change_weights(folder, **{index: np.zeros((16, 16), np.int64)})
  weights = load_file(folder / "model.safetensors")
  network, params = mask2former.load(str(folder))
  assert params.keys() == network.shapes().keys()
  norm = "model.pixel_level_module.encoder.swin.layernorm"
  assert weights.keys() - params.keys() == {
    index, "criterion.empty_weight", f"{norm}.weight", f"{norm}.bias",
  }  # fmt: skip


def test_missing_weights_say_where_they_come_from(tmp_path, monkeypatch):
  name = "mask2former-swin-small-coco-instance"
  remedy = f"needs {name} .no file was named.: get it from facebook/{name}"
  monkeypatch.delenv("FLUID_WEIGHTS", raising=False)
  with pytest.raises(config.ConfigError, match=remedy):
    detectors.DETECTORS["mask2former"](64)

  inside = tmp_path / name
  inside.mkdir()
  shutil.copy(FIXTURE / "config.json", inside)
  monkeypatch.setenv("FLUID_WEIGHTS", str(tmp_path))
  with pytest.raises(config.ConfigError, match=f"no {inside}/model.safetensors"):
    detectors.DETECTORS["mask2former"](64)
  shutil.copy(FIXTURE / "model.safetensors", inside)
  assert detectors.DETECTORS["mask2former"](64).image_size == (64, 64)


def test_many_images_may_be_in_files(monkeypatch):
  """What is drawn for a large evaluation has no shape, only images."""
  monkeypatch.setattr(parts, "PART", 2)
  pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
  many = parts.InParts(3, lambda first, stop: pixels[first:stop])
  found = mask2former.Mask2Former.__new__(mask2former.Mask2Former)
  found.image_size, found.network = (16, 16), None
  found._place = lambda mesh: setattr(found, "_params", None)
  seen = []

  def detect(params, images, *, network):
    seen.append(images)
    blank = np.zeros((len(images), 1))
    boxes = np.zeros((len(images), 1, 4))
    found = {"boxes": boxes, "scores": blank, "labels": blank, "masks": blank}
    return {name: jnp.asarray(array) for name, array in found.items()}

  monkeypatch.setattr(mask2former, "_detect", detect)
  assert len(list(found.detect_with_masks(many))) == 3
  np.testing.assert_array_equal(np.concatenate(seen), pixels)
  found.image_size = (16, 8)
  with pytest.raises(ValueError, match="made for images of 16 x 8"):
    list(found.detect_with_masks(many))
