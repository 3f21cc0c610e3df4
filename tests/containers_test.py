"""Files of weights: every container, odd views, and what is refused."""

import argparse
import collections
import functools
import io
import json
import os
import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

from fluid.convert import containers, pickles
from fluid.errors import ConfigError


class Storage:
  """A storage to be written: torch's class by name, and its numbers."""

  def __init__(self, kind: str, key: str, data: np.ndarray, size: int | None = None):
    self.kind, self.key, self.data = kind, key, data
    self.size = data.size if size is None else size


class View:
  def __init__(self, storage, offset, shape, strides):
    self.args = storage, offset, tuple(shape), tuple(strides), False, None


class Parameter:
  def __init__(self, view):
    self.view = view


class Bare:
  """A tensor made without its arguments."""


class Global:
  """Pickled as a name: module.name."""

  def __init__(self, where: str):
    self.where = where

  def __call__(self):  # What pickle wants of the thing it is told to call.
    raise AssertionError

  def __reduce__(self):
    return self.where


class Pickler(pickle._Pickler):  # type: ignore[name-defined]
  """Writes torch's pickles without torch: names of globals go in as they are."""

  dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

  def save_name(self, obj):
    module, _, name = obj.where.rpartition(".")
    self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())

  def save_view(self, obj):
    self.save_name(Global("torch._utils._rebuild_tensor_v2"))
    self.save(obj.args)
    self.write(pickle.REDUCE)

  def save_parameter(self, obj):
    self.save_name(Global("torch._utils._rebuild_parameter"))
    self.save((obj.view, True, None))
    self.write(pickle.REDUCE)

  def save_bare(self, obj):
    self.save_name(Global("torch._utils._rebuild_tensor_v2"))
    self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)

  dispatch[Bare] = save_bare
  dispatch[Global], dispatch[View] = save_name, save_view
  dispatch[Parameter] = save_parameter

  def persistent_id(self, obj):
    if isinstance(obj, Storage):
      return "storage", Global(f"torch.{obj.kind}"), obj.key, "cpu", obj.size
    return None


def write_zip(path, tree, storages=(), compression=zipfile.ZIP_STORED, **records):
  """A torch zip of a tree that holds views of the storages."""
  program = io.BytesIO()
  Pickler(program, 2).dump(tree)
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("archive/data.pkl", program.getvalue())
    for name, content in records.items():
      archive.writestr(f"archive/{name}", content)
    for storage in storages:
      archive.writestr(f"archive/data/{storage.key}", storage.data.tobytes())
  return path


def write_legacy(path, tree, storages=()):
  """The same in torch's format before 1.6."""
  content = io.BytesIO()
  sizes = {"short": 2, "int": 4, "long": 4}
  about = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
  keys = [storage.key for storage in storages]
  for part in (0x1950A86A20F9469CFC6C, 1001, about, tree, keys):
    Pickler(content, 2).dump(part)
  for storage in storages:
    content.write(storage.data.size.to_bytes(8, "little") + storage.data.tobytes())
  path.write_bytes(content.getvalue())
  return path


WRITERS = [
  write_zip,
  functools.partial(write_zip, compression=zipfile.ZIP_DEFLATED),
  write_legacy,
]


def floats(count=24, key="0", size=None):
  return Storage("FloatStorage", key, np.arange(count, dtype=np.float32), size)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("seed", range(20))
def test_any_view_is_read_as_numpy_reads_it(seed, write, tmp_path):
  """Random shapes, offsets and strides (also 0) of one storage that all share."""
  gen = np.random.default_rng(seed)
  storage = floats(500)
  tree, expected = {}, {}
  for i in range(8):
    shape = gen.integers(0 if i == 7 else 1, 5, gen.integers(0, 5))
    strides = gen.integers(0, 12, len(shape))
    reach = int(((shape - 1) * strides).sum()) + 1
    offset = int(gen.integers(0, 500 - max(reach, 0)))
    view = View(storage, offset, map(int, shape), map(int, strides))
    tree[f"view{i}"] = Parameter(view) if i % 2 else view
    expected[f"view{i}"] = np.array(
      [storage.data[offset + int((at * strides).sum())] for at in np.ndindex(*shape)],
      np.float32,
    ).reshape(shape)
  other = floats(7, "1")
  tree["other"], expected["other"] = View(other, 0, (7,), (1,)), other.data
  path = write(tmp_path / "w.pth", tree, [other, storage])
  found = containers.read(path)
  assert list(found) == list(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value)
    assert found[name].shape == value.shape and found[name].flags.owndata


