"""FID's Inception v3, the resizes before it, and the files of its weights."""

import dataclasses
import re

import jax
import numpy as np
import pytest
import safetensors.numpy

from fluid.convert import containers
from fluid.errors import ConfigError
from fluid.evals.features import base, inception, resize

# Made by a plain torch implementation (conv2d, batch_norm, avg_pool2d) of the seeded
# weights, for the golden's images: numbers and means of the spatial output.
SPATIAL = [6, 1000, 1500, 2016, 2022, 1161, 1035]
TORCH_SPATIAL = (
  (0.574389, 3.690244, 2.527689, 0.291023, 1.731228, 4.692892, 4.539642),
  (0.592760, 3.812571, 2.062793, 0.000000, 1.350621, 3.745399, 4.195457),
)
TORCH_SPATIAL_MEAN = (0.969840, 0.983871)

# A few names of torch's modules and of the scopes that torch-fidelity found them in.
SCOPES = {
  "Conv2d_1a_3x3": "conv",
  "Conv2d_4a_3x3": "conv_4",
  "Mixed_5b.branch1x1": "mixed/conv",
  "Mixed_5b.branch5x5_2": "mixed/tower/conv_1",
  "Mixed_5c.branch3x3dbl_3": "mixed_1/tower_1/conv_2",
  "Mixed_5d.branch_pool": "mixed_2/tower_2/conv",
  "Mixed_6a.branch3x3": "mixed_3/conv",
  "Mixed_6a.branch3x3dbl_3": "mixed_3/tower/conv_2",
  "Mixed_6d.branch1x1": "mixed_6/conv",
  "Mixed_6e.branch7x7dbl_5": "mixed_7/tower_1/conv_4",
  "Mixed_7a.branch3x3_2": "mixed_8/tower/conv_1",
  "Mixed_7a.branch7x7x3_4": "mixed_8/tower_1/conv_3",
  "Mixed_7b.branch3x3_2a": "mixed_9/tower/mixed/conv",
  "Mixed_7c.branch3x3dbl_3b": "mixed_10/tower_1/mixed/conv_1",
  "Mixed_7c.branch_pool": "mixed_10/tower_2/conv",
}


@pytest.fixture(scope="module")
def golden(fixtures):
  return np.load(fixtures / "inception_golden.npz")


@pytest.fixture(scope="module")
def net(golden, tmp_path_factory):
  """With the weights of the golden's recipe, through a file."""
  rs = np.random.RandomState(0)
  weights = {}
  for name, said in zip(golden["names"].tolist(), golden["shapes"].tolist()):
    shape = tuple(int(n) for n in re.findall(r"\d+", said))
    if name.endswith("conv.weight"):
      value = rs.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
      value = rs.random_sample(shape) + 0.5
    elif name.endswith("bn.weight"):
      value = rs.random_sample(shape) * 0.5 + 0.75
    else:
      value = rs.standard_normal(shape) * (0.02 if name == "fc.weight" else 0.1)
    weights[name] = value.astype(np.float32)
  path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
  safetensors.numpy.save_file(weights, path)
  yield inception.Inception(path)
  path.unlink()  # 95 MB.


@pytest.fixture(scope="module")
def run(net):
  """uint8 [2, 64, 64, 3] -> outputs."""
  apply = jax.jit(net.apply)
  return lambda images: jax.tree.map(
    np.asarray, apply(net.params, net.preprocess(images))
  )


@pytest.fixture(scope="module")
def images(golden):
  return golden["images_nchw_uint8"].transpose(0, 2, 3, 1)


@pytest.fixture(scope="module")
def computed(run, images):
  return run(images)


