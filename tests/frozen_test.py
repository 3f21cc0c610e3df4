"""fluid.text.frozen, t5, minilm: features as the authors', on any mesh, of any file."""

import dataclasses
import json
import shutil
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece

from fluid import config, text
from fluid.parallel import sharding
from fluid.text import frozen as frozen_lib
from fluid.text import minilm, weights
from fluid.text import t5 as t5_lib
from tests import frozen

MESHES = {"fsdp": config.Mesh(fsdp=8), "mixed": config.Mesh(data=2, fsdp=2, model=2)}
PROMPTS = ["a red circle", "the blue square above a star!", "star"]


@pytest.fixture(scope="module")
def t5(fixtures, tmp_path_factory):
  """The config of the fixture's encoder, and its reference numbers."""
  cfg = frozen.t5(fixtures, tmp_path_factory.mktemp("t5"))
  return cfg, np.load(fixtures / "t5/cases.npz")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
  return frozen.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(params=["t5", "minilm"])
def encoder(request):
  """A tiny encoder of each kind, with ids and mask of some prompts."""
  if request.param == "minilm":
    cfg = request.getfixturevalue("bert")
    found = text.load(cfg)
    return found, *found.encode(PROMPTS, cfg.length)
  cfg, cases = request.getfixturevalue("t5")
  return text.load(cfg), cases["input_ids"], cases["attention_mask"] > 0


def exact(encoder, ids, mask):
  """Features in float32, before they are stored as bfloat16."""
  params = encoder._read(None)
  return np.asarray(
    encoder.network(params, jnp.asarray(ids), jnp.asarray(mask), jnp.float32)
  )


def close(a, b, mask, tolerance):
  a, b = (np.asarray(x, np.float32)[mask] for x in (a, b))
  assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


def float32(x):
  return np.asarray(x, np.float32)


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_t5_gives_the_reference_s_numbers(fixtures, t5, tmp_path, kind):
  cfg, cases = frozen.t5(fixtures, tmp_path, kind), t5[1]
  encoder = text.load(cfg)
  prompts = json.loads((fixtures / "t5/config.json").read_text())["prompts"]
  ids, mask = encoder.encode(prompts, 16, on_unknown="keep", on_long="cut")
  np.testing.assert_array_equal(ids, cases["input_ids"])
  np.testing.assert_array_equal(mask, cases["attention_mask"])
  close(exact(encoder, ids, mask), cases["hidden"], mask, 1e-5)
  bias = encoder.network.position_bias(encoder._read(None)["bias"], 16)
  np.testing.assert_allclose(bias, cases["position_bias"], rtol=1e-6)
  features = encoder.features(ids, mask)
  assert features.dtype == ml_dtypes.bfloat16 and features.shape == (5, 16, 48)
  close(features, cases["hidden"], mask, 3e-3)
  assert not float32(features)[~mask].any()
  # However the weights are packed, they are the same weights.
  assert encoder.digest() == text.load(t5[0]).digest()


@pytest.mark.parametrize("stored", ["bfloat16", "torch", "whole"])
def test_t5_comes_in_other_containers(t5, tmp_path, stored):
  cfg, cases = t5
  folder = tmp_path / "t5"
  shutil.copytree(cfg.path, folder)
  file = folder / "model.safetensors"
  tensors = safetensors.numpy.load_file(file)
  if stored == "bfloat16":
    tensors = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
  if stored == "whole":  # A full checkpoint: a decoder, a head, the table twice.
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    tensors["lm_head.weight"] = tensors["decoder.x.weight"] = np.zeros(3, np.float32)
  if stored == "torch":
    file.unlink()
    torch_zip(folder / "pytorch_model.bin", tensors)
  else:
    safetensors.numpy.save_file(tensors, file)
  encoder = text.load(dataclasses.replace(cfg, path=str(folder)))
  mask = cases["attention_mask"] > 0
  features = encoder.features(cases["input_ids"], mask)
  close(features, cases["hidden"], mask, 2e-2 if stored == "bfloat16" else 3e-3)
  same = encoder.digest() == text.load(cfg).digest()
  assert same == (stored != "bfloat16")