@pytest.mark.parametrize("kind, dtype", pickles.STORAGES.items())
def test_every_type_of_numbers_is_kept(kind, dtype, tmp_path):
  data = np.array([1, 0, 1, 1]).astype(dtype)
  storage = Storage(kind, "7", data)
  path = write_zip(tmp_path / "w", {"w": View(storage, 0, (2, 2), (1, 2))}, [storage])
  found = containers.read(path)["w"]
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, data.reshape(2, 2).T)


def test_a_training_checkpoint_gives_its_tensors_and_its_sections(tmp_path):
  """Beside them: a Namespace, numpy scalars, an optimizer, a callback as a key."""
  storage = floats()
  one, two = View(storage, 0, (2, 3), (3, 1)), View(storage, 6, (2,), (1,))
  state = collections.OrderedDict([("a.weight", one), ("a.bias", Parameter(two))])
  state._metadata = {"items": 3}  # A state dict has such; it must not hide methods.

  class Odd:
    def __reduce__(self):
      return argparse.Namespace, (), {"lr": 1.0, "path": pathlib.PurePosixPath("x")}

  tree = {
    "model": state,
    "model_ema": {"a": {"weight": two}},
    "optimizer": {"state": {0: {"exp_avg": two, "step": 3}}, "groups": [{"lr": 1e-3}]},
    "epoch": 3,
    "args": Odd(),
    "best": np.float64(3.0),
    Global("pytorch_lightning.callbacks.ModelCheckpoint"): {"x": 1},
    "set": {1, 2},
  }
  path = write_zip(tmp_path / "last.pth", tree, [storage])
  found = containers.read(path)
  assert set(found) == {
    "model.a.weight",
    "model.a.bias",
    "model_ema.a.weight",
    "optimizer.state.0.exp_avg",
  }
  model = containers.read(path, section=("module", "model"))
  np.testing.assert_array_equal(model["a.weight"], np.arange(6.0).reshape(2, 3))
  np.testing.assert_array_equal(model["a.bias"], [6, 7])
  assert list(containers.read(path, "model_ema.a")) == ["weight"]
  assert len(containers.read(path, ("state_dict", ""))) == 4
  with pytest.raises(containers.FileError, match="no section module; it has model, mo"):
    containers.read(path, "module")


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize(
  "call",
  [(os.system, "touch X"), (exec, "1"), (print, "x"), (getattr, int), (open, "X")],
)
def test_a_file_that_would_run_code_is_refused_and_does_not(call, write, tmp_path):
  class Evil:
    def __reduce__(self):
      return call[0], call[1:]

  storage = floats()
  tree = {"w": View(storage, 0, (2,), (1,)), "x": Evil()}
  path = write(tmp_path / "w", tree, [storage])
  before = sorted(os.listdir())
  with pytest.raises(containers.FileError, match="would run code .*do not use it"):
    containers.read(path)
  assert sorted(os.listdir()) == before


def test_what_is_unknown_is_never_called(tmp_path):
  """Not even something harmless that is there to be imported."""
  called = []
  globals()["_spy"] = lambda *args: called.append(args)

  class Odd:
    def __reduce__(self):
      return Global(f"{__name__}._spy"), ("x",), {"state": 1}, iter([1]), iter([(1, 2)])

  storage = floats()
  tree = {"x": Odd(), "w": View(storage, 0, (2,), (1,))}
  assert list(containers.read(write_zip(tmp_path / "w", tree, [storage]))) == ["w"]
  assert not called