def test_outputs_equal_the_golden(net, golden, computed):
  assert net.name == "Inception-torch_fidelity"
  assert {k: v.shape for k, v in computed.items()} == {
    k: (2, width) for k, width in net.outputs.items()
  }
  assert {v.dtype for v in computed.values()} == {np.dtype(np.float32)}
  for ours, theirs in (("pool", "2048"), ("logits", "logits_unbiased")):
    np.testing.assert_allclose(computed[ours], golden[f"feat_{theirs}"], atol=1e-4)
  for name in ("64", "192", "768"):
    np.testing.assert_allclose(computed[name], golden[f"feat_{name}"], atol=1e-4)
  biased = computed["logits"] + net.bias
  np.testing.assert_allclose(biased, golden["feat_logits"], atol=1e-4)


def test_spatial_equals_torch(computed):
  found = computed["spatial"]
  np.testing.assert_allclose(found[:, SPATIAL], TORCH_SPATIAL, atol=1e-4)
  np.testing.assert_allclose(found.mean(1), TORCH_SPATIAL_MEAN, atol=1e-5)


def test_a_row_depends_on_its_image_alone(run, images, computed):
  again = run(np.stack([images[1], images[0][:, ::-1]]))
  for name, value in again.items():
    np.testing.assert_allclose(value[0], computed[name][1], atol=1e-5)
    assert np.abs(value[1] - computed[name][0]).max() > 1e-2


def linear(t):
  return max(0.0, 1 - abs(t))


def cubic(t):
  """Keys' kernel of a = -1/2."""
  t = abs(t)
  if t < 1:
    return 1.5 * t**3 - 2.5 * t**2 + 1
  return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def rows(name, side, size):
  """What each pixel of the result takes of each pixel of a line [S, side], float64."""
  out = np.zeros((size, side))
  ratio = side / size
  for i in range(size):
    if name == "clean":  # Wider by the ratio where it shrinks; the border is cut off.
      at, wide = (i + 0.5) * ratio - 0.5, max(ratio, 1)
      out[i] = [cubic((j - at) / wide) for j in range(side)]
    else:
      at = (i + 0.5) * ratio - 0.5 if name == "pytorch_fid" else i * ratio
      at = min(max(at, 0), side - 1)
      out[i] = [linear(j - at) for j in range(side)]
  return out / out.sum(1, keepdims=True)


@pytest.mark.parametrize("name", resize.RESIZES)
@pytest.mark.parametrize("shape", [(5, 8), (23, 17), (11, 40)])
def test_resizes_equal_sums_in_float64(name, shape):
  images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), np.uint8)
  size = 11
  found = resize.RESIZES[name].resize(images, size)
  high, wide = rows(name, shape[0], size), rows(name, shape[1], size)
  expected = np.einsum("ih,jw,nhwc->nijc", high, wide, images.astype(float))
  assert found.shape == expected.shape and found.dtype == np.float32
  np.testing.assert_allclose(found, expected.clip(0, 255), atol=1e-3)


def test_resizes_of_ramps_and_what_the_network_is_given():
  ramp = np.broadcast_to(np.arange(0, 240, 10, np.uint8)[:, None, None], (1, 24, 9, 3))
  i = np.arange(299)
  corner, centre = i * 24 / 299, (i + 0.5) * 24 / 299 - 0.5
  inner = (centre > 2) & (centre < 21)  # Where a cubic keeps a straight line.
  for name, place, kept in (
    ("torch_fidelity", corner.clip(0, 23), i >= 0),
    ("adm", corner.clip(0, 23), i >= 0),
    ("pytorch_fid", centre.clip(0, 23), i >= 0),
    ("clean", centre, inner),
  ):
    found = resize.RESIZES[name](ramp, 299)
    expected = 10 * place / 127.5 - 1 if name == "pytorch_fid" else 10 * place / 128 - 1
    expected = np.broadcast_to(expected[kept, None, None], found[0, kept].shape)
    np.testing.assert_allclose(found[0, kept], expected, atol=1e-5)
    same = resize.RESIZES[name].resize(ramp[:, :9], 9)
    np.testing.assert_allclose(same, ramp[:, :9], atol=1e-4)


