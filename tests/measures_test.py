"""Sets of images, metrics of them by name, and the command that scores any two."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import scipy.special
from PIL import Image

from fluid import config
from fluid.evals import features, measures, metrics, parts, sets
from fluid.evals.metrics import diversity, frechet, kernels
from tests.random_run import FakeFeatures

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

  def preprocess(self, images):
    rows, columns = (np.arange(16) * n // 16 for n in images.shape[1:3])
    return super().preprocess(images[:, rows][:, :, columns])

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
  names = [n for n in metrics.METRICS if n not in skipped]
  first = None
  for path in (a, tmp_path / "stored.npz", tmp_path / "small.npz"):
    found = measures.measure(names, sets.open_set(path), sets.open_set(real))
    assert all(np.isfinite(r["value"]) for r in found)
    assert all((r["images"], r.get("real", 30)) == (40, 30) for r in found)
    first = first or found
    assert found == [r | {"against": str(real)} if "against" in r else r for r in first]


def test_numbers_do_not_hang_on_batches_caches_or_order(tmp_path, fake, monkeypatch):
  monkeypatch.setattr(parts, "PART", 16)
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
    (["inception_score"], None, "10 parts need 10 images or more, not 6"),
    (["precision_recall"], sets.ImageSet("w", noise(3)), "'precision_recall' of x "
     "against w: 3 neighbours of each need more than 3 images"),
  ):  # fmt: skip
    with pytest.raises(config.ConfigError, match=said) as e:
      measures.measure(names, x, real)
    assert "\n" not in str(e.value)


def ordinary(path, seed=0):
  """A folder of what people have, and what its pictures are by name: grey ramps."""
  path.mkdir(parents=True)
  grey = np.random.RandomState(seed).randint(0, 256, (3, 5), np.uint8)
  rgb, full = np.stack([grey] * 3, -1), np.full_like(grey, 255)
  palette = Image.fromarray(grey, "P")
  palette.putpalette([i for i in range(256) for _ in "rgb"])
  rotated = Image.Exif()
  rotated[0x0112] = 6  # Stored a quarter turn to the left.
  layers = lambda *all: np.ascontiguousarray(np.stack(all, -1))
  files = {
    "16_bit.png": (Image.fromarray(grey.astype(np.uint16) * 257), rgb),
    "cmyk.tif": (Image.fromarray(layers(*[255 - grey] * 3, 0 * grey), "CMYK"), rgb),
    "exif.png": (Image.fromarray(np.rot90(rgb).copy()), rgb),
    "grey.bmp": (Image.fromarray(grey), rgb),
    "grey_alpha.png": (Image.fromarray(layers(grey, full), "LA"), rgb),
    "one.gif": (Image.fromarray(grey[:1, :1]), rgb[:1, :1]),
    "palette.PNG": (palette, rgb),
    "photo.jfif": (Image.new("RGB", (8, 8), (9, 9, 9)), np.full((8, 8, 3), 9)),
    "rgba.webp": (Image.fromarray(layers(grey, grey, grey, full), "RGBA"), rgb),
  }
  for name, (image, _) in files.items():
    options = {"exif": rotated} if name.startswith("exif") else {}
    options |= {"lossless": True} if name.endswith("webp") else {}
    options |= {"format": "JPEG", "quality": 100} if name.endswith("jfif") else {}
    image.save(path / name, **options)
  return {name: shown.astype(np.uint8) for name, (_, shown) in files.items()}


def test_what_people_have_is_read_and_what_is_bad_is_named(tmp_path, fake):
  """One folder with all of it, and then with three files that nobody can read."""
  want = ordinary(tmp_path / "a")
  x, y = sets.open_set(tmp_path / "a"), sets.ImageSet("y", noise(9, 1))
  assert [f"{n}" for n in x.names] == [name.rpartition(".")[0] for name in want]
  for image, shown in zip(x.images, want.values(), strict=True):
    np.testing.assert_array_equal(image, shown)
  names = ["kid@Fake", "fid", "sfid", "vendi", "precision_recall"]
  same = sets.ImageSet(x.name, list(want.values()))
  assert measures.measure(names, x, y) == measures.measure(names, same, y)
  whole = (tmp_path / "a" / "cmyk.tif").read_bytes()
  for name, content in (("torn.tif", whole[:-9]), ("x.jfif", b"text"), ("z.png", b"")):
    (tmp_path / "a" / name).write_bytes(content)
  with pytest.raises(config.ConfigError, match="^3 of 12 images cannot be read: ") as e:
    measures.measure(["kid@Fake"], sets.open_set(tmp_path / "a"), y)
  assert all(f"{tmp_path}/a/{n} (" in str(e.value) for n in ("torn.tif", "x.jfif"))
  assert "z.png" in str(e.value) and "\n" not in str(e.value)


def test_bad_input_is_one_line(tmp_path, fake):
  """Of a set that is none, and of two that do not fit: what it is, and the remedy."""
  (tmp_path / "empty").mkdir()
  (tmp_path / "x.txt").write_text("x")
  (tmp_path / "broken.npz").write_bytes(b"PK no zip")
  statistics = dict(mu=np.zeros(6), sigma=np.eye(6))
  made_with = lambda name: np.array(json.dumps({"features": name}))
  nan = np.full((2, 4, 4, 3), 0.5)
  nan[0, 0, 0] = np.nan
  for name, arrays in (
    ("other", dict(a=np.zeros(3))),
    ("floats", dict(arr_0=np.zeros((2, 4, 4, 3)))),
    ("nan", dict(arr_0=nan)),
    ("grey", dict(arr_0=np.zeros((2, 4, 4), np.uint8))),
    ("none_of_it", dict(arr_0=np.zeros((0, 4, 4, 3), np.uint8))),
    ("skew", dict(mu=np.zeros(3), sigma=np.eye(4))),
    ("infinite", statistics | dict(sigma=np.full((6, 6), np.inf))),
    ("wide", dict(mu=np.zeros(9), sigma=np.eye(9))),
    ("network", statistics | dict(made_with=made_with("Other"))),
    ("resize", statistics | dict(made_with=made_with("Fake, clean"))),
    ("one", dict(arr_0=noise(1))),
    ("three", dict(arr_0=noise(3))),
  ):
    np.savez(tmp_path / f"{name}.npz", **arrays)
  cut = (tmp_path / "three.npz").read_bytes()[:-300]
  (tmp_path / "cut.npz").write_bytes(cut)
  floats = folder(tmp_path / "tiff", noise(3))
  Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(floats / "nan.tif")
  good = noise(12)
  for name, metric, said in (
    ("empty", "fid", "has no images"),
    ("none", "fid", "name a folder"),
    ("x.txt", "fid", "is no set of images"),
    ("broken.npz", "fid", "cannot be read .*; download it again"),
    ("cut.npz", "fid", "cannot be read .*; download it again"),
    ("other.npz", "fid", "has a, but neither"),
    ("floats.npz", "fid", r"float64 \[2, 4, 4, 3\], not uint8 .*: save whole numbers"),
    ("nan.npz", "fid", r"float64 \[2, 4, 4, 3\] with 3 values that are no numbers"),
    ("grey.npz", "fid", r"uint8 \[2, 4, 4\], not uint8 images \[N, H, W, 3\]"),
    ("none_of_it.npz", "fid", r"uint8 \[0, 4, 4, 3\]"),
    ("skew.npz", "fid", "3 features, its covariance .4, 4."),
    ("infinite.npz", "fid", "statistics of 'pool' are not finite"),
    ("wide.npz", "fid", "9 features, but 'pool' of Fake, torch_fidelity has 6"),
    ("network.npz", "fid", "of 'Other', but 'Fake, torch_fidelity' is asked for"),
    ("resize.npz", "fid", "of 'Fake, clean', but 'Fake, torch_fidelity' is asked for"),
    ("network.npz", "sfid", "no statistics of 'spatial' and no images"),
    ("tiff", "kid", r"1 of 4 images cannot be read: \S*nan.tif .*floats"),
    ("one.npz", "fid", "2 images"),
    ("one.npz", "kid", "2 images"),
    ("three.npz", "kid_subsets", "1000"),
    ("three.npz", "precision_recall", "3 neighbours of each need more than 3"),
    ("three.npz", "density_coverage", "need more than 3 images"),
    ("three.npz", "psnr", "has 12 images and .* 3"),
  ):  # fmt: skip
    with pytest.raises(config.ConfigError, match=said) as e:
      real = sets.open_set(tmp_path / name)
      measures.measure([metric], sets.ImageSet("good", good), real)
    assert name in str(e.value) and "\n" not in str(e.value)


def test_the_command(tmp_path):
  """With the network that is there, on images of several sizes and modes."""
  a, b = tmp_path / "a", tmp_path / "b"
  for path, low in ((a, 0), (b, 60)):
    ordinary(path, low)
    for i, image in enumerate(noise(4, low, 32, low)):
      Image.fromarray(image).save(path / f"{i:03d}.png")
  command = [sys.executable, "-m", "fluid.metrics_of", str(a), str(b)]
  run = lambda *args: subprocess.run(
    [*command, *args], cwd=ROOT, capture_output=True, text=True
  )
  done = run(f"--json={tmp_path / 'out.json'}")
  assert done.returncode == 0, done.stderr
  records = json.loads((tmp_path / "out.json").read_text())["records"]
  found = {r["metric"]: r for r in records}
  assert found["kid@EffNet"]["images"] == found["kid@EffNet"]["real"] == 13
  assert found["fd@EffNet"]["value"] > 1 and found["fd@EffNet"]["width"] == 1280
  for name in ("fid", "cmmd", "fd"):
    assert found[name]["value"] is None and "FLUID_WEIGHTS" in found[name]["missing"]
  assert "weights missing" in done.stdout
  (a / "001.png").write_bytes((a / "001.png").read_bytes()[:90])
  for args, said in ((["--metrics=fid"], "FLUID_WEIGHTS"), ([], "001.png (")):
    done = run(*args)
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_names_of_metrics_are_kept_as_they_are_asked():
  assert metrics.on("kid", "EffNet") == "kid@EffNet"
  assert metrics.on("kid@Inception", "EffNet") == "kid@Inception"
  assert metrics.on("fid", "EffNet") == "fid"


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


class _Table:
  """Seeded features of images that name their row by their pixel."""

  digest, outputs = "0", {"pool": 9, "spatial": 7, "logits": 11}

  def __init__(self, resize=""):
    self.name = f"Table, {resize}"
    draw = np.random.RandomState(0).randn
    self.params = {
      k: np.maximum(draw(6000, d) + 0.3, 0).astype(np.float32)
      for k, d in self.outputs.items()
    }

  def preprocess(self, images):
    return images.reshape(len(images), 3).astype(np.int32) @ np.array([1, 256, 65536])

  def apply(self, params, rows):
    return {k: table[rows] for k, table in params.items()}


def test_adm_numbers_are_those_of_its_formulas_in_float64(fake, monkeypatch):
  """FID, sFID, IS of 5,000 and the rest, precision, recall: written down once more."""
  monkeypatch.setitem(features.FEATURES, "Inception", _Table)
  features.load.cache_clear()
  n = 5100
  rows = np.arange(6000)
  pixels = np.stack([rows % 256, rows // 256, 0 * rows], -1).astype(np.uint8)
  images = pixels[:, None, None]
  sides = sets.ImageSet("x", images[:n]), sets.ImageSet("y", images[n:])
  names = ["fid", "sfid", "inception_score"]
  found = measures.measure(names, *sides, protocol="adm", batch=1500)
  got = {r["metric"]: r["value"] for r in found}
  tables = {k: v.astype(np.float64) for k, v in _Table().params.items()}
  for metric, output in (("fid", "pool"), ("sfid", "spatial")):
    x, y = tables[output][:n], tables[output][n:]
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b)
    want = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root.real)
    assert got[metric] == pytest.approx(want, rel=1e-9)
  p = scipy.special.softmax(tables["logits"][:n], 1)
  scores = []
  for part in (p[:5000], p[5000:]):
    divergence = (part * (np.log(part) - np.log(part.mean(0)))).sum(1)
    scores.append(np.exp(divergence.mean()))
  assert got["inception_score"] == pytest.approx(np.mean(scores), rel=1e-9)
  few = sets.ImageSet("x", images[:700]), sides[1]
  found = measures.measure(["precision_recall"], *few, protocol="adm", batch=700)
  got = {r["metric"]: r["value"] for r in found}
  x, y = tables["pool"][:700], tables["pool"][n:]
  # The nearest of a set to itself stands first, and is not counted.
  reach = lambda z: np.sort(scipy.spatial.distance.cdist(z, z))[:, 3]
  between = scipy.spatial.distance.cdist(x, y)
  assert got["precision"] == (between <= reach(y)).any(1).mean()
  assert got["recall"] == (between <= reach(x)[:, None]).any(0).mean()


def test_statistics_that_say_nonsense_are_one_line(tmp_path):
  path = tmp_path / "stats.npz"
  np.savez(path, mu=np.zeros(4), sigma=np.eye(4), made_with=np.array("[1]"))
  with pytest.raises(config.ConfigError, match="stats.npz cannot be read"):
    sets.open_set(path)