def test_modules_of_torchscript_are_their_tensors(tmp_path):
  """An archive of torch.jit.save, as OpenAI published CLIP."""
  storage = floats()

  class Module:
    def __init__(self, kind, **attributes):
      self.kind, self.attributes = kind, attributes

    def __reduce__(self):
      return Global(f"__torch__.{self.kind}"), (), {"training": True, **self.attributes}

  inner = Module(
    "torch.nn.Linear.___torch_mangle_3", weight=View(storage, 4, (2,), (3,))
  )
  tree = Module("CLIP", visual=inner, scale=View(storage, 1, (), ()))
  found = containers.read(write_zip(tmp_path / "w.pt", tree, [storage]))
  assert {k: v.tolist() for k, v in found.items()} == {
    "visual.weight": [4.0, 7.0],
    "scale": 1.0,
  }


@pytest.mark.parametrize(
  "view, message",
  [
    (View(floats(24), 20, (5,), (1,)), "too small for w .24 numbers, needs 25"),
    (View(floats(24), 0, (3, 2), (12, 1)), "too small for w .24 numbers, needs 26"),
    (View(floats(24, size=30), 0, (2,), (1,)), "too small for w .24 numbers, needs 30"),
    (View(floats(24, key="1"), 0, (2,), (1,)), "lacks the storage 1 of w"),
    (View(floats(24), 20, (5,), (-1,)), "damaged data.pkl .a tensor has offset"),
    (View(floats(24), -1, (5,), (1,)), "damaged data.pkl .a tensor has offset"),
    (View(floats(24), 0, (2, 2), (1,)), "damaged data.pkl .a tensor is not a view"),
    (Bare(), "damaged data.pkl"),
    (View("x", 0, (2,), (1,)), "damaged data.pkl .a tensor is not a view"),
  ],
)
def test_a_view_outside_its_storage_is_refused(view, message, tmp_path):
  path = write_zip(tmp_path / "w", {"w": view}, [floats(24)])
  with pytest.raises(containers.FileError, match=message):
    containers.read(path)


def test_a_legacy_file_that_is_cut_short_is_refused_wherever_it_is_cut(tmp_path):
  views = {
    "a": View(floats(), 0, (2, 3), (3, 1)),
    "b": View(floats(4, "1"), 0, (4,), (1,)),
  }
  path = write_legacy(tmp_path / "w", views, [floats(), floats(4, "1")])
  whole = path.read_bytes()
  assert list(containers.read(path)) == ["a", "b"]
  for stop in range(14, len(whole)):  # After the magic number.
    path.write_bytes(whole[:stop])
    with pytest.raises(containers.FileError, match="cut short"):
      containers.read(path)
  small = {"a": View(floats(), 20, (5,), (1,))}
  with pytest.raises(containers.FileError, match="small for a .24 numbers, needs 25"):
    containers.read(write_legacy(path, small, [floats()]))


