"""fluid.data.webdataset, .parquet, .tfds: sets in shards that other libraries wrote.

One small set is written in all three formats; what comes back is compared with what was
written. Then each format's own layouts, and what is damaged or missing.
"""

import contextlib
import gzip
import io
import json
import os
import pathlib
import pickle
import resource
import subprocess
import sys
import tarfile

import grain
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs import fluid as paper
from configs import toy
from fluid import config, evaluate, prepare, train
from fluid.data import (
  BadExample,
  examples,
  images,
  make_source,
  pipeline,
  stored,
  webdataset,
)
from fluid.data.folder import VAL_IDS
from fluid.errors import REQUEUE, exit_code
from fluid.evals.loss import LossConfig
from fluid.text.classes import ClassesConfig
from fluid.text.learned import LearnedConfig
from tests.conftest import ROOT

SIZE = 8
NAMES = ["cat", "dog", "crane"]
TRAIN, VAL = range(12), range(12, 16)  # Numbers of the images of each split.


def png(number):
  pixels = np.random.default_rng(number).integers(0, 256, (10 + number, 12, 3))
  file = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
  return file.getvalue()


def texts(number):
  return [f"image {number}", f"the picture {number}"]


def write_tar(path, members, **options):
  """Members (name, bytes or JSON-able) -> tar."""
  with tarfile.open(path, "w", **options) as tar:
    for name, content in members:
      if not isinstance(content, bytes):
        content = json.dumps(content).encode()
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


def sample(number):
  fields = {"caption": texts(number), "number": number, "label": number % 3}
  fields |= {"status": None, "exif": {"b": [1, None], "a": {}}, "none": [], "ü": "ü"}
  return [(f"{number:05d}.png", png(number)), (f"{number:05d}.json", fields)]


def hugging_face(names):
  """What a table of Hugging Face's `datasets` says of its features."""
  features = {"label": {"names": names, "_type": "ClassLabel"}}
  return {"huggingface": json.dumps({"info": {"features": features}})}


def table(numbers, **columns):
  columns = {
    "image": [{"bytes": png(n), "path": f"{n}.png"} for n in numbers],
    "caption": [texts(n) for n in numbers],
    "label": [n % 3 for n in numbers],
    "number": list(numbers),
  } | columns
  columns = {name: c for name, c in columns.items() if c is not None}
  return pa.table(columns).replace_schema_metadata(hugging_face(NAMES))


def build(folder, name="small", file_format="array_record", splits=None, **own):
  """A set of TFDS, written by its own builder; `own` content by name, of a number."""
  import tensorflow_datasets as tfds  # And tensorflow, to write: seconds.

  class Builder(tfds.dataset_builders.AdhocBuilder, skip_registration=True):
    code_path = None  # Else version 4.9.10 imports a package that it does not require.

  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
      "label": tfds.features.ClassLabel(names=NAMES),
      "number": np.int64,
    }
  )
  rows = lambda numbers: [
    (
      n,
      {
        "image": io.BytesIO(own.get("png", png)(n)),
        "captions": [
          {"text": t, "id": i} for i, t in enumerate(own.get("texts", texts)(n))
        ],
        "label": n % 3,
        "number": n,
      },
    )
    for n in numbers
  ]
  tfds.disable_progress_bar()
  Builder(
    name=name,
    version="1.0.0",
    features=features,
    split_datasets={s: rows(n) for s, n in splits.items()},
    data_dir=folder,
    file_format=file_format,
  ).download_and_prepare()


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
  """kind -> config of the small set in that format."""
  root = tmp_path_factory.mktemp("shards")
  for first in (0, 6, 12):
    numbers = range(first, min(first + 6, 16))
    members = [m for n in numbers for m in sample(n)]
    write_tar(root / f"{first // 6:05d}.tar", members)
    pq.write_table(table(numbers), root / f"{first // 6}.parquet", row_group_size=4)
  build(root / "tfds", splits={"train": TRAIN, "validation": VAL})
  files = lambda ending, names: {s: str(root / f"{n}.{ending}") for s, n in names}
  return {
    "webdataset": files("tar", [("train", "{00000..00001}"), ("val", "00002")]),
    "parquet": files("parquet", [("train", "[01]"), ("val", "2")]),
    "tfds": {"name": "small", "data_dir": str(root / "tfds")},
  }