def torch_zip(path, tensors):
  """What torch.save writes of a state dict, opcode by opcode."""

  def word(text):
    return b"X" + len(text).to_bytes(4, "little") + text.encode()

  def numbers(*values):
    return b"".join(b"J" + int(v).to_bytes(4, "little") for v in values)

  out = bytearray(b"\x80\x02ccollections\nOrderedDict\n)R(")
  with zipfile.ZipFile(path, "w") as archive:
    for i, (name, a) in enumerate(tensors.items()):
      strides = [s // a.itemsize for s in np.zeros(a.shape, a.dtype).strides]
      out += word(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
      out += word("storage") + b"ctorch\nFloatStorage\n" + word(str(i)) + word("cpu")
      out += numbers(a.size) + b"tQ" + numbers(0)
      out += b"(" + numbers(*a.shape) + b"t(" + numbers(*strides) + b"t"
      out += b"\x89ccollections\nOrderedDict\n)RtR"
      archive.writestr(f"archive/data/{i}", np.ascontiguousarray(a).tobytes())
    archive.writestr("archive/data.pkl", bytes(out + b"u."))


def test_bfloat16_stays_near(t5):
  cfg, cases = t5
  encoder = text.load(dataclasses.replace(cfg, dtype="bfloat16"))
  mask = cases["attention_mask"] > 0
  close(encoder.features(cases["input_ids"], mask), cases["hidden"], mask, 3e-2)
  params = encoder._read(None)
  assert params["q"].dtype == jnp.bfloat16 and params["norm_self"].dtype == jnp.float32


def test_features_do_not_depend_on_batch_or_padding(encoder):
  encoder, ids, mask = encoder
  whole = encoder.features(ids, mask)
  for row in range(len(ids)):
    n = int(mask[row].sum())
    for end in {n, ids.shape[1]}:
      alone = encoder.features(ids[row : row + 1, :end], mask[row : row + 1, :end])
      close(alone[0, :n], whole[row, :n], np.ones(n, bool), 1e-3)
  other = np.where(mask, ids, 5)  # What stands behind a prompt is never read.
  np.testing.assert_array_equal(float32(encoder.features(other, mask)), float32(whole))


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_changes_no_number(encoder, mesh):
  encoder, ids, mask = encoder
  whole = encoder.features(ids, mask)
  mesh = sharding.make_mesh(MESHES[mesh])
  with jax.set_mesh(mesh):
    sharded = encoder.features(ids, mask)
    assert not any(
      a.sharding.is_fully_replicated
      for name, a in encoder._params.items()
      if name in ("q", "up", "down", "out")
    )
  close(sharded, whole, mask, 1e-3)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("network", [*t5_lib.SIZES.values(), minilm.Bert()], ids=repr)
def test_published_sizes_fit_a_mesh(network, mesh):
  """The shardings of the largest are type-checked without an array."""
  mesh = sharding.make_mesh(MESHES[mesh])
  if network.heads % mesh.shape["model"]:
    pytest.skip("heads do not divide")
  params = weights.abstract(network.rows(), "bfloat16", mesh)
  rows = jax.NamedSharding(mesh, sharding.batch_spec())
  ids = jax.ShapeDtypeStruct((16, 128), jnp.int32, sharding=rows)
  mask = jax.ShapeDtypeStruct((16, 128), bool, sharding=rows)
  run = lambda *args: frozen_lib.features(network, *args, dtype="bfloat16")
  with jax.set_mesh(mesh):
    out = jax.eval_shape(run, params, ids, mask)
  assert out.shape == (16, 128, network.width)
  assert out.sharding.spec[0] == sharding.batch_spec()[0]


def test_sizes_are_those_of_the_papers():
  """Millions of parameters of the encoders, as their authors' checkpoints have them."""
  count = lambda n: sum(a.size for a in weights.abstract(n.rows(), "bfloat16").values())
  found = {name: round(count(n) / 1e6, 1) for name, n in t5_lib.SIZES.items()}
  assert found == {
    "small": 35.3, "base": 109.6, "large": 341.2, "xl": 1223.5, "xxl": 4762.3,
  }  # fmt: skip
  assert round(count(minilm.Bert()) / 1e6, 1) == 22.6


# What is wrong with a folder -> what the one line says.
FAULTS = {
  "missing": r"lacks the tensor encoder.block.1.layer.0.layer_norm.weight.*text.path",
  "extra": r"has the tensor encoder.block.3.x, which this network has no place for",
  "size": r"wo.weight has shape \(48, 79\).*\(48, 80\).*config.json",
  "width": r"'text.width' is 4096.*features of 48: set it",
  "relu": r"feed_forward_proj 'relu', which is older than v1.1.*flan-T5",
  "no config": r"no text encoder in .*config.json is missing.*'text.path'",
  "bad config": r"config.json is damaged.*d_model.*download it again",
  "no vocabulary": r"no text vocabulary .*spiece.model: put the spiece.model",
  "torn vocabulary": r"spiece.model is damaged: download it again",
  "shifted": r"pad, eos, unk = \(0, 2, 3\) and bos = 1; .*an extra <s> shifts every id",
  "piece": r"extra piece <s>, which shifts the ids after it by one: take the spiece",
  "more ids": r"has \d+ ids, but its weights have 10 rows",
  "no weights": r"holds no file of weights",
  "empty": r"'text.path' is empty: name the folder of a 't5' encoder",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_folder_is_one_line(t5, tmp_path, fault):
  folder = tmp_path / "t5"
  shutil.copytree(t5[0].path, folder)
  cfg = dataclasses.replace(t5[0], path=str(folder))
  file, described = folder / "model.safetensors", folder / "config.json"
  tensors, content = (
    safetensors.numpy.load_file(file),
    json.loads(described.read_text()),
  )
  spiece, save = folder / "spiece.model", safetensors.numpy.save_file

  def train(**args):
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([f"{w} of the {w}s" for w in "abcdefgh"]),
      model_prefix=str(folder / "spiece"),
      hard_vocab_limit=False,
      vocab_size=40,
      minloglevel=2,
      **args,
    )

  if fault == "missing":
    save({k: v for k, v in tensors.items() if "1.layer.0.layer_norm" not in k}, file)
  elif fault == "extra":
    save(tensors | {"encoder.block.3.x": np.zeros(2, np.float32)}, file)
  elif fault == "size":
    name = "encoder.block.2.layer.1.DenseReluDense.wo.weight"
    save(tensors | {name: np.ascontiguousarray(tensors[name][:, :-1])}, file)
  elif fault == "width":
    cfg = dataclasses.replace(cfg, width=4096)
  elif fault == "relu":
    described.write_text(json.dumps(content | {"feed_forward_proj": "relu"}))
  elif fault == "more ids":
    described.write_text(json.dumps(content | {"vocab_size": 10}))
  elif fault == "no config":
    described.unlink()
  elif fault == "bad config":
    described.write_text("{}" if content.pop("d_model") else "")
    described.write_text(json.dumps(content))
  elif fault == "no vocabulary":
    spiece.unlink()
  elif fault == "torn vocabulary":
    spiece.write_bytes(spiece.read_bytes()[:100])
  elif fault == "shifted":
    train(pad_id=0, bos_id=1, eos_id=2, unk_id=3)
  elif fault == "piece":
    train(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, user_defined_symbols=["<s>"])
  elif fault == "no weights":
    file.unlink()
  elif fault == "empty":
    cfg = dataclasses.replace(cfg, path="")
  with pytest.raises(config.ConfigError, match=FAULTS[fault]) as error:
    text.load(cfg).features(*(t5[1][k] for k in ("input_ids", "attention_mask")))
  assert "\n" not in str(error.value)


def test_prompts_are_refused_as_the_learned_encoder_does(t5):
  encoder = text.load(t5[0])
  with pytest.raises(text.PromptError, match="17 text tokens.*= 16"):
    encoder.encode(["the dark green hill and a bright wooden boat under three trees "
                    "with a cat"], 16)  # fmt: skip
  with pytest.raises(text.PromptError, match="outside the vocabulary: 'zebra'"):
    encoder.encode(["zebra"], 16)
  ids, mask = encoder.encode([""], 4)
  assert ids.tolist() == [[1, 0, 0, 0]] and mask.sum() == 1
  assert encoder.count("zebra") == 7
  assert encoder.decode(encoder.encode(["two birds"], 16)[0]) == ["two birds"]


def test_other_weights_than_those_vouched_for_are_refused(t5, tmp_path):
  cfg = t5[0]
  cfg.install(tmp_path)
  said = json.loads((tmp_path / cfg.FILE).read_text())
  assert said == {"kind": "t5", "path": cfg.path, "sha256": text.load(cfg).digest()}
  ids, mask = np.ones((1, 2), np.int32), np.ones((1, 2), bool)
  text.load(cfg, tmp_path).features(ids, mask)
  # Gone from where the config says, but not from where the run's file does.
  gone = dataclasses.replace(cfg, path=cfg.path + "-gone")
  assert text.load(gone, tmp_path).path.name == "t5-single"
  other = tmp_path / "other"
  shutil.copytree(cfg.path, other)
  tensors = safetensors.numpy.load_file(other / "model.safetensors")
  tensors["shared.weight"] = tensors["shared.weight"] + 1
  safetensors.numpy.save_file(tensors, other / "model.safetensors")
  changed = text.load(dataclasses.replace(cfg, path=str(other)), tmp_path)
  with pytest.raises(config.ConfigError, match="another text encoder.*'text.path'"):
    changed.features(ids, mask)
  (tmp_path / cfg.FILE).write_text("{")
  with pytest.raises(config.ConfigError, match="text.json is damaged.*prepare"):
    text.load(cfg, tmp_path)


def test_bert_by_hand(bert):
  """Loops over rows, heads and queries in float64, against the network."""
  encoder = text.load(bert)
  ids, mask = encoder.encode(PROMPTS, bert.length)
  w = {k: np.asarray(v, np.float64) for k, v in encoder._weights.items()}
  n = encoder.network
  erf = np.vectorize(__import__("math").erf)

  def norm(x, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + n.epsilon)
    return x * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]

  def linear(x, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

  found = exact(encoder, ids, mask)
  for row, length in enumerate(mask.sum(1)):
    e = "embeddings."
    x = w[e + "word_embeddings.weight"][ids[row, :length]]
    x = x + w[e + "position_embeddings.weight"][:length]
    x = norm(x + w[e + "token_type_embeddings.weight"][0], "embeddings")
    for i in range(n.layers):
      at = f"encoder.layer.{i}."
      parts = (linear(x, f"{at}attention.self.{p}") for p in ("query", "key", "value"))
      heads = []
      for q, k, v in zip(*(np.split(p, n.heads, -1) for p in parts)):
        share = np.exp(q @ k.T / np.sqrt(n.width // n.heads))
        heads.append(share / share.sum(-1, keepdims=True) @ v)
      y = linear(np.concatenate(heads, -1), f"{at}attention.output.dense")
      x = norm(x + y, f"{at}attention.output")
      y = linear(x, f"{at}intermediate.dense")
      y = linear(y * (1 + erf(y / np.sqrt(2))) / 2, f"{at}output.dense")
      x = norm(x + y, f"{at}output")
    np.testing.assert_allclose(found[row, :length], x, atol=2e-5)


def test_words_are_cut_as_bert_cuts_them(bert):
  encoder = text.load(bert)
  ids, mask = encoder.encode(
    ["Réd STARS, of", "the\tcircle!", ""], 8, on_unknown="keep"
  )
  assert encoder.decode(ids) == ["red stars [UNK] of", "the circle !", ""]
  assert mask.sum(1).tolist() == [7, 5, 2] and encoder.count("stars!") == 5
  with pytest.raises(text.PromptError, match="outside the vocabulary: 'green'"):
    encoder.encode(["a green star"], 8)
  with pytest.raises(text.PromptError, match="5 text tokens.*= 4"):
    encoder.encode(["a red star"], 4)
  cut, _ = encoder.encode(["a red star"], 4, on_long="cut")
  assert encoder.decode(cut) == ["a red"]
  with pytest.raises(config.ConfigError, match="'text.length' is 25.*for 24"):
    text.load(dataclasses.replace(bert, length=25))


def test_a_folder_without_the_package_is_named(monkeypatch):
  monkeypatch.setattr(minilm, "PACKAGE", "no_such_package_of_weights")
  with pytest.raises(config.ConfigError, match="requirements-minilm.txt"):
    text.load(minilm.MiniLMConfig())
  assert minilm.MiniLMConfig().vouched("text.") == {"text.file": ""}


def test_minilm_finds_what_is_alike():
  """Similarities that the authors print for these sentences (sbert.net, quickstart)."""
  try:
    cfg = minilm.MiniLMConfig(length=16, dtype="float32")
    encoder = text.load(cfg)
  except config.ConfigError as e:
    pytest.skip(str(e))
  sentences = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
  ]
  ids, mask = encoder.encode(sentences, cfg.length)
  assert ids[0, :8].tolist() == [101, 1996, 4633, 2003, 8403, 2651, 1012, 102]
  found = exact(encoder, ids, mask)
  mean = (found * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
  mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
  alike = mean @ mean.T
  np.testing.assert_allclose(
    [alike[0, 1], alike[0, 2], alike[1, 2]], [0.6660, 0.1046, 0.1411], atol=1e-4
  )