def test_wrong_files_are_one_clear_line(tmp_path):
  def refused(content, message, name="w"):
    path = tmp_path / name
    if content is not None:
      path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as e:
      containers.read(path)
    assert str(path) in str(e.value) and "\n" not in str(e.value)

  refused(None, "cannot be read .No such file", "none")
  refused(b"", "is empty; use safetensors")
  refused(b"GIF89a s'mething", "no known kind .begins with b'GIF89a s'")
  refused(b"version https://git-lfs", "pointer of Git LFS")
  old = io.BytesIO()
  pickle.dump(0x1950A86A20F9469CFC6C, old, 2)
  refused(old.getvalue() + b"...", "cut short or damaged .torch before 1.6")
  refused(pickle.dumps({"a": 1}), "bare pickle")
  refused(b"{}", "no index of shards", "x.index.json")
  storage = floats()
  tree = {"w": View(storage, 0, (2,), (1,))}
  whole = write_zip(tmp_path / "zip", tree, [storage]).read_bytes()
  refused(whole[:-30], "cut short or damaged")
  refused(whole[: len(whole) // 2], "cut short or damaged")
  bad = write_zip(tmp_path / "zip", tree, [storage], byteorder="big").read_bytes()
  refused(bad, "big-endian")
  refused(write_zip(tmp_path / "zip", {"a": 1}).read_bytes(), "has no tensors")
  loop: dict = {}
  loop["x"] = loop
  refused(write_zip(tmp_path / "zip", loop).read_bytes(), "holds itself")
  twice = {"a": {"b": tree["w"]}, "a.b": tree["w"]}
  both = write_zip(tmp_path / "zip", twice, [storage]).read_bytes()
  refused(both, "two tensors of name a.b")
  np.savez(tmp_path / "x.npz", a=np.ones(2))
  refused((tmp_path / "x.npz").read_bytes(), "a zip, but not torch's")
  whole = safetensors.numpy.save({"a": np.ones((4, 4), np.float32)})
  refused(whole[:-1], "cut short .before the end of a")
  refused(whole[:20], "cut short .safetensors, its header")
  refused(whole.replace(b"[4,4]", b"[4,5]"), "gives a the wrong number of bytes")
  refused(whole.replace(b"F32", b"F31"), "damaged header")
  whole = serialization.msgpack_serialize({"params": {"a": np.ones(9)}})
  refused(whole[:-5], "cut short or no flax msgpack")


def test_safetensors_and_msgpack_keep_bfloat16(tmp_path):
  """Also single, in a folder, and in shards."""
  gen = np.random.default_rng(0)
  weights = {
    "a.x": gen.normal(size=(3, 4)).astype(ml_dtypes.bfloat16),
    "a.y": gen.normal(size=(2,)).astype(np.float16),
    "b": np.array(3, np.int64),
    "c": np.zeros((0, 3), np.float32),
  }

  def same(found):
    assert set(found) == set(weights)
    for name, value in weights.items():
      assert found[name].dtype == value.dtype and found[name].flags.writeable
      np.testing.assert_array_equal(found[name], value)

  one, many = tmp_path / "one", tmp_path / "many"
  one.mkdir()
  many.mkdir()
  safetensors.numpy.save_file(weights, one / "model.safetensors")
  same(containers.read(one / "model.safetensors"))
  same(containers.read(one))
  places = {}
  for i, name in enumerate(weights):
    places[name] = f"model-{i % 2}.safetensors"
  for file in set(places.values()):
    part = {k: v for k, v in weights.items() if places[k] == file}
    safetensors.numpy.save_file(part, many / file)
  index = many / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": places}))
  same(containers.read(many))
  same(containers.read(index))
  index.write_text(json.dumps({"weight_map": places | {"z": "../one/x"}}))
  with pytest.raises(containers.FileError, match="another folder"):
    containers.read(many)
  index.write_text(json.dumps({"weight_map": places | {"z": "model-1.safetensors"}}))
  with pytest.raises(containers.FileError, match="model-1.safetensors: lacks z"):
    containers.read(many)
  (many / "model-1.safetensors").unlink()
  with pytest.raises(containers.FileError, match="model-1.safetensors, which is miss"):
    containers.read(many)
  (one / "other.safetensors").write_bytes(b"")
  with pytest.raises(containers.FileError, match="several files .*name one"):
    containers.read(one)
  with pytest.raises(containers.FileError, match="no file of weights"):
    containers.read(tmp_path)
  tree = {"params": {"a": {"x": weights["a.x"]}}, "step": 3}
  (tmp_path / "m").write_bytes(serialization.msgpack_serialize(tree))
  found = containers.read(tmp_path / "m", "params")
  assert list(found) == ["a.x"] and found["a.x"].dtype == ml_dtypes.bfloat16


def test_two_spellings_of_one_network_hold_the_same_numbers(fixtures):
  folder = fixtures / "sd_vae"
  ldm = containers.read(folder / "ldm.ckpt", "state_dict.first_stage_model")
  diffusers = containers.read(folder / "diffusers")
  total = lambda w: sum(float(np.abs(v).sum(dtype=np.float64)) for v in w.values())
  assert len(ldm) == len(diffusers)
  assert total(ldm) == pytest.approx(total(diffusers), rel=1e-9)


@pytest.mark.parametrize(
  "entry",
  [
    {"shape": [2], "data_offsets": [0, 8, 9]},
    {"shape": [-2, -1], "data_offsets": [0, 8]},
    {"shape": ["2"], "data_offsets": [0, 8]},
    {"shape": [2], "data_offsets": ["0", "8"]},
  ],
)
def test_a_header_of_safetensors_that_makes_no_sense_is_one_line(entry, tmp_path):
  header = json.dumps({"w": {"dtype": "F32"} | entry}).encode()
  path = tmp_path / "w.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
  with pytest.raises(containers.FileError, match="has a damaged header"):
    containers.read(path)