def source_of(kind, split="train", **fields):
  part = config.part_from_dict({"kind": kind} | fields, "source", "data.source.")
  return make_source(config.Data(source=part, image_size=SIZE), split)


def assert_equal(a, b):
  np.testing.assert_array_equal(a["image"], b["image"])
  assert {**a, "image": 0} == {**b, "image": 0}


@pytest.mark.parametrize("kind", ("webdataset", "parquet", "tfds"))
def test_what_was_written_is_read(kind, configs):
  ids = []
  for split, numbers in (("train", TRAIN), ("val", VAL)):
    source = source_of(kind, split, **configs[kind])
    found = [source[i] for i in range(len(source))]
    ids += [e["id"] for e in found]
    assert sorted(e["meta"]["number"] for e in found) == list(numbers)
    for i, example in enumerate(found):
      n = example["meta"]["number"]
      expected = images.square(images.read(png(n)), SIZE)
      np.testing.assert_array_equal(example["image"], expected)
      assert example["image"].dtype == np.uint8
      assert example["captions"] == texts(n) == source.captions(i)
      assert example["caption"] == texts(n)[0] == source.caption(i)
      assert json.loads(json.dumps(example["meta"])) == example["meta"]
      assert example["meta"]["label"] == n % 3
      if kind != "webdataset":
        assert source.label(i) == NAMES[n % 3]
    copied = pickle.loads(pickle.dumps(source))
    assert_equal(copied[np.int64(1)], found[1])
    with pytest.raises(IndexError):
      source[len(source)]
  assert len(set(ids)) == 16 and max(ids) < 2**31 and min(ids) == 0
  with pytest.raises(config.ConfigError, match="no split 'test'; it has train and val"):
    source_of(kind, "test", **configs[kind])