def thin(part):
  """The same network with few channels, so that its files are small."""
  if isinstance(part, inception.Conv):
    return dataclasses.replace(part, width=part.width // 16)
  return part if isinstance(part, inception.Pool) else type(part)(map(thin, part))


@pytest.fixture
def weights(monkeypatch):
  """Random weights of a thin network: torch's names -> array."""
  small = {name: thin(stage) for name, stage in inception.NETWORK.items()}
  monkeypatch.setattr(inception, "NETWORK", small)
  monkeypatch.setattr(inception, "CLASSES", 5)
  gen = np.random.default_rng(0)
  found, width = inception.convs()
  shapes = {"fc.weight": (5, width), "fc.bias": (5,)}
  for conv, channels, _ in found:
    shapes[f"{conv.name}.conv.weight"] = (conv.width, channels, *conv.kernel)
    for part in ("weight", "bias", "running_mean", "running_var"):
      shapes[f"{conv.name}.bn.{part}"] = (conv.width,)
  # Positive, as variances are.
  return {k: gen.random(v, np.float32) for k, v in shapes.items()}


def varint(n):
  return bytes([n & 0x7F | 0x80]) + varint(n >> 7) if n > 0x7F else bytes([n])


def field(number, value):
  """One field in protobuf's wire format: an int, or bytes."""
  if isinstance(value, int):
    return varint(number << 3) + varint(value)
  return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(shape, kind=1, content=b""):
  """A TensorProto; content: its fields of numbers."""
  dims = b"".join(field(2, field(1, n) if n else b"") for n in shape)
  return field(1, kind) + field(2, dims) + content


def node(name, value, op=b"Const"):
  """A GraphDef of one node; two one after another are one of both."""
  kind = field(1, b"dtype") + field(2, field(6, 1))
  value = field(1, b"value") + field(2, field(8, value))
  content = field(1, name.encode()) + field(2, op) + field(3, b"input")
  return field(1, content + field(5, kind) + field(5, value))


def graph(arrays):
  return b"".join(
    node(name, tensor(array.shape, content=field(4, array.tobytes())))
    for name, array in arrays.items()
  )


def as_tensorflow(weights):
  """torch's names and arrays -> those of the graph."""
  scopes = {conv.name: scope for conv, _, scope in inception.convs()[0]}
  parts = {"weight": "gamma", "bias": "beta"}
  parts |= {"running_mean": "moving_mean", "running_var": "moving_variance"}
  out = {}
  for name, array in weights.items():
    module, _, part = name.rpartition(".")
    if module == "fc":
      out["softmax/" + ("weights" if part == "weight" else "biases")] = array.T
    elif module.endswith(".conv"):
      kernel = array.transpose(2, 3, 1, 0)
      out[f"{scopes[module.removesuffix('.conv')]}/conv2d_params"] = kernel
    else:
      out[f"{scopes[module.removesuffix('.bn')]}/batchnorm/{parts[part]}"] = array
  return out


def test_names_in_the_graph():
  scopes = {conv.name: scope for conv, _, scope in inception.convs()[0]}
  assert len(set(scopes.values())) == len(scopes) == 94
  assert {name: scopes[name] for name in SCOPES} == SCOPES


def test_both_layouts_are_the_same_network(weights, tmp_path):
  """With what each has besides: counters, a classifier, settings of operations."""
  more = {"AuxLogits.fc.bias": np.ones(3), "Conv2d_1a_3x3.bn.num_batches_tracked": [1]}
  more = {name: np.array(value, np.float32) for name, value in more.items()}
  safetensors.numpy.save_file(weights | more, tmp_path / "w.safetensors")
  settings = node("Sub/y", tensor((), content=field(5, np.float32(128).tobytes())))
  settings += node("size", tensor((2,), kind=3, content=field(7, b"\x01\x02")))
  settings += node("jpeg", tensor((1,), kind=7, content=field(8, b"image")))
  constants = graph(as_tensorflow(weights))
  (tmp_path / "w.pb").write_bytes(constants + settings + field(4, field(1, 21)))
  one, other = (inception.read(tmp_path / name) for name in ("w.safetensors", "w.pb"))
  assert set(one) == set(other)
  for name, value in one.items():
    np.testing.assert_array_equal(value, other[name])
  kernel = weights["Mixed_6b.branch7x7_2.conv.weight"]  # [out, in, 1, 7]
  np.testing.assert_array_equal(
    one["Mixed_6b.branch7x7_2/kernel"][0, 3], kernel[:, :, 0, 3].T
  )


def test_constants_are_read_as_they_may_be_written(tmp_path):
  values = np.arange(6, dtype="<f4")
  short = values[:3].tobytes()
  single = b"".join(varint(5 << 3 | 5) + v.tobytes() for v in values)
  path = tmp_path / "g.pb"
  nodes = [
    node("bytes", tensor((2, 3), content=field(4, values.tobytes()))),
    node("list", tensor((3, 2), content=field(5, values.tobytes()))),
    node("singles", tensor((6,), content=single)),
    node("last", tensor((5,), content=field(5, short))),
    node("none", tensor((2, 0))),
    node("x", tensor((6,), content=field(4, values.tobytes())), op=b"Variable"),
  ]
  whole = b"".join(nodes)
  path.write_bytes(whole)
  found = dict(containers.read(path))
  expected = {"bytes": values.reshape(2, 3), "list": values.reshape(3, 2)}
  expected |= {"singles": values, "last": values[[0, 1, 2, 2, 2]]}
  expected["none"] = np.zeros((2, 0))
  assert list(found) == list(expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(found[name], value)
  ends = np.cumsum([len(part) for part in nodes])
  for stop in range(4, len(whole)):
    path.write_bytes(whole[:stop])
    if stop not in ends:
      with pytest.raises(ConfigError, match="cut short or no TensorFlow graph"):
        containers.read(path)
  path.write_bytes(node("w", tensor((2,), content=field(4, values.tobytes()))))
  with pytest.raises(ConfigError, match=r"w has 24 bytes for the shape \(2,\)"):
    containers.read(path)


def test_what_does_not_fit_is_one_line(weights, tmp_path, monkeypatch):
  path = tmp_path / "w.safetensors"

  def refused(message, make=lambda: inception.Inception(path)):
    with pytest.raises(ConfigError, match=message) as e:
      make()
    assert "\n" not in str(e.value)

  refused(f"needs pt_inception.*no {path}.: get it from")
  bad = dict(weights)
  del bad["Conv2d_2a_3x3.conv.weight"]
  bad["Mixed_5b.branch1x1.bn.bias"] = np.zeros(7, np.float32)
  bad["fc.extra"] = np.zeros((2, 3), np.float32)
  safetensors.numpy.save_file(bad, path)
  refused(
    rf"{path} is not the Inception v3 of FID.* 1 missing: Conv2d_2a_3x3/kernel "
    r"\(3, 3, 2, 2\) \(Conv2d_2a_3x3.conv.weight\); 1 of other shapes: "
    r"Mixed_5b.branch1x1/bias is \(4,\), in the file \(7,\); "
    r"1 left over: fc.extra \(2, 3\)"
  )
  path.write_bytes(graph(as_tensorflow(weights))[:-1])
  refused("w.safetensors: is cut short or no TensorFlow graph .*; download it again")
  refused(
    "unknown resize 'nearest' for Inception; choose from torch_fidelity, pytorch_fid",
    lambda: inception.Inception(path, resize="nearest"),
  )
  default = inception.Inception
  monkeypatch.delenv("FLUID_WEIGHTS", raising=False)
  refused("'Inception' needs pt_inception.*github.com/mse.*FLUID_WEIGHTS", default)
  monkeypatch.setenv("FLUID_WEIGHTS", str(tmp_path))
  refused(f"'Inception' needs .*no {tmp_path}/pt_inception.*FLUID_WEIGHTS", default)
  file = tmp_path / "classify_image_graph_def.pb"
  file.write_bytes(graph(as_tensorflow(weights)))
  found = base.find("Inception", tuple(inception.FILES), "")
  assert found == file
  assert default(resize="adm").name == "Inception-adm"
