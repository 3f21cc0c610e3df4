"""Checkpoints: any mesh, the newest that can be read, one clear line otherwise."""

import asyncio
import dataclasses
import errno
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fluid import config, files
from fluid.durable import checkpoint, parameters, workdir
from fluid.errors import REQUEUE, exit_code
from fluid.parallel import parts, sharding
from fluid.training import state
from tests import tiny


@dataclasses.dataclass(frozen=True)
class OneKernel:
  """The smallest net: compiles in no time."""

  width: int = 8

  def init(self, key):
    axes = sharding.spec("embed", "mlp")
    w = jax.random.normal(key, (8, self.width), out_sharding=axes)
    return {"trunk": {"mlp": {"up": {"w": w}}}}

  def decays(self, params):
    return jax.tree.map(lambda _: True, params)

  def matrix(self, name):
    del name  # None, as Muon is off.


CFG = config.Run()
NET = OneKernel()


def _mesh(*shape):
  return sharding.make_mesh(config.Mesh(*shape), jax.devices()[: np.prod(shape)])


def _save(workdir, *steps, keep=3):
  saved = checkpoint.Checkpoints(workdir, keep=keep)
  start = state.init_state(NET, CFG, _mesh(2, 2, 2))
  for step in steps:
    at = dataclasses.replace(start, step=start.step + step)
    saved.save(at, {"next_index": step}, step)
  saved.close()
  return start


def _restore(workdir, mesh, net=NET):
  saved = checkpoint.Checkpoints(workdir)
  try:
    return saved.restore(state.abstract_state(net, CFG, mesh))
  finally:
    saved.close()


def _damage(folder):
  for path in folder.rglob("*"):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:10])


def test_an_empty_workdir_has_nothing_to_restore(tmp_path):
  assert _restore(tmp_path, _mesh(1, 1, 1)) is None


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1), (4, 1, 1), (1, 1, 1)])
def test_restores_bitwise_onto_another_mesh(tmp_path, shape):
  start = _save(tmp_path, 3, 5)
  mesh = _mesh(*shape)
  found, data = _restore(tmp_path, mesh)
  assert data == {"next_index": 5} and int(found.step) == 5
  assert jax.tree.structure(found) == jax.tree.structure(start)
  for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(found.params)):
    np.testing.assert_array_equal(a, b)
  kernel = found.opt_state[1][0].mu["trunk"]["mlp"]["up"]["w"]
  assert kernel.sharding == jax.NamedSharding(mesh, jax.P("fsdp", "model"))


def test_keeps_the_newest(tmp_path):
  _save(tmp_path, 1, 2, 3, keep=2)
  with pytest.raises(checkpoint.CheckpointError, match="steps there: 2, 3"):
    checkpoint.restore_params(tmp_path, step=1)


def test_what_changes_after_a_save_is_not_in_it(tmp_path, monkeypatch):
  """The JSON is written in the background, in a bucket when its folder is there."""
  write = ocp.JsonCheckpointHandler._save_fn

  async def late(*args):
    await asyncio.sleep(0.2)
    return await write(*args)

  monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", late)
  saved = checkpoint.Checkpoints(tmp_path)
  data = {"counts": {"data/skipped_text": 1}}
  saved.save(state.init_state(NET, CFG, _mesh(1)), data, 1)
  data["counts"]["data/skipped_text"] += 1
  saved.close()
  assert _restore(tmp_path, _mesh(1))[1] == {"counts": {"data/skipped_text": 1}}


def test_a_damaged_step_falls_back_to_an_older_one(tmp_path, capsys):
  _save(tmp_path, 3, 5)
  _damage(tmp_path / "checkpoints/5")
  found, data = _restore(tmp_path, _mesh(1, 1, 1))
  assert int(found.step) == 3 and data == {"next_index": 3}
  assert "warning: checkpoint of step 5 cannot be read" in capsys.readouterr().err
  assert (tmp_path / "checkpoints-damaged/5").is_dir()


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.ESTALE, "Stale file handle", "x"),
    ValueError("Error reading local file 'x' [OS error 5: EIO Input/output error]"),
    ValueError("UNAVAILABLE: CURL error Could not connect to server"),
  ],
)
def test_what_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch, error):
  """The newest step stays the newest: the same command goes on from it."""
  _save(tmp_path, 3, 5)

  def away(folder, abstract, read=checkpoint._restore):
    if folder.name == "5":
      raise error
    return read(folder, abstract)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, "_restore", away)
    with pytest.raises(checkpoint.UnreadError, match="step 5 .* cannot be read now"):
      _restore(tmp_path, _mesh(1))
  assert exit_code(checkpoint.UnreadError("")) == REQUEUE
  assert not (tmp_path / "checkpoints-damaged").exists()
  assert int(_restore(tmp_path, _mesh(1))[0].step) == 5


