"""Evaluators: what they take of classes, prompts, sources and protocols."""

import json
import types

import numpy as np
import pytest
from PIL import Image

import fluid
from fluid import config, text
from fluid import evaluate as evaluate_lib
from fluid import sample as sample_lib
from fluid.console import progress
from fluid.data import BadExample, Images, captions, make_source
from fluid.data.folder import FolderConfig
from fluid.data.shapes import ShapesConfig
from fluid.evals import (
  distribution,
  features,
  geneval,
  images,
  loss,
  protocols,
  samples,
)
from fluid.evals.geneval import evaluator
from fluid.models.conditions.label import ClassConfig
from fluid.models.published import RUNS
from fluid.parallel import sharding
from fluid.text.classes import Classes, ClassesConfig
from fluid.text.learned import LearnedConfig
from tests.random_run import FakeFeatures, written


def test_grid_places_images_row_by_row():
  shots = np.arange(1, 4, dtype=np.uint8)[:, None, None, None] * np.ones(
    (3, 4, 5, 3), np.uint8
  )
  got = images.grid(shots, columns=2, gap=1)
  assert got.shape == (9, 11, 3)
  assert (got[:4, :5] == 1).all() and (got[:4, 6:] == 2).all()
  assert (got[5:, :5] == 3).all() and (got[5:, 6:] == 255).all()


def test_a_model_of_classes_is_drawn_and_evaluated_by_class(tmp_path, monkeypatch):
  monkeypatch.setitem(features.FEATURES, "Fake", FakeFeatures)
  asked = []
  real = samples.Sampler.__call__

  def heard(self, params, prompts, **kwargs):
    asked.extend(prompts)
    return real(self, params, prompts, **kwargs)

  monkeypatch.setattr(samples.Sampler, "__call__", heard)
  evaluators = {
    "loss": loss.LossConfig(),
    "images": images.ImagesConfig(n=4),
    "distribution": distribution.DistributionConfig(examples=8, features="Fake"),
  }
  workdir = written(
    tmp_path, ClassesConfig(), evaluators, condition=ClassConfig(drop=0.2)
  )
  got = evaluate_lib.evaluate(workdir)
  assert np.isfinite([got["val/loss"], got["kid"], got["fd"]]).all()
  assert set(asked) <= set(captions.TAGS) and len(set(asked)) > 2
  loaded = fluid.load(workdir)
  named, numbered, other = (
    # Much guidance: random weights say little of the class.
    loaded.sample(p, key=3, guidance=1e4, guidance_schedule="constant")
    for p in (captions.TAGS[2], "2", "0")
  )
  np.testing.assert_array_equal(named, numbered)
  assert named.shape == (1, 16, 16, 3) and (named != other).any()
  for prompt, said in (("a red circle", "not on text"), ("6", "out of range")):
    with pytest.raises(text.PromptError, match=said):
      loaded.sample(prompt)


