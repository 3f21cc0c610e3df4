"""fluid.evaluate on a run, and the images that its evaluators and fluid.sample draw."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

import fluid
from fluid import api, config, evals
from fluid import evaluate as evaluate_lib
from fluid import sample as sample_lib
from fluid.data import pipeline, records
from fluid.durable.workdir import commit
from fluid.evals import detectors, features, loss, parts, samples
from fluid.parallel import sharding
from tests.random_run import FakeFeatures


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
  tags = [got[f"geneval/{tag}"] for tag in evals.geneval.TAGS]
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

  monkeypatch.setitem(detectors.DETECTORS, "shapes", Blind)
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
