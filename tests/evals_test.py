"""Evaluators that draw, samples, and fluid.evaluate on a run."""

import json
import types

import jax
import numpy as np
import pytest
from PIL import Image

import fluid
from fluid import api, config, evals, models, prepare, text
from fluid import evaluate as evaluate_lib
from fluid import sample as sample_lib
from fluid.console import progress
from fluid.data import BadExample, Images, captions, make_source, pipeline, records
from fluid.data.folder import FolderConfig
from fluid.data.shapes import ShapesConfig
from fluid.durable import checkpoint
from fluid.durable.workdir import commit
from fluid.evals import (
  distribution,
  features,
  geneval,
  images,
  loss,
  parts,
  protocols,
  samples,
)
from fluid.files import write_json
from fluid.models.conditions.label import ClassConfig
from fluid.models.published import RUNS
from fluid.parallel import sharding
from fluid.text.classes import Classes, ClassesConfig
from fluid.text.learned import LearnedConfig
from fluid.tokenizers import store
from fluid.tokenizers.vq import VQConfig
from fluid.training import state as state_lib
from tests import tiny


def test_grid_places_images_row_by_row():
  shots = np.arange(1, 4, dtype=np.uint8)[:, None, None, None] * np.ones(
    (3, 4, 5, 3), np.uint8
  )
  got = images.grid(shots, columns=2, gap=1)
  assert got.shape == (9, 11, 3)
  assert (got[:4, :5] == 1).all() and (got[:4, 6:] == 2).all()
  assert (got[5:, :5] == 3).all() and (got[5:, 6:] == 255).all()


class FakeFeatures:
  """Mean colour of an image and of its upper half: quick, and tells sets apart."""

  name, digest, outputs, params = "Fake", "0", {"pool": 6}, ()

  def preprocess(self, images):
    return images.astype(np.float32) / 255

  def apply(self, params, x):
    halves = x.mean((1, 2)), x[:, :8].mean((1, 2))
    return {"pool": jax.numpy.concatenate(halves, -1)}


def written(root, text_encoder, evaluators, source=None, **changes):
  """A run at step 2 with random weights: 16 px, 16 tokens; its workdir."""
  source = {} if source is None else {"source": source}
  cfg = tiny.run(
    order="random",
    changes=changes,
    text=text_encoder,
    data=config.Data(
      image_size=16, num_train=256, num_val=24, cache=str(root / "data"), **source
    ),
    tokenizer=VQConfig(
      stem=4,
      width=8,
      multipliers=(1,),
      vocab=16,
      path=str(root / "tokenizer"),
    ),
    sample=tiny.model(order="random").sample(steps=2, batch=8),
    evals=evaluators,
  )
  tokenizer = cfg.tokenizer.make(16)
  variables = jax.tree.map(np.asarray, jax.jit(tokenizer.init)(jax.random.key(0)))
  tokenizer = cfg.tokenizer.make(16, variables)
  store.save(cfg.tokenizer.path, tokenizer, {})
  prepare.prepare(cfg, batch=16, log=lambda line: None)
  vocabulary = text.load(cfg.text, cfg.data.cache)
  net = models.build(cfg.model, tokenizer.spec, cfg.text, vocabulary.size)
  mesh = sharding.make_mesh(cfg.mesh)
  state = state_lib.init_state(net, cfg, mesh)
  saved = checkpoint.Checkpoints(root / "w")
  saved.save(state.replace(step=state.step + 2), {}, 2)
  saved.close()
  write_json(root / "w" / "config.json", config.to_dict(cfg))
  return root / "w"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  evaluators = {
    "loss": loss.LossConfig(),
    "images": images.ImagesConfig(prompts="geneval", n=4),
    "geneval": samples.GenEvalConfig(n=1, k=2, heldout=1, layout=True),
    "distribution": distribution.DistributionConfig(
      prompts="geneval", examples=12, features="Fake", every=0
    ),
    "reconstruction": distribution.ReconstructionConfig(features="Fake", every=0),
  }
  words = LearnedConfig(length=24, vocab_size=120)
  return written(tmp_path_factory.mktemp("run"), words, evaluators)


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