def test_prompts_are_read_from_a_file_in_utf_8(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_bytes("\ufeffa red circle\n\n  ein gr\u00fcner Stern \n".encode())
  assert sample_lib.read_prompts(path) == ["a red circle", "ein gr\u00fcner Stern"]
  path.write_bytes("gr\u00fcn".encode("latin-1"))
  for bad in (path, tmp_path, tmp_path / "none.txt"):
    with pytest.raises(config.ConfigError, match=f"--prompts {bad} cannot be read"):
      sample_lib.read_prompts(bad)


def test_what_is_drawn_larger_than_a_protocol_is_scaled_to_it():
  """LlamaGen at 384 pixels is on protocol, images that are smaller are not."""
  for size, said in ((384, []), (256, []), (128, ["images of 128 pixels (protocol:"])):
    run = config.replaced(RUNS["llamagen_b"](), {"data.image_size": size})
    run = protocols.apply(run, "imagenet50k")
    found = protocols.deviations(run, "imagenet50k", classes=1000)
    assert [line.partition(" 256")[0] for line in found] == said
    assert run.evals["distribution"].image_size == (256 if size == 384 else 0)
  # A slope stays a slope, at half the pixels, and is not clipped before; the borders
  # repeat.
  slope = np.broadcast_to(np.linspace(-2, 2, 12), (1, 12, 12))[..., None]
  decoder = types.SimpleNamespace(image_size=12, unclipped=lambda tokens: slope)
  found = samples._Resized(decoder, 6).decode(None)[0, :, :, 0]
  halves = slope[0, 0, :, 0].reshape(6, 2).mean(1)
  np.testing.assert_allclose(found[:, 1:-1], np.tile(halves[1:-1], (6, 1)), atol=1e-6)


def given(source, text, **fields):
  """What evaluators need of a run that has this source and text encoder."""
  data = config.Data(source=source, image_size=16)
  run = types.SimpleNamespace(data=data, text=text, evals={}, **fields)
  return types.SimpleNamespace(run=run, vocabulary=None)


def test_as_many_of_each_class_whatever_classes_are_called(tmp_path):
  names = sorted(map(str, range(1, 13)))  # As folders are: 1, 10, 11, 12, 2.
  (tmp_path / "classes.txt").write_text("\n".join(names))
  context = given(None, ClassesConfig())
  context.vocabulary = Classes(tmp_path / "classes.txt")
  lines = samples.metadata(context, "classes", n=36)
  ids, _ = context.vocabulary.encode([line["prompt"] for line in lines])
  np.testing.assert_array_equal(ids[:, 0], np.arange(36) % 12)


def test_bad_examples_are_passed_over(tmp_path):
  """As prepare does, which has counted them."""
  (tmp_path / "val").mkdir()
  lines = []
  for i in range(8):
    Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(tmp_path / "val" / f"{i}.png")
    lines.append({"file_name": f"{i}.png", "text": f"number {i}" if i != 2 else ""})
  (tmp_path / "val" / "4.png").write_bytes(b"junk")
  text = "\n".join(map(json.dumps, lines))
  (tmp_path / "val" / "metadata.jsonl").write_text(text)
  context = given(FolderConfig(path=str(tmp_path)), LearnedConfig())
  found = samples.metadata(context, "val", n=3, first=1)
  assert [line["prompt"] for line in found] == ["number 1", "number 3", "number 4"]
  assert len(samples.metadata(context, "pinned", n=8)) == 7
  images = Images(make_source(context.run.data, "val"), range(1, 6))
  np.testing.assert_array_equal(images[:][:, 0, 0, 0], [20, 60, 60, 100, 100])
  # In place of the last one the first of them: another set's are not touched.
  images = Images(images.source, [6, 7, 2])
  np.testing.assert_array_equal(images[:][:, 0, 0, 0], [120, 140, 120])
  assert list(images.replaced) == [2]


def test_records_say_which_real_images_others_stand_for(tmp_path, monkeypatch):
  """Of images and of features that are kept; reconstructions have none."""

  class Source(list):
    def __getitem__(self, index):
      if index == 3:
        raise BadExample("image 3.png is cut short")
      return super().__getitem__(index)

  source = Source({"image": np.full((16, 16, 3), i, np.uint8)} for i in range(16))
  monkeypatch.setattr(distribution, "make_source", lambda data, split: source)
  monkeypatch.setitem(features.FEATURES, "Fake", FakeFeatures)
  draw = lambda *args, **kwargs: (np.zeros((8, 16, 16, 3), np.uint8), {})
  monkeypatch.setattr(distribution, "draw", draw)
  lines = [{"prompt": str(i)} for i in range(8)]
  monkeypatch.setattr(distribution, "metadata", lambda *args, **kwargs: lines)
  cfg = distribution.DistributionConfig(
    examples=8, metrics=("kid",), features="Fake", tokenizer=False
  )
  for _ in range(2):
    context = given(ShapesConfig(), LearnedConfig())
    context.run.data = config.replaced(context.run.data, {"cache": str(tmp_path)})
    context.mesh, context.track = sharding.make_mesh(config.Mesh()), progress.silent
    context.records, context.tokenizer = [], None
    dict(cfg.make(None, context).run(None, 0))
    (note,) = context.records[0]["notes"]
    assert "1 of 8 images (real)" in note and "3.png is cut short" in note
  whole = distribution.ReconstructionConfig(examples=8, features="Fake")
  with pytest.raises(BadExample, match="3.png"):
    dict(whole.make(None, context).run(None, 0))


def test_geneval_needs_no_images_of_a_model_given_away(monkeypatch):
  """What was drawn in hours is not lost for the lack of real ones."""
  cfg = evaluator.GenEvalConfig(prompts="official", k=1, detector="mask2former")
  judge = evaluator.GenEval.__new__(evaluator.GenEval)
  context = given(FolderConfig(), LearnedConfig())  # Of no folder.
  judge.net, judge.context, judge.cfg = None, context, cfg
  pairs = samples.geneval_lines(context, cfg)
  judge.groups, judge.lines = zip(*pairs)
  judge.results, judge.others, judge.detect = None, True, True
  judge._found = lambda images, lines: [{} for _ in images]
  monkeypatch.setattr(evaluator, "draw", lambda *args, **kwargs: ([None] * 553, {}))
  found = dict(judge.run(None, 0))
  assert found["geneval/overall_n"] == 553 and "geneval/tokenizer" not in found


def test_known_images_that_cannot_be_used_are_one_line(tmp_path):
  line = {"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": "p"}
  geneval.write_layout(tmp_path / "g", [line], np.zeros((1, 1, 8, 8, 3), np.uint8))
  np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 16, 16, 3), np.uint8))
  np.savez(tmp_path / "b.npz", mu=np.zeros(4), sigma=np.eye(4))
  judge = evaluator.GenEval.__new__(evaluator.GenEval)
  judge.context = given(None, None)
  for name, said in (
    ("a.npz", "no metadata.jsonl"),
    ("b.npz", "no metadata.jsonl"),
    ("g", "has images of .8, 8. pixels"),
  ):
    judge.cfg = evaluator.GenEvalConfig(known=str(tmp_path / name))
    with pytest.raises(config.ConfigError, match=said):
      judge._check_detector()


@pytest.mark.parametrize("total, others", [(8, 0), (12, 4), (40, 8)])
def test_other_real_images_are_others(total, others, monkeypatch):
  class Source(list):
    def caption(self, index):
      return f"number {index}"

  source = Source({"image": np.full((16, 16, 3), i, np.uint8)} for i in range(total))
  for module in (distribution, samples):
    monkeypatch.setattr(module, "make_source", lambda data, split: source)
  monkeypatch.setitem(features.FEATURES, "Fake", FakeFeatures)
  context = given(None, LearnedConfig())
  cfg = distribution.DistributionConfig(prompts="pinned", examples=8, features="Fake")
  made = cfg.make(None, context)
  assert len(made.others) == others and not set(made.others) & set(made.index)


@pytest.mark.parametrize(
  "part, key",
  [
    (lambda: distribution.DistributionConfig(metrics=()), "x.metrics"),
    (lambda: images.ImagesConfig(n=0), "x.n"),
    (lambda: images.ImagesConfig(prompts=()), "x.prompts"),
  ],
)
def test_nothing_to_do_is_refused_before_training(part, key):
  with pytest.raises(config.ConfigError, match=f"'{key}' (is empty|must be positive)"):
    part().check("x.")