@contextlib.contextmanager
def no_files():
  """No file can be opened, as where too many are."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", ("webdataset", "parquet", "folder"))
def test_what_passes_is_no_bad_example(kind, configs, tmp_path):
  """It ends the work with 75; and nothing of it is kept."""
  row = {"file_name": "0.png", "text": "a"}
  (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
  (tmp_path / "0.png").write_bytes(png(0))
  fields = configs.get(kind) or {"path": str(tmp_path)}
  split = "train" if kind == "folder" else "val"
  want = source_of(kind, split, **fields)[0]  # And what it imports is there.
  source = source_of(kind, split, **fields)
  with no_files(), pytest.raises(OSError, match="Too many open files: '/") as e:
    source[0]
  assert exit_code(e.value) == REQUEUE
  assert_equal(source[0], want)


class _All:
  """Examples of several sources, one after another."""

  def __init__(self, sources):
    self.sources = sources

  def __len__(self):
    return sum(map(len, self.sources))

  def __getitem__(self, index):
    for source in self.sources:
      if index < len(source):
        return source[index]
      index -= len(source)


def test_worker_processes_read_the_same(configs):
  every = _All([source_of(kind, "val", **configs[kind]) for kind in configs])
  every[0], every[len(every) - 1]  # What is open does not go to the workers.
  found = []
  for workers in (0, 2):
    dataset = grain.MapDataset.source(every).to_iter_dataset()
    found.append(list(pipeline.in_processes(dataset, workers)))
  assert len(found[0]) == len(found[1]) == 3 * len(VAL)
  for a, b in zip(*found):
    assert_equal(a, b)


@pytest.mark.parametrize("kind", ("parquet", "tfds"))
def test_classes(kind, configs, tmp_path):
  """Labels are prompts of the encoder of classes, and captions where there are none."""
  source = source_of(kind, **configs[kind])
  prompts = ClassesConfig()
  prompts.fit(source, len(source), tmp_path / "classes.txt")
  encoder = prompts.open(tmp_path / "classes.txt")
  assert encoder.names == NAMES
  read = next(iter(examples.read(source, prompts, 0, len(source), 16, 0)))
  ids, _ = encoder.encode([e["prompt"] for e in read])
  assert ids[:, 0].tolist() == [e["meta"]["number"] % 3 for e in read]
  # With 'label' alone: a caption is the name of the class.
  if kind == "parquet":
    pq.write_table(table(TRAIN, caption=None), tmp_path / "a.parquet")
    source = source_of(
      kind, train=str(tmp_path / "*.parquet"), val=configs[kind]["val"]
    )
    assert [source.caption(i) for i in range(3)] == NAMES
    assert source[1]["captions"] == ["dog"]


def test_class_names_are_one_line_each_and_differ():
  names = stored.class_names(["crane", "a\nb ", "crane", ""])
  assert names == ["crane", "a b", "crane (2)", "3"]


def test_nothing_heavy_is_imported():
  code = "import sys, fluid.data, fluid.data.tfds; print(*sys.modules)"
  root = pathlib.Path(__file__).parents[1]
  command = [sys.executable, "-c", code]
  found = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
  assert not {b"tensorflow", b"tensorflow_datasets", b"pyarrow"} & set(found.split())


# Files by pattern.


def test_patterns(tmp_path):
  names = [f"{n:02d}-{s}.tar" for n in range(8, 12) for s in "ab"]
  for name in [*names, "x.json", "x.parquet"]:
    (tmp_path / name).touch()
  get = lambda p: [
    pathlib.Path(f).name for f in stored.files(str(tmp_path / p), "k", ".tar")
  ]
  assert get("*") == names
  assert get("{08..11}-{b,a}.tar") == [
    n for p in zip(names[1::2], names[::2]) for n in p
  ]
  assert get("1{0..1}-?.tar") == names[4:]
  for pattern, message in (
    ("", "config key 'k' is empty: name files"),
    ("{08..12}-a.tar", "'k' names .*12-a.tar, which is missing"),
    ("y*", "fits no .tar file"),
    ("x.*", "fits no .tar file"),
  ):
    with pytest.raises(config.ConfigError, match=message):
      stored.files(pattern and str(tmp_path / pattern), "k", ".tar")


@pytest.mark.parametrize(
  "kind, ending", (("webdataset", "tar"), ("parquet", "parquet"))
)
def test_no_file_is_of_both_splits(kind, ending, tmp_path):
  for n in range(3):
    write_tar(tmp_path / f"{n}.tar", sample(n))
    pq.write_table(table([n]), tmp_path / f"{n}.parquet")
  (tmp_path / "link").symlink_to(tmp_path)
  place = lambda name: str(tmp_path / f"{name}.{ending}")
  for all_, last in (("*", "2"), ("{0..2}", "[2]"), ("*", "link/2")):
    fields = {"train": place(all_), "val": place(last)}
    message = rf"{place(2)} is of both splits .*: 1 of 3.*'data.source.train' and '"
    with pytest.raises(config.ConfigError, match=message) as e:
      source_of(kind, **fields)
    assert "\n" not in str(e.value)
    assert len(source_of(kind, "val", **fields)) == 1  # Which may be judged.
  assert len(source_of(kind, train=place("[01]"), val=place("2"))) == 2


# Tar shards.


def test_layout_of_img2dataset_and_kinds_of_names(tmp_path):
  """What img2dataset leaves in a folder, GNU's and PAX's long names, hidden files."""
  long = "a folder/" + "ü" * 150
  for shard, form in enumerate(
    (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
  ):
    members = [("./._000000000.jpg", b"?"), ("__meta__/a.json", b"{}")]
    for n in range(shard * 2, shard * 2 + 2):
      key = f"{n:09d}" if form == tarfile.USTAR_FORMAT else f"{long}{n}"
      fields = {"caption": f"json {n}", "key": key, "url": "http://x/y", "width": 3}
      members += [(f"{key}.a.png", b"other"), (f"{key}.JPG", png(n))]
      members += [(f"{key}.json", fields), (f"{key}.txt", f"text {n}\n".encode())]
    write_tar(tmp_path / f"{shard:05d}.tar", members, format=form)
    (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    (tmp_path / f"{shard:05d}.parquet").write_bytes(b"")
  source = source_of("webdataset", "val", val=str(tmp_path / "*"))
  found = [source.caption(i) for i in range(len(source))]
  assert found == [f"text {n}" for n in range(6)]
  named = source_of("webdataset", train=str(tmp_path / "*"), caption="caption")
  assert named.caption(0).startswith("json ")
  meta = source[4]["meta"]
  assert meta == {"key": f"{long}4", "url": "http://x/y", "width": 3}
  np.testing.assert_array_equal(
    source[4]["image"], images.square(images.read(png(4)), SIZE)
  )


@pytest.mark.parametrize(
  "name, fields, files, captions",
  [
    ("cc12m", {"caption": "alt text"}, {"txt": b"alt text"}, ["alt text"]),
    (
      "datacomp",
      {"uid": "0a1b", "caption": "alt text", "clip_b32_similarity_score": 0.3},
      {"txt": b"alt text"},
      ["alt text"],
    ),
    (
      "laion_coco",
      {"caption": "alt text", "top_caption": "a cat", "all_captions": ["a cat", "b"]},
      {"txt": b"alt text"},
      ["a cat"],
    ),
    ("text_to_image_2m", {"prompt": "a cat in a hat"}, {}, ["a cat in a hat"]),
  ],
)
def test_public_sets_by_name(tmp_path, name, fields, files, captions):
  """As img2dataset writes them, with the columns that these lists have."""
  fields = fields | {"key": "000000000", "status": "success", "error_message": None}
  fields |= {"url": "http://x/y.jpg", "width": 12, "height": 10, "exif": "{}"}
  members = [("000000000.jpg", png(0))]
  members += [(f"000000000.{ending}", content) for ending, content in files.items()]
  write_tar(tmp_path / "00000.tar", [*members, ("000000000.json", fields)])
  data = config.from_config_dict(paper.get_config(f"data={name}")).data
  place = str(tmp_path / "{00000..00000}.tar")
  changes = {"image_size": SIZE, "source.val": place}
  example = make_source(config.replaced(data, changes), "val")[0]
  assert example["captions"] == captions and example["meta"]["width"] == 12
  expected = images.square(images.read(png(0)), SIZE)
  np.testing.assert_array_equal(example["image"], expected)


def test_the_index_is_kept(tmp_path, monkeypatch):
  tars = [tmp_path / f"{n}.tar" for n in range(2)]
  for n, tar in enumerate(tars):
    write_tar(tar, [m for i in range(n * 40, n * 40 + 40) for m in sample(i)])
  fields = {"train": str(tmp_path / "*.tar"), "index": str(tmp_path / "index")}
  scanned = []
  scan = webdataset._scan
  monkeypatch.setattr(webdataset, "_scan", lambda p: scanned.append(p) or scan(p))

  def read():
    scanned.clear()
    webdataset._index.cache_clear()  # As another start.
    sources = [source_of("webdataset", split, **fields) for split in ("train", "val")]
    found = [s[i]["meta"]["number"] for s in sources for i in range(len(s))]
    assert 0 < len(sources[1]) < len(found) / 4
    return [pathlib.Path(p).name for p in scanned], sorted(found)

  assert read() == (["0.tar", "1.tar"], list(range(80)))
  assert read() == ([], list(range(80)))
  write_tar(tars[1], [m for i in range(100, 140) for m in sample(i)])
  os.utime(tars[1], (1, 1))
  assert read() == (["1.tar"], [*range(40), *range(100, 140)])
  for file in (tmp_path / "index").iterdir():
    file.write_bytes(file.read_bytes()[:100])
  assert read()[0] == ["0.tar", "1.tar"]


def test_damaged_tars(tmp_path, caplog):
  """All before the damage is read, one line says so; what is no tar is refused."""
  whole = tmp_path / "a.tar"
  write_tar(whole, [m for n in range(4) for m in sample(n)])
  content = whole.read_bytes()
  with tarfile.open(whole) as tar:
    last = tar.getmembers()[-2]

  def read(content):
    caplog.clear()
    whole.write_bytes(content)
    webdataset._index.cache_clear()
    source = source_of("webdataset", "val", val=str(whole))
    found = []
    for i in range(len(source)):
      try:
        found.append(source[i]["meta"]["number"])
      except BadExample as e:
        found.append((e.kind, str(e)))
    said = [r.getMessage() for r in caplog.records]
    assert len(said) <= 1
    return found, "".join(said)

  assert read(content) == ([0, 1, 2, 3], "")
  for cut in (last.offset_data + 9, last.offset_data + last.size - 1):
    found, said = read(content[:cut])
    assert found[:3] == [0, 1, 2] and found[3][0] == "image"
    assert "00003.png ends after" in found[3][1] and str(whole) in found[3][1]
    assert "1 of 1 shards are damaged" in said and "nobody knows how many" in said
  found, said = read(content[: last.offset])
  assert found == [0, 1, 2] and "without the mark of an end" in said
  found, said = read(content[: last.offset + 99])
  assert found == [0, 1, 2] and "without the mark of an end" in said
  hole = bytearray(content)
  hole[last.offset : last.offset + 512] = b"\xff" * 512
  assert read(bytes(hole))[0] == [0, 1, 2] and "where more follows" in read(hole)[1]
  hole[last.offset : last.offset + 512] = bytes(512)
  assert read(bytes(hole))[0] == [0, 1, 2] and "where more follows" in read(hole)[1]
  for wrong in (
    b"",
    b"no tar" * 200,
    content[:100],
    gzip.compress(content),
  ):
    with pytest.raises(config.ConfigError, match="shard .*a.tar is no tar") as e:
      read(wrong)
    assert "\n" not in str(e.value)


def test_samples_without_their_parts(tmp_path):
  parts = [
    ("a.png", png(0)), ("a.txt", b"a caption"),
    ("b.txt", b"no image"),
    ("c.png", png(1)), ("c.json", {"text": "elsewhere"}),
    ("d.png", png(2)), ("d.json", b"{"),
    ("e.png", png(3)), ("e.json", [1]),
    ("f.png", png(3)), ("f.txt", b"\xff\xfe\xfd"),
    ("g.png", b"no image"), ("g.txt", b"g"),
    ("h.png", png(4)), ("h.txt", b" \n"),
    ("i.png", png(4)), ("i.json", {"caption": 7}),
    ("j.png", png(5)), ("j.json", {"caption": ["", None, "the second"]}),
    ("j.png", png(6)), ("j.txt", b"of the same key"),
  ]  # fmt: skip
  write_tar(tmp_path / "a.tar", parts)
  source = source_of("webdataset", "val", val=str(tmp_path / "a.tar"))
  wrong = {
    1: ("image", "sample 'b' of .*a.tar has no image, only txt"),
    2: ("caption", "'c'.* has no caption.*fields text.*data.source.caption"),
    3: ("caption", "json of sample 'd' .* is damaged"),
    4: ("caption", "json of sample 'e' .* is no object"),
    5: ("caption", "'f'.* is not UTF-8"),
    6: ("image", "image of sample 'g' .* cannot be read"),
    7: ("caption", "'h'.* has no caption"),
    8: ("caption", "caption of sample 'i' .* is 7, no text"),
  }
  assert len(source) == 11
  assert source.captions(0) == ["a caption"] and source.captions(9) == ["the second"]
  assert source.captions(10) == ["of the same key"]
  for i in range(len(source)):
    if i not in wrong:
      source[i]
      continue
    kind, message = wrong[i]
    with pytest.raises(BadExample, match=message) as e:
      source[i]
    assert e.value.kind == kind and "\n" not in str(e.value)
  # A vocabulary is made of the captions that there are.
  LearnedConfig(vocab_size=20).fit(source, len(source), tmp_path / "text.model")
  with pytest.raises(config.ConfigError, match="'x', which is missing|names x"):
    source_of("webdataset", "val", train=str(tmp_path / "a.tar"), val="x")
  with pytest.raises(config.ConfigError, match="'data.source.train' is empty"):
    source_of("webdataset")
  write_tar(tmp_path / "a.tar", [])
  with pytest.raises(config.ConfigError, match="holds no examples"):
    source_of("webdataset", train=str(tmp_path / "a.tar"))


# Parquet.


def test_parquet_reads_a_group_once_in_order(configs, monkeypatch):
  source, loaded = source_of("parquet", **configs["parquet"]), []
  load = source._load
  monkeypatch.setattr(source, "_load", lambda *a: loaded.append(a) or load(*a))
  for i in range(len(source)):
    source[i], source.caption(i)
  assert loaded == [(g, b) for g in range(4) for b in (True, False)]


def test_parquet_columns(tmp_path):
  """Other types and names of columns, captions that are null, files without val."""
  numbers = range(400)
  small = [png(n % 7) for n in numbers]
  for n in range(7):
    (tmp_path / f"{n}.png").write_bytes(png(n))
  told = [f"image {n}" if n != 3 else None for n in numbers]
  path = tmp_path / "a.parquet"
  columns = {
    "img": (small, {}),
    "jpg": (pa.array(small, pa.large_binary()), {}),
    "file": ([f"{n % 7}.png" for n in numbers], {"image": "file"}),
    "far": (
      [f"{n % 7}.png" for n in numbers],
      {"image": "far", "folder": str(tmp_path)},
    ),
  }
  for name, (content, fields) in columns.items():
    place = path if name != "far" else tmp_path / "deep" / "a.parquet"
    place.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({name: content, "text": told, "n": numbers}), place)
    fields = {"train": str(place)} | fields
    train, val = (source_of("parquet", split, **fields) for split in ("train", "val"))
    assert 5 < len(val) < 40 and len(train) + len(val) == 400
    indices = {s._place(i): (s, i) for s in (train, val) for i in range(len(s))}
    assert sorted(indices) == list(numbers)
    for n, (source, i) in indices.items():
      if n == 3:
        continue
      example = source[i]
      assert example["id"] == n
      assert example["caption"] == f"image {n}" and example["meta"]["n"] == n
      np.testing.assert_array_equal(
        example["image"], images.square(images.read(small[n]), SIZE)
      )
    whole = source_of("parquet", "val", **fields | {"val": str(place)})
    assert whole[0]["id"] == VAL_IDS
    with pytest.raises(BadExample, match="row 3 of row group 0 of .* has no cap") as e:
      whole[3]
    assert e.value.kind == "caption"
  (tmp_path / "0.png").unlink()
  with pytest.raises(BadExample, match="0.png' of row 0 of .* is missing"):
    whole[0]


def test_parquet_labels(tmp_path):
  path = tmp_path / "a.parquet"
  content = table(range(6), caption=None, label=[0, 1, 2, None, -1, 3])
  pq.write_table(content, path)
  source = source_of("parquet", "val", val=str(path))
  for i in (3, 4, 5):
    with pytest.raises(BadExample, match=f"row {i} .* has label .*, of 3 classes") as e:
      source.label(i)
    assert e.value.kind == "caption"
  # Without names, classes are numbers; where no statistics tell how many, rows do.
  for statistics in (True, False):
    bare = content.replace_schema_metadata(None)
    pq.write_table(bare, path, write_statistics=statistics, row_group_size=2)
    source = source_of("parquet", "val", val=str(path))
    assert source.classes == ["0", "1", "2", "3"] and source.label(5) == "3"
  pq.write_table(table(range(6), label=None), path)
  with pytest.raises(config.ConfigError, match="no labels"):
    source_of("parquet", "val", val=str(path)).label(0)


def test_damaged_parquet(tmp_path):
  path = tmp_path / "a.parquet"
  pq.write_table(table(range(12)), path, row_group_size=4, write_page_checksum=True)
  good = path.read_bytes()
  chunk = pq.read_metadata(path).row_group(1).column(0)
  start, size = chunk.dictionary_page_offset, chunk.total_compressed_size
  fields = {"split": "val", "val": str(path)}
  damaged = bytearray(good)
  damaged[start + size // 2 : start + size // 2 + 64] = bytes(64)
  path.write_bytes(damaged)
  source = source_of("parquet", **fields)
  for i in range(12):
    if i // 4 != 1:
      assert source[i]["meta"]["number"] == i
      continue
    assert source.caption(i) == texts(i)[0]  # Another column.
    with pytest.raises(BadExample, match="row group 1 of .*a.parquet is damaged") as e:
      source[i]
    assert e.value.kind == "image" and "\n" not in str(e.value)
  for wrong in (b"", b"no parquet file", good[:-3], good[: len(good) // 2]):
    path.write_bytes(wrong)
    with pytest.raises(config.ConfigError, match="a.parquet is no Parquet file") as e:
      source_of("parquet", **fields)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
  "fields, message",
  [
    (
      {"image": "picture"},
      "'data.source.image' is 'picture', but .* has columns image, ",
    ),
    ({"caption": "label"}, "'data.source.caption' is 'label', .* fits: caption"),
    ({"label": "image"}, "'data.source.label' is 'image', .* fits: label, number"),
    ({"train": "nothing/*.parquet"}, "'data.source.train' .* fits no .parquet file"),
  ],
)
def test_columns_that_are_not_there(configs, fields, message):
  with pytest.raises(config.ConfigError, match=message):
    source_of("parquet", **configs["parquet"] | fields)


def test_columns_that_files_do_not_share(tmp_path):
  pq.write_table(table(range(3)), tmp_path / "a.parquet")
  pq.write_table(table(range(3), caption=None), tmp_path / "b.parquet")
  with pytest.raises(config.ConfigError, match="b.parquet has no column 'caption'"):
    source_of("parquet", train=str(tmp_path / "*.parquet"))
  for gone in ({"image": None}, {"caption": None, "label": None}):
    pq.write_table(table(range(3), **gone), tmp_path / "a.parquet")
    with pytest.raises(config.ConfigError, match="has columns .*: name that of "):
      source_of("parquet", train=str(tmp_path / "a.parquet"))


# TFDS.


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"name": ""}, "'tfds' needs config key 'data.source.name'"),
    ({"name": "cifar11"}, "TFDS does not know .*; did you mean 'cifar10_1'"),
    (
      {"name": "cifar10"},
      "not prepared in .* tfds.builder.'cifar10', file_format='array_record', data_d",
    ),
    ({"name": "small:2.0.0"}, "TFDS does not know"),
    ({"train": "training"}, "has train .12., validation .4.; 'training' is none"),
    ({"train": "train[:0]"}, "'train.:0.' is none"),
    (
      {"image": "label"},
      "'data.source.image' is 'label', .* has features .* fits: image",
    ),
    ({"caption": "number"}, "'data.source.caption' is 'number', .* fits: captions"),
    ({"label": "captions"}, "'data.source.label' is 'captions', .* fits: label"),
  ],
)
def test_tfds_errors(configs, fields, message):
  with pytest.raises(config.ConfigError, match=message) as e:
    source_of("tfds", **configs["tfds"] | fields)
  assert "\n" not in str(e.value)


def test_tfds_slices(configs):
  slices = {"train": "train[:50%]+validation", "val": "train[50%:]"}
  sliced = source_of("tfds", **configs["tfds"] | slices)
  whole = source_of("tfds", **configs["tfds"])
  assert len(sliced) == 10
  assert [sliced[i]["meta"] for i in range(6)] == [whole[i]["meta"] for i in range(6)]


def test_no_example_of_tfds_is_of_both_splits(configs):
  def opened(split, *names):
    own = dict(zip(("train", "val"), names))
    return source_of("tfds", split, **configs["tfds"] | own)

  for both, *names in (
    (12, "train", "train"),
    (3, "train[:9]", "train[50%:]"),
    (3, "validation+train[9:]", "validation[1:]"),
  ):
    with pytest.raises(config.ConfigError, match=f"{both} examples of .* both splits"):
      opened("train", *names)
    opened("val", *names)  # Which may be judged.
  assert len(opened("train", "train[:9]", "train[9:]")) == 9
  assert len(opened("train", "train[:9]", "none")) == 9  # Who reads val is told.


def test_tfds_files_that_cannot_be_read(tmp_path):
  build(tmp_path, "other", "tfrecord", {"train": range(2)})
  fields = {"name": "other", "data_dir": str(tmp_path)}
  message = "is in format tfrecord, .*: run tfds convert_format --dataset_version_dir="
  with pytest.raises(config.ConfigError, match=message):
    source_of("tfds", **fields)
  build(tmp_path, "torn", "array_record", {"train": range(2)})
  (file,) = (tmp_path / "torn").rglob("*array_record*")
  source = source_of("tfds", name="torn", data_dir=str(tmp_path))
  file.write_bytes(bytes(file.stat().st_size))
  with pytest.raises(BadExample, match="example 0 of .*TFDS torn is damaged"):
    source[0]


def test_a_set_of_tfds_is_prepared_trained_and_judged(configs, tmp_path):
  arguments = "tokens=discrete,order=raster,size=xs,data=tfds:small"
  run = config.replaced(
    config.from_config_dict(toy.get_config(arguments)),
    {
      "data.source.data_dir": configs["tfds"]["data_dir"],
      "data.cache": str(tmp_path / "cache"),
      "tokenizer.path": str(ROOT / toy.TRAINED["discrete"]),
      "evals": {"loss": LossConfig()},
      "steps": 2,
      "batch": 8,
      "accum": 1,
      "log_every": 1,
      "eval_every": 2,
      "checkpoint_every": 2,
    },
  )
  metadata = prepare.prepare(run, batch=4, log=str)
  assert {s: c["count"] for s, c in metadata["splits"].items()} == {
    "train": len(TRAIN),
    "val": len(VAL),
  }
  train.run(run, tmp_path / "w")
  lines = [json.loads(x) for x in (tmp_path / "w/metrics.jsonl").open()]
  losses = [x["train/loss"] for x in lines if "train/loss" in x]
  assert len(losses) == 2 and np.isfinite(losses).all()
  judged = evaluate.evaluate(tmp_path / "w", names=["loss"])
  during = next(x["val/loss"] for x in lines if "val/loss" in x)
  assert judged["val/loss"] == pytest.approx(during, rel=1e-5)