def test_evaluate_writes_every_value_once(workdir, monkeypatch):
  monkeypatch.setitem(features.FEATURES, "Fake", FakeFeatures)
  drawn = []
  real = samples.Sampler.__call__

  def counted(self, params, prompts, **kwargs):
    drawn.append(len(prompts))
    return real(self, params, prompts, **kwargs)

  monkeypatch.setattr(samples.Sampler, "__call__", counted)
  got = evaluate_lib.evaluate(workdir)
  # One prompt to compile; then 6 tags and 2 held-out ones, twice, shared by all three.
  assert drawn == [1, 16]
  assert got["sample/images"] == 16 and got["sample/seconds_per_image"] > 0
  tags = [got[f"geneval/{tag}"] for tag in evals.samples.geneval.TAGS]
  assert got["geneval/overall"] == pytest.approx(np.mean(tags))
  assert 0 <= got["geneval/chance"] < 0.2
  assert 0 <= got["geneval/tokenizer"] <= 1
  assert 0 <= got["geneval_heldout/colors"] <= 1
  assert got["features"] == "Fake" and got["kid_lo"] <= got["kid"] <= got["kid_hi"]
  assert got["kid_images"] == 16 and got["kid_real"] == 12
  assert np.isfinite([got["fd"], got["kid_tokenizer"], got["val/loss"]]).all()

  stored = json.loads((workdir / "eval" / "2-ema.json").read_text())
  assert stored["values"] == got and stored["step"] == 2
  _recorded(got, stored["records"])
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  assert len(lines) == 1 and json.loads(lines[0]).items() >= got.items()
  grid = Image.open(workdir / "samples" / "step_00000002.png")
  assert grid.size == (2 * 16 + 2, 2 * 16 + 2)
  assert len(json.loads((workdir / "samples" / "prompts.json").read_text())) == 4
  assert len(list(workdir.glob("geneval/step_00000002-ema/*/samples/*.png"))) == 16

  again = evaluate_lib.evaluate(workdir, names=["loss"])
  assert {k: got[k] for k in again} == again
  assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 1
  raw = evaluate_lib.evaluate(workdir, weights="raw", names=["loss"])
  # Of a state at its start the average is the weights themselves.
  assert raw["raw/val/loss"] == pytest.approx(got["val/loss"])
  assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 2


def _recorded(values, found):
  """Each number has a record, which says what it hangs on."""
  by_name = {}
  for record in found:
    name = record["metric"].removesuffix("@Fake")
    own = "reconstruction/" * (record["of"] == "reconstruction")
    by_name[own + name] = record
    assert record["step"] == 2 and record["weights"] == "ema"
    assert {"checkpoint", *commit()} <= record.keys()
  assert len(by_name) == len(found)
  ends = ("_lo", "_hi", "_sem", "_count", "_n", "_images", "_real", "/images")
  alone = {k for k, v in values.items() if isinstance(v, float)}
  alone = {k for k in alone if not k.endswith(ends)} - {"sample/seconds_per_image"}
  assert alone == by_name.keys()
  assert {k: values[k] for k in alone} == {k: r["value"] for k, r in by_name.items()}
  overall, colors = by_name["geneval/overall"], by_name["geneval/colors"]
  settings = {
    "detector": "shapes",
    "prompts": "shapes",
    "n": 1,
    "k": 2,
    "noise_seed": 0,
  }
  assert settings.items() <= overall.items() and overall["images"] == 12
  assert overall["lo"] == values["geneval/overall_lo"] and colors["images"] == 2
  lost = by_name["val/loss"]
  assert lost["images"] == 24 and lost["sem"] == values["val/loss_sem"]
  for record in (lost, by_name["kid"], by_name["reconstruction/psnr"]):
    assert record["split"] == "val" and record["source"]["kind"] == "shapes"
  for record in (overall, by_name["kid"]):
    assert record["sample"]["guidance"] == 3.0 and record["prompts"]
  assert by_name["kid"]["features"] == "Fake" and by_name["kid"]["real"] == 12


