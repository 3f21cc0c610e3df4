"""Sets of images, metrics of them by name, and the command that scores any two."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fluid import config
from fluid.evals import features, measures, sets
from fluid.evals.metrics import diversity, frechet, kernels
from tests.evals_test import FakeFeatures

ROOT = pathlib.Path(__file__).parents[1]


def noise(n, seed=0, size=16, low=0):
  rng = np.random.RandomState(seed)
  return rng.randint(low, 256, (n, size, size, 3)).astype(np.uint8)


def folder(path, images):
  path.mkdir(parents=True)
  for i, image in enumerate(images):
    Image.fromarray(image).save(path / f"{i:03d}.png")
  return path


@pytest.fixture
def fake(monkeypatch):
  """A network that costs nothing, in all its roles."""
  for name in ("Fake", "Inception", "DINOv2-L14"):
    monkeypatch.setitem(features.FEATURES, name, _Fake)
  features.load.cache_clear()
  yield
  features.load.cache_clear()


class _Fake(FakeFeatures):
  outputs = {"pool": 6, "spatial": 6, "logits": 6}

  def __init__(self, resize=""):
    self.name = f"Fake, {resize}" if resize else "Fake"

  def apply(self, params, x):
    y = super().apply(params, x)["pool"]
    return {"pool": y, "spatial": y[:, ::-1], "logits": 9 * y}


def test_a_set_is_the_same_in_every_form(tmp_path, fake):
  images = noise(40)
  a = folder(tmp_path / "a", images)
  np.savez(tmp_path / "stored.npz", images)
  np.savez_compressed(tmp_path / "small.npz", images)
  real = folder(tmp_path / "real", noise(30, 1, low=30))
  skipped = ("kid_subsets", "clip_score", "cmmd", "psnr", "ssim")
  names = [n for n in measures.METRICS if n not in skipped]
  first = None
  for path in (a, tmp_path / "stored.npz", tmp_path / "small.npz"):
    found = measures.measure(names, sets.open_set(path), sets.open_set(real))
    assert all(np.isfinite(r["value"]) for r in found)
    assert all((r["images"], r.get("real", 30)) == (40, 30) for r in found)
    first = first or found
    assert found == [r | {"against": str(real)} if "against" in r else r for r in first]


def test_numbers_do_not_hang_on_batches_caches_or_order(tmp_path, fake, monkeypatch):
  monkeypatch.setattr(measures, "PART", 16)
  x = sets.open_set(folder(tmp_path / "x", noise(41)))
  y = sets.open_set(folder(tmp_path / "y", noise(29, 1, low=20)))
  names = ["kid", "fid", "sfid", "precision_recall", "inception_score"]
  values = lambda **options: [
    r["value"] for r in measures.measure(names, x, y, **options)
  ]
  want = values(batch=7)
  cache = tmp_path / "cache"
  np.testing.assert_allclose(values(batch=16, cache=cache), want, rtol=1e-6)
  kept = sorted(cache.glob("*/*.npz"))
  assert len(kept) == 3 + 2
  rows = len(np.load(kept[1])["pool"])
  kept[1].unlink()  # As after an end before it was there.
  ran = []
  monkeypatch.setattr(
    features, "extract",
    lambda net, images, *args, real=features.extract, **kwargs: ran.append(len(images))
    or real(net, images, *args, **kwargs),
  )  # fmt: skip
  np.testing.assert_allclose(values(batch=5, cache=cache), want, rtol=1e-6)
  assert ran == [rows]


def test_statistics_stand_for_their_set(tmp_path, fake):
  x, y = noise(40), noise(50, 1, low=40)
  judged, real = sets.ImageSet("x", x), sets.ImageSet("y", y)
  want = measures.measure(["fid", "sfid"], judged, real)
  found, net = measures.statistics(real, "torch_fidelity")
  made_with = {"features": net.name, "weights": net.digest, "images": len(y)}
  sets.write_statistics(tmp_path / "y.npz", found, made_with)
  kept = sets.open_set(tmp_path / "y.npz")
  got = measures.measure(["fid", "sfid"], judged, kept)
  for a, b in zip(got, want):
    assert a["value"] == pytest.approx(b["value"], rel=1e-9)
    assert a["real"] == "statistics" and a["against"] == str(tmp_path / "y.npz")
  # As pytorch-fid has them: no word of what they were made with.
  mu, sigma = found["pool"].mean, found["pool"].covariance
  np.savez(tmp_path / "theirs.npz", mu=mu, sigma=sigma)
  theirs = sets.open_set(tmp_path / "theirs.npz")
  again = measures.measure(["fid"], judged, theirs)[0]
  assert again["value"] == pytest.approx(want[0]["value"], rel=1e-9)
  # As ADM: statistics and images; the first stand for all, the images for neighbours.
  np.savez(tmp_path / "adm.npz", y[:20], mu=mu, sigma=sigma)
  adm = sets.open_set(tmp_path / "adm.npz")
  fid, precision, _ = measures.measure(["fid", "precision_recall"], judged, adm)
  assert fid["value"] == pytest.approx(want[0]["value"], rel=1e-9)
  assert precision["real"] == 20
  with pytest.raises(config.ConfigError, match="'Fake, torch_.*but 'Fake, adm' is"):
    measures.measure(["fid"], judged, kept, protocol="adm")
  with pytest.raises(config.ConfigError, match="statistics alone"):
    measures.measure(["kid"], judged, kept)
  with pytest.raises(config.ConfigError, match="no statistics of 'spatial'"):
    measures.measure(["sfid"], judged, theirs)
  np.savez(tmp_path / "wide.npz", mu=np.zeros(9), sigma=np.eye(9))
  with pytest.raises(config.ConfigError, match="9 features, but 'pool' of Fake"):
    measures.measure(["fid"], judged, sets.open_set(tmp_path / "wide.npz"))


def test_a_record_says_what_its_number_hangs_on(fake):
  x, y = sets.ImageSet("x", noise(12)), sets.ImageSet("y", noise(10, 1))
  pair, kid = measures.measure(["fid", "kid@Fake"], x, y, seed=3)
  assert pair["features"] == "Fake, torch_fidelity" and pair["width"] == 6
  assert pair["protocol"] == "torch_fidelity"
  assert "published numbers are of 50000 images, this of 12" in pair["notes"]
  assert kid["metric"] == "kid@Fake" and kid["features"] == "Fake"
  assert kid["lo"] < kid["value"] < kid["hi"] and kid["seed"] == 3
  rows = {n: features.extract(_Fake(), s.images)["pool"] for n, s in zip("xy", (x, y))}
  assert kid["value"] == pytest.approx(kernels.kid(rows["x"], rows["y"]))
  sides = [frechet.Statistics().add(r) for r in rows.values()]
  assert pair["value"] == pytest.approx(frechet.frechet_distance(*sides))
  adm = measures.measure(["inception_score"], x, protocol="adm")[0]
  assert adm["splits"] == 1 and adm["seed"] is None
  assert "kid@Fake" in measures.table([pair, kid, adm])


def test_pairs_and_what_cannot_be_measured(tmp_path, fake):
  x = sets.ImageSet("x", noise(6))
  y = sets.ImageSet("y", np.clip(noise(6).astype(int) + 3, 0, 255).astype(np.uint8))
  found = {r["metric"]: r for r in measures.measure(["psnr", "ssim"], x, y)}
  assert 35 < found["psnr"]["value"] < 40 and 0.9 < found["ssim"]["value"] < 1
  for names, real, said in (
    (["psnr"], sets.ImageSet("z", noise(5)), "x has 6 images and z 5"),
    (["fid"], None, "'fid' compares two sets"),
    (["fidd"], y, "unknown metric 'fidd'; choose from fid,"),
    (["fid@Fake"], y, "FID is of Inception alone; write 'fd@Fake'"),
    (["kid@x"], y, "unknown feature network 'x'"),
    (["clip_score"], y, "needs the text of each image"),
    (["precision_recall"], sets.ImageSet("w", noise(3)), "'precision_recall' of x "
     "against w: 3 neighbours of each need more than 3 images"),
  ):  # fmt: skip
    with pytest.raises(config.ConfigError, match=said) as e:
      measures.measure(names, x, real)
    assert "\n" not in str(e.value)


def test_sets_that_are_none_are_one_line(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "x.txt").write_text("x")
  (tmp_path / "broken.npz").write_bytes(b"PK no zip")
  np.savez(tmp_path / "other.npz", a=np.zeros(3))
  np.savez(tmp_path / "floats.npz", np.zeros((2, 4, 4, 3)))
  np.savez(tmp_path / "skew.npz", mu=np.zeros(3), sigma=np.eye(4))
  damaged = folder(tmp_path / "damaged", noise(3))
  (damaged / "001.png").write_bytes((damaged / "001.png").read_bytes()[:90])
  for name, said in (
    ("empty", "has no images"),
    ("none", "name a folder"),
    ("x.txt", "is no set of images"),
    ("broken.npz", "cannot be read"),
    ("other.npz", "has a, but neither"),
    ("floats.npz", "float64 .*not uint8"),
    ("skew.npz", "3 features, its covariance .4, 4."),
  ):
    with pytest.raises(config.ConfigError, match=said) as e:
      sets.open_set(tmp_path / name)
    assert name in str(e.value) and "\n" not in str(e.value)
  with pytest.raises(config.ConfigError, match="001.png cannot be read.*repair"):
    list(sets.open_set(damaged).images)


def test_the_command(tmp_path):
  """With the network that is there, on images of several sizes and modes."""
  a, b = tmp_path / "a", tmp_path / "b"
  for path, low in ((a, 0), (b, 60)):
    folder(path, noise(4, low, 32, low))
    Image.fromarray(noise(1, 7, 48, low)[0]).save(path / "jpeg.jpg")
    Image.fromarray(noise(1, 8, 20, low)[0]).convert("L").save(path / "grey.png")
  command = [sys.executable, "-m", "fluid.metrics_of", str(a), str(b)]
  done = subprocess.run(
    [*command, f"--json={tmp_path / 'out.json'}"], cwd=ROOT, capture_output=True,
    text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  records = json.loads((tmp_path / "out.json").read_text())["records"]
  found = {r["metric"]: r for r in records}
  assert found["kid@EffNet"]["images"] == found["kid@EffNet"]["real"] == 6
  assert found["fd@EffNet"]["value"] > 1 and found["fd@EffNet"]["width"] == 1280
  for name in ("fid", "cmmd", "fd"):
    assert found[name]["value"] is None and "FLUID_WEIGHTS" in found[name]["missing"]
  assert "weights missing" in done.stdout
  done = subprocess.run(
    [*command, "--metrics=fid"], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1


def test_names_of_metrics_are_kept_as_they_are_asked():
  assert measures.on("kid", "EffNet") == "kid@EffNet"
  assert measures.on("kid@Inception", "EffNet") == "kid@Inception"
  assert measures.on("fid", "EffNet") == "fid"


def test_what_cannot_be_measured_is_said_beside_what_can(fake):
  """Of a set of three, under 'say'; statistics serve what they are of alone."""
  x, y = sets.ImageSet("x", noise(3)), sets.ImageSet("y", noise(3, 1))
  names = ["kid", "precision_recall", "fid"]
  kid, neighbours, fid = measures.measure(names, x, y, missing="say")
  assert "3 neighbours" in neighbours["missing"] and np.isfinite(fid["value"])
  assert kid["value"] is not None
  given = {"pool": frechet.Statistics(mean=np.zeros(6), given=np.eye(6))}
  real = sets.ImageSet("mu", statistics=given)
  assert measures.possible(x, real) == [
    "fid", "fid_infinity", "inception_score", "vendi", "vendi@EffNet",
  ]  # fmt: skip


def test_links_are_followed_and_pairs_are_of_one_name(tmp_path, fake):
  a = folder(tmp_path / "a", noise(4))
  (tmp_path / "b").mkdir()
  (tmp_path / "b" / "inner").symlink_to(a)
  assert len(sets.open_set(tmp_path / "b")) == 4
  other = tmp_path / "c"
  other.mkdir()
  for i, path in enumerate(sorted(a.iterdir())):
    (other / f"{10 - i}.png").write_bytes(path.read_bytes())
  with pytest.raises(config.ConfigError, match="is of pairs, but .* has 000 where"):
    measures.measure(["psnr"], sets.open_set(a), sets.open_set(other))


def test_adm_splits_are_of_one_size_but_for_the_last():
  logits = np.random.RandomState(0).randn(12, 5) * 3
  scores = [
    diversity.inception_score(part, splits=1, seed=None)[0]
    for part in (logits[:5], logits[5:10], logits[10:])
  ]
  got = diversity.inception_score(logits, split=5, seed=None)
  assert got[0] == pytest.approx(np.mean(scores))
