"""fluid.data.webdataset, .parquet, .tfds: sets in shards that other libraries wrote.

One small set is written in all three formats; what comes back is compared with what was
written. Then patterns of files, and TFDS; the other two have tests of their own.
"""

import contextlib
import json
import pathlib
import pickle
import resource
import subprocess
import sys

import grain
import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import toy
from fluid import config, evaluate, prepare, train
from fluid.data import BadExample, examples, images, pipeline, stored
from fluid.errors import REQUEUE, exit_code
from fluid.evals.loss import LossConfig
from fluid.text.classes import ClassesConfig
from tests.conftest import ROOT
from tests.shards import (
  NAMES,
  SIZE,
  TRAIN,
  VAL,
  build,
  png,
  sample,
  source_of,
  table,
  texts,
  write_tables,
  write_tar,
  write_tars,
)


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
  """kind -> config of the small set in that format."""
  root = tmp_path_factory.mktemp("shards")
  build(root / "tfds", splits={"train": TRAIN, "validation": VAL})
  return {
    "webdataset": write_tars(root),
    "parquet": write_tables(root),
    "tfds": {"name": "small", "data_dir": str(root / "tfds")},
  }


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
    ({"name": "small:2.0.0"}, "small is in .* as 1.0.0, not as 2.0.0: correct"),
    ({"name": "smaller:2.0.0"}, "TFDS does not know"),
    ({"train": "training"}, "has train .12., validation .4.; 'training' is none"),
    ({"train": "train[:0]"}, "'train.:0.' is none"),
    (
      {"image": "label"},
      r"'data.source.image' is 'label', .*label \(ClassLabel\).* fits: image",
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