@pytest.mark.parametrize("kind", evals.EVALS)
def test_every_evaluator_finds_finite_values_and_the_same_again(
  kind, workdir, monkeypatch
):
  monkeypatch.setitem(features.FEATURES, "Fake", FakeFeatures)
  names = list(dict.fromkeys(["geneval", kind]))  # Others may want its prompts.
  first, second = (evaluate_lib.evaluate(workdir, names=names) for _ in range(2))
  times = "sample/seconds_per_image"
  for found in (first, second):
    assert all(isinstance(v, str) or np.isfinite(v) for v in found.values())
    found.pop(times, None)
  assert first == second and first


def test_a_split_is_opened_and_decoded_once(workdir, monkeypatch):
  mesh = sharding.make_mesh(config.Mesh())
  loaded = api.load(workdir, mesh=mesh)
  read = []
  real = records.Records._read
  monkeypatch.setattr(
    records.Records, "_read", lambda r, rows: read.append(len(rows)) or real(r, rows)
  )
  open_split = lambda split, batch: pipeline.loader(
    loaded.config, split, mesh, batch=batch, shuffle=False, epochs=1
  )
  where = evals.EvalContext(loaded.config, None, None, mesh, "/unused", open_split)
  evaluator = loss.LossConfig().make(loaded.net, where)
  first, second = (dict(evaluator.run(loaded.params, step)) for step in (1, 2))
  assert first == second and read == [24]


def test_images_are_shared_by_the_same_parameters_alone(workdir):
  mesh = sharding.make_mesh(config.Mesh())
  loaded = api.load(workdir, mesh=mesh)
  where = evals.EvalContext(
    loaded.config, loaded.tokenizer, loaded.vocabulary, mesh, workdir, None
  )
  draw = lambda params, step=2: samples.draw(
    loaded.net, where, params, step, ["a red circle"]
  )
  one = loaded.params
  other = jax.tree.map(lambda x: x + 1, one)
  shared = other | {k: one[k] for k in list(one)[:1]}  # The first leaves are the same.
  images = [draw(p)[0] for p in (one, other, shared)]
  for params, drawn in zip((one, other, shared), images):
    again, timing = draw(params)
    assert again is drawn and not timing
  assert (images[0] != images[1]).any() and images[0] is not images[2]
  assert draw(one, step=3)[1] and len(where.drawn) == 1


def test_samples_depend_on_their_prompt_and_number_alone(workdir):
  loaded = fluid.load(workdir)
  assert loaded.step == 2
  prompts = ["a red circle", "two stars", "a blue ring above a green heart"]
  want = loaded.sample(prompts, key=5)
  assert want.shape == (3, 16, 16, 3) and want.dtype == np.uint8
  # The last one alone, after two others: another batch, the same number and prompt.
  other = loaded.sample(["two stars", "a circle", prompts[2]], key=5)
  np.testing.assert_array_equal(other[2], want[2])
  assert (loaded.sample(prompts, key=6) != want).any()
  last = loaded.sample(prompts[2:], key=5, first=2)
  np.testing.assert_array_equal(last[0], want[2])
  # Three images are a batch of four, which eight devices fill up.
  on_mesh = api.load(workdir, mesh=sharding.make_mesh(config.Mesh()))
  close = on_mesh.sample(prompts, key=5).astype(int) - want.astype(int)
  assert np.abs(close).max() <= 1


def test_sample_writes_pngs_grid_and_prompts(workdir, tmp_path):
  loaded = fluid.load(workdir)
  prompts = ["a red circle", "two stars"]
  path = sample_lib.sample(loaded, prompts, tmp_path / "out", n=3, guidance=3.0)
  assert Image.open(path).size == (3 * 18 - 2, 2 * 18 - 2)
  described = json.loads((tmp_path / "out" / "samples.json").read_text())
  assert [i["prompt"] for i in described["images"]] == [
    p for p in prompts for _ in "123"
  ]
  assert described["sample"]["guidance"] == 3.0
  # In batches of two the same images; a mesh of another machine becomes one of these.
  sample_lib.sample(loaded, prompts, tmp_path / "two", n=3, guidance=3.0, batch=2)
  for image in described["images"]:
    one, two = (Image.open(tmp_path / f / image["file"]) for f in ("out", "two"))
    np.testing.assert_array_equal(one, two)
  mesh = sample_lib._mesh(config.Mesh(data=3, fsdp=5))
  assert mesh.shape["fsdp"] == jax.device_count()
  for image in described["images"]:
    assert Image.open(tmp_path / "out" / image["file"]).size == (16, 16)