def _flip(file, place):
  content = bytearray(file.read_bytes())
  content[place] ^= 1
  file.write_bytes(content)


@pytest.mark.parametrize("item", ["params", "ema", "optimizer", "data"])
def test_any_flipped_bit_falls_back_or_does_no_harm(tmp_path, item, capsys):
  """Orbax alone gives back a kernel with a flipped bit without a word."""
  start = _save(tmp_path / "w", 3, 5)
  whole, caught = tmp_path / "w", 0
  files = [f for f in (whole / "checkpoints/5" / item).rglob("*") if f.is_file()]
  files = sorted((f.stat().st_size, f.relative_to(whole)) for f in files)
  places = [(f, size // 2) for size, f in files if size]
  places += [(f, size * k // 9) for size, f in files[-1:] for k in (2, 3, 6, 7)]
  for number, (file, place) in enumerate(places):
    workdir = tmp_path / str(number)
    shutil.copytree(whole, workdir)
    _flip(workdir / file, place)
    found, data = _restore(workdir, _mesh(1, 1, 1))
    assert data == {"next_index": int(found.step)}
    caught += int(found.step) == 3
    for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(found.params)):
      np.testing.assert_array_equal(a, b)
  assert caught and "an older one is used" in capsys.readouterr().err


def test_checkpoints_that_are_gone_are_no_fresh_start(tmp_path, capsys):
  _save(tmp_path, 3, 5)
  shutil.rmtree(tmp_path / "checkpoints/5")
  found, _ = _restore(tmp_path, _mesh(1, 1, 1))
  assert int(found.step) == 3
  assert "step 5 was saved, but is gone; step 3 is used" in capsys.readouterr().err
  shutil.rmtree(tmp_path / "checkpoints")
  with pytest.raises(checkpoint.CheckpointError, match="step 5 was saved .* is gone"):
    _restore(tmp_path, _mesh(1, 1, 1))


def test_a_save_that_fails_is_named_and_leaves_the_last_one(tmp_path, monkeypatch):
  saved = checkpoint.Checkpoints(tmp_path)
  start = state.init_state(NET, CFG, _mesh(1, 1, 1))
  saved.save(start, {}, 1)
  saved.wait()

  def full(*_, **__):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(saved._manager, "save", full)
  said = "step 2 cannot be written.*No space left.*step 1 is the last good one"
  with pytest.raises(checkpoint.UnsavedError, match=said):
    saved.save(start, {}, 2)
  saved.close()


def test_parameters_of_another_run_by_name(tmp_path):
  saved = _save(tmp_path, 3).params["trunk"]["mlp"]["up"]["w"]
  mesh = _mesh(2, 2, 2)
  other = jax.tree.map(lambda x: x + 1, state.init_state(NET, CFG, mesh).params)
  mine = {"trunk": other["trunk"], "head": {"bias": jax.numpy.zeros(3)}}
  init = config.Init(workdir=str(tmp_path), match="trunk/.*")
  got = parameters.graft(mine, init)
  np.testing.assert_array_equal(got["trunk"]["mlp"]["up"]["w"], saved)
  assert got["trunk"]["mlp"]["up"]["w"].sharding == jax.NamedSharding(
    mesh, jax.P("fsdp", "model")
  )
  assert got["head"] is not None and (np.asarray(got["head"]["bias"]) == 0).all()
  for match, said in ((".*", "'head/bias' is missing"), ("x", "fits no parameter")):
    with pytest.raises(checkpoint.CheckpointError, match=said):
      parameters.graft(mine, dataclasses.replace(init, match=match))


def test_nothing_readable_is_refused_and_left_alone(tmp_path):
  _save(tmp_path, 3)
  _damage(tmp_path / "checkpoints/3")
  with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in .* step 3"):
    _restore(tmp_path, _mesh(1, 1, 1))
  with pytest.raises(checkpoint.CheckpointError, match="step 3 .* cannot be read"):
    checkpoint.restore_params(tmp_path)
  assert (tmp_path / "checkpoints/3").is_dir()


def test_another_model_is_refused_by_name(tmp_path):
  _save(tmp_path, 3)
  with pytest.raises(checkpoint.CheckpointError, match=r"'trunk/mlp/up/w' is \(8, 8\)"):
    _restore(tmp_path, _mesh(1, 1, 1), OneKernel(16))


def test_parameters_alone(tmp_path):
  start = _save(tmp_path, 3, 5)
  kernel = start.params["trunk"]["mlp"]["up"]["w"]
  for which in ("ema", "raw"):
    params, step = checkpoint.restore_params(tmp_path, which, 3)
    assert step == 3
    np.testing.assert_array_equal(params["trunk"]["mlp"]["up"]["w"], kernel)
  like = state.abstract_state(NET, CFG, _mesh(2, 2, 2)).params
  params, step = checkpoint.restore_params(tmp_path, like=like)
  assert params["trunk"]["mlp"]["up"]["w"].sharding.spec == jax.P("fsdp", "model")


def test_missing_checkpoints_are_named(tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match="no checkpoint in .*nowhere"):
    checkpoint.restore_params(tmp_path / "nowhere")
  with pytest.raises(checkpoint.CheckpointError, match="choose from ema, raw"):
    checkpoint.restore_params(tmp_path, "best")


def test_a_workdir_belongs_to_one_config(tmp_path):
  cfg = tiny.run()
  workdir.check(tmp_path, cfg)
  files.write_json(tmp_path / "config.json", config.to_dict(cfg))
  free = dataclasses.replace(cfg, steps=99, mesh=config.Mesh(1, -1), accum=2)
  workdir.check(tmp_path, free)
  remat = config.replaced(cfg, {"model.trunk.remat": "dots", "optim.max_skipped": 3})
  workdir.check(tmp_path, remat)
  other = dataclasses.replace(cfg, optim=dataclasses.replace(cfg.optim, lr=7.0))
  with pytest.raises(workdir.WorkdirError, match=r"optim.lr \(0.01 there, 7.0"):
    workdir.check(tmp_path, other)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(workdir.WorkdirError, match="config.json is damaged"):
    workdir.check(tmp_path, cfg)


BITS = np.uint32([1 << 31, 0x7FC00123, 0xFFC00001, 1, 0xFF800000, 0x3F800001])


@pytest.mark.parametrize("shape", [(4, 2, 1, 1), (2, 2, 1, 2), (8, 1, 1, 1)])
def test_copies_share_reading_and_writing_and_no_bit_changes(
  tmp_path, monkeypatch, shape
):
  """Also of -0.0 and of NaN, which a sum over copies would lose."""
  mesh = _mesh(*shape)
  start = state.init_state(NET, CFG, mesh)
  bits = np.resize(BITS, (8, 8)).view(np.float32)
  odd = jax.tree.map(lambda x: jax.device_put(bits, x.sharding), start.params)
  saved = checkpoint.Checkpoints(tmp_path)
  saved.save(dataclasses.replace(start, params=odd), {}, 3)
  saved.close()
  written = checkpoint._metadata(tmp_path / "checkpoints/3", "params")
  written = written["trunk"]["mlp"]["up"]["w"].storage.write_shape
  assert np.prod(written) * 8 == bits.size  # Each device writes a part of its own.

  asked = []
  restore = checkpoint.ocp.PyTreeCheckpointHandler.restore

  def spy(self, folder, args):
    asked.extend(x for x in jax.tree.leaves(args.item) if x.shape)
    return restore(self, folder, args=args)

  monkeypatch.setattr(parts, "SMALL", 0)
  monkeypatch.setattr(checkpoint.ocp.PyTreeCheckpointHandler, "restore", spy)
  found, _ = _restore(tmp_path, mesh)
  # In each slice every element is read by one device.
  assert len(asked) == 4
  for x in asked:
    where = x.sharding.devices_indices_map(x.shape)
    for devices in np.moveaxis(mesh.devices, mesh.axis_names.index("slice"), 0):
      read = np.zeros(x.shape, int)
      for device in devices.flat:
        read[where[device]] += 1
      assert (read == 1).all()
  kernel = found.params["trunk"]["mlp"]["up"]["w"]
  assert kernel.sharding == odd["trunk"]["mlp"]["up"]["w"].sharding
  for shard in kernel.addressable_shards:
    np.testing.assert_array_equal(
      np.asarray(shard.data).view(np.uint32), bits[shard.index].view(np.uint32)
    )


def test_what_does_not_divide_is_split_as_far_as_it_does(monkeypatch):
  mesh = _mesh(2, 2, 2)
  make = lambda shape, *spec: jax.ShapeDtypeStruct(
    shape, np.float32, sharding=jax.NamedSharding(mesh, jax.P(*spec))
  )
  small = make((6, 6))
  assert parts.parted(small) is small.sharding
  monkeypatch.setattr(parts, "SMALL", 0)
  for x, want in (
    (make((3, 16)), (None, ("data", "fsdp", "model"))),
    (make((3, 4)), (None, ("data", "fsdp"))),
    (make((3, 5)), ()),
    (make((4, 6), "fsdp", "model"), (("fsdp", "data"), "model")),
    (make((2, 6), "fsdp"), ("fsdp", "data")),
  ):
    assert parts.parted(x).spec == jax.P(*want), (x, want)