def test_prompts_are_read_from_a_file_in_utf_8(tmp_path):
  path = tmp_path / "prompts.txt"
  path.write_bytes("\ufeffa red circle\n\n  ein gr\u00fcner Stern \n".encode())
  assert sample_lib.read_prompts(path) == ["a red circle", "ein gr\u00fcner Stern"]
  path.write_bytes("gr\u00fcn".encode("latin-1"))
  for bad in (path, tmp_path, tmp_path / "none.txt"):
    with pytest.raises(config.ConfigError, match=f"--prompts {bad} cannot be read"):
      sample_lib.read_prompts(bad)


def test_user_errors_are_one_line(workdir, tmp_path):
  def message(function, *args, **kwargs):
    with pytest.raises(config.ConfigError) as error:
      function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)

  loaded = fluid.load(workdir)
  assert "zebra" in message(loaded.sample, "a red zebra")
  assert "text.length" in message(loaded.sample, "a red circle " * 30)
  assert "warmth" in message(loaded.sample, "a red circle", warmth=1)
  assert "no run in" in message(fluid.load, tmp_path)
  assert "step 9" in message(fluid.load, workdir, step=9)
  (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
  assert "no checkpoint" in message(fluid.load, tmp_path)
  override = lambda *items: evaluate_lib.override(loaded.config, items)
  for item in ("model.width=3", "data.image_size=8"):
    assert item in message(override, item)
  assert "data.source.path'" in message(override, "data.source.path=x")
  assert "sample.warmth" in message(override, "sample.warmth=3")
  got = override(
    "evals.geneval.n=4", "sample.guidance=2", "evals.geneval.prompts=x.txt"
  )
  assert got.evals["geneval"].n == 4 and got.sample.guidance == 2.0
  assert got.evals["geneval"].prompts == "x.txt"
  for name, bad in (
    ("fid", {}),
    ("loss", {"size": 3}),
    ("geneval", {"detector": "x"}),
    ("geneval", {"prompts": "val"}),
  ):
    tree = config.to_dict(loaded.config) | {"evals": {name: bad}}
    assert f"evals.{name}" in message(config.from_config_dict, tree)


def test_geneval_of_detections_and_of_results(workdir, monkeypatch):
  """What was drawn and laid out is judged elsewhere, and comes back by a file."""
  run = lambda *changes: evaluate_lib.evaluate(
    workdir, names=["geneval"], overrides=[f"evals.geneval.{c}" for c in changes]
  )
  want = run("layout=True", "heldout=0")
  drawn = workdir / "geneval" / "step_00000002-ema"
  found = run("heldout=0", f"detections={drawn / 'detections.jsonl'}")
  scores = {k: v for k, v in want.items() if k.startswith("geneval/")}
  scores.pop("geneval/tokenizer")
  assert scores.items() <= found.items() and found["geneval/colors_n"] == 2
  alone = run("heldout=0", "detector=none", "layout=True")
  assert not any(k.startswith("geneval/") for k in alone)
  rows = [
    {"tag": json.loads(f.read_text())["tag"], "prompt": f.parent.name, "correct": c}
    for f in sorted(drawn.glob("*/metadata.jsonl"))
    for c in (True, False)
  ]
  results = drawn / "results.jsonl"
  results.write_text("".join(f"{json.dumps(r)}\n" for r in rows))
  monkeypatch.setattr(samples, "draw", None)  # Nothing is drawn for these.
  assert run(f"results={results}")["geneval/overall"] == 0.5


def test_a_detector_that_fails_where_the_answer_is_known_is_refused(
  workdir, monkeypatch
):
  class Blind:
    def __init__(self, image_size):
      pass

    def __call__(self, images):
      return [{} for _ in images]

  monkeypatch.setitem(samples.DETECTORS, "shapes", Blind)
  with pytest.raises(config.ConfigError, match="'shapes' finds 0.00 of what 24 images"):
    evaluate_lib.evaluate(workdir, names=["geneval"])


def test_images_of_a_large_evaluation_are_kept_in_shards(workdir, monkeypatch):
  """What ended early goes on; an image depends on its number and prompt alone."""
  mesh = sharding.make_mesh(config.Mesh())
  loaded = api.load(workdir, mesh=mesh)
  prompts = ["a red circle", "two stars", "a blue ring"] * 4

  def context():
    return evals.EvalContext(
      loaded.config, loaded.tokenizer, loaded.vocabulary, mesh, workdir, None
    )

  def draw(params=loaded.params):
    return samples.draw(loaded.net, context(), params, 2, prompts)

  whole, _ = draw()
  monkeypatch.setattr(parts, "PART", 2)
  shards, timing = draw()
  assert timing["sample/images"] == 12 and len(shards) == 12
  np.testing.assert_array_equal(shards[:], whole)
  np.testing.assert_array_equal(shards[np.array([7, 3])], whole[[7, 3]])
  np.testing.assert_array_equal(shards[5], whole[5])
  kept = sorted((workdir / "eval" / "images" / shards.digest).iterdir())
  assert len(kept) == 6 and not isinstance(shards, np.ndarray)
  # Another checkpoint of the same step and folder has images of its own.
  name = next(iter(loaded.params))
  other = loaded.params | {name: jax.tree.map(lambda x: x + 1, loaded.params[name])}
  others = draw(other)[0]
  assert others.digest != shards.digest and (others[:] != whole).any()
  kept[3].write_bytes(kept[3].read_bytes()[:-1])  # Damaged ones are drawn again.
  drawn = []
  real = samples.Sampler.__call__

  def counted(self, params, prompts, **kwargs):
    drawn.append((len(prompts), kwargs.get("first")))
    return real(self, params, prompts, **kwargs)

  monkeypatch.setattr(samples.Sampler, "__call__", counted)
  again, _ = draw()
  np.testing.assert_array_equal(again[:], whole)
  assert drawn[1:] == [(2, 6)]


def test_a_reference_that_does_not_fit_is_refused_before_anything_is_drawn(
  workdir, tmp_path, monkeypatch
):
  class Inception(FakeFeatures):
    def __init__(self, resize=""):
      self.name = f"Fake, {resize}"

  monkeypatch.setitem(features.FEATURES, "Inception", Inception)
  monkeypatch.setattr(samples, "draw", None)
  features.load.cache_clear()
  wide, other = tmp_path / "wide.npz", tmp_path / "other.npz"
  np.savez(wide, mu=np.zeros(9), sigma=np.eye(9))
  made_with = np.array(json.dumps({"features": "Fake, clean"}))
  np.savez(other, mu=np.zeros(6), sigma=np.eye(6), made_with=made_with)
  for changes, said in (
    ([f"reference={wide}"], "9 features, but 'pool' of Fake, torch_fidelity has 6"),
    ([f"reference={other}"], "of 'Fake, clean', but 'Fake, torch_fidelity' is asked"),
    ([f"reference={tmp_path}/none"], "none: name a folder of images"),
    ([f"reference={tmp_path}"], "has no images"),
    (["reference=$NOWHERE/x"], r"\$NOWHERE is not set"),
    (["protocol=clear"], "'evals.distribution.protocol' is 'clear'; choose from torch"),
  ):
    changes = ["metrics=('fid',)", "prompts=val", *changes]
    changes = [f"evals.distribution.{c}" for c in changes]
    with pytest.raises(config.ConfigError, match=said):
      evaluate_lib.evaluate(workdir, names=["distribution"], overrides=changes)
  features.load.cache_clear()


def test_a_protocol_says_how_it_was_not_followed(workdir, monkeypatch):
  monkeypatch.setitem(features.FEATURES, "EffNet", FakeFeatures)
  features.load.cache_clear()
  got = evaluate_lib.evaluate(
    workdir, protocol="toy", quick=True, overrides=["evals.geneval.n=1"]
  )
  features.load.cache_clear()
  said = got["deviations"]
  assert said.startswith("not comparable with toy: --quick; images of 16 pixels (pro")
  assert "evals.geneval.n is 1 (protocol: 32)" in said
  assert "evals.distribution.examples is 48 (protocol: 384)" in said
  stored = json.loads(
    (workdir / "eval" / "2-ema-toy-quick-evals.geneval.n=1.json").read_text()
  )
  assert stored["protocol"] == "toy" and len(stored["deviations"]) == 4
  record = next(r for r in stored["records"] if r["metric"].startswith("kid"))
  assert record["checkpoint"] == str(workdir) and record["step"] == 2
  assert record["sample"]["guidance"] == 3.0 and record["images"] == 12
  with pytest.raises(config.ConfigError, match="unknown protocol 'x'; choose from im"):
    evaluate_lib.evaluate(workdir, protocol="x")


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


def test_a_sweep_is_kept_beside_the_checkpoint(workdir, monkeypatch):
  """Its best is what fluid.load draws with, and fluid.evaluate does not."""
  monkeypatch.setitem(features.FEATURES, "Fake", FakeFeatures)
  sweep = lambda grid, **options: evaluate_lib.sweep(
    workdir, grid, overrides=["evals.distribution.features=Fake"], **options
  )
  try:
    found = sweep("guidance=1:4:1,weights=ema,raw", by="kid", images=32)
    assert len(found.judged) == 8 + 4 + 2 + 1 and found.drawn <= 8 * 32 / 2
    stored = json.loads((workdir / "eval" / "sweep-2.json").read_text())
    assert stored["points"] == found.judged and stored["value"] == found.value
    assert fluid.load(workdir).config.sample.guidance == found.best["guidance"]
    assert api.read_config(workdir).sample.guidance == 3.0
    scored = sweep("temperature=0.5,1", by="geneval/overall", images=24)
    assert [j["images"] for j in scored.judged] == [12, 12, 24]
    for grid, by, said in (
      ("guidance=1,2", "geneval/overall", "begins with 6, and 12 are needed"),
      ("guidance=1,2", "geneval/colour", "no such value; there are geneval/"),
      ("guidance=1,2", "psnr", "is of pairs"),
      ("guidance=a,b", "kid", "guidance is 'a', no number"),
    ):
      with pytest.raises(config.ConfigError, match=said):
        sweep(grid, by=by, images=12 if "12" in said else 24)
    (workdir / api.CHOSEN).write_text("{}")
    with pytest.raises(config.ConfigError, match="sample.json is damaged"):
      fluid.load(workdir)
  finally:
    (workdir / api.CHOSEN).unlink(missing_ok=True)
  with pytest.raises(config.ConfigError, match="unknown sampling option 'guidanse'"):
    sweep("guidanse=1:3:1")


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
  cfg = samples.GenEvalConfig(prompts="official", k=1, detector="mask2former")
  judge = samples.GenEval.__new__(samples.GenEval)
  context = given(FolderConfig(), LearnedConfig())  # Of no folder.
  judge.net, judge.context, judge.cfg = None, context, cfg
  pairs = samples._lines(context, cfg)
  judge.groups, judge.lines = zip(*pairs)
  judge.results, judge.others, judge.detect = None, True, True
  judge._found = lambda images, lines: [{} for _ in images]
  monkeypatch.setattr(samples, "draw", lambda *args, **kwargs: ([None] * 553, {}))
  found = dict(judge.run(None, 0))
  assert found["geneval/overall_n"] == 553 and "geneval/tokenizer" not in found


def test_known_images_that_cannot_be_used_are_one_line(tmp_path):
  line = {"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": "p"}
  geneval.write_layout(tmp_path / "g", [line], np.zeros((1, 1, 8, 8, 3), np.uint8))
  np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 16, 16, 3), np.uint8))
  np.savez(tmp_path / "b.npz", mu=np.zeros(4), sigma=np.eye(4))
  judge = samples.GenEval.__new__(samples.GenEval)
  judge.context = given(None, None)
  for name, said in (
    ("a.npz", "no metadata.jsonl"),
    ("b.npz", "no metadata.jsonl"),
    ("g", "has images of .8, 8. pixels"),
  ):
    judge.cfg = samples.GenEvalConfig(known=str(tmp_path / name))
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
