"""CLIP, DINOv2 and GenEval's colours, against transformers' numbers for tiny networks.

tests/data/make_vision_fixtures.py made the networks and the numbers.
"""

import gzip
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from fluid import config
from fluid.evals import colors
from fluid.evals.features import base, clip, dinov2, vit
from fluid.evals.geneval import COLORS
from fluid.parallel import sharding
from fluid.text import PromptError
from fluid.text.bpe import BPE
from tests.containers_test import Storage, View, write_zip

DATA = pathlib.Path(__file__).parent / "data" / "vision"
TOKENS = json.loads((DATA / "tokens.json").read_text())
EXPECTED = dict(np.load(DATA / "expected.npz"))
SHORT = [p for p, ids in zip(TOKENS["prompts"], TOKENS["ids"]) if len(ids) <= 77]
LONG = [p for p in TOKENS["prompts"] if p not in SHORT]


def close(found, name):
  """Within 1e-5 of the largest value, so that weak features count as well."""
  wanted = EXPECTED[name]
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def pool(net, images=EXPECTED["images"]):
  return np.asarray(jax.jit(net.apply)(net.params, net.preprocess(images))["pool"])


def copy(name, folder, change=lambda weights: weights):
  """A fixture's folder with other tensors."""
  target = folder / name
  shutil.copytree(DATA / name, target)
  weights = change(safetensors.numpy.load_file(target / "model.safetensors"))
  safetensors.numpy.save_file(weights, target / "model.safetensors")
  return target


def renamed(weights, rules, parts, fused):
  """Names by rules of re.sub; three tensors of q, k, v become one."""
  weights, out = dict(weights), {}
  for name in [name for name in weights if parts[0] in name]:
    three = [weights.pop(name.replace(parts[0], part)) for part in parts]
    out[name.replace(parts[0], fused)] = np.concatenate(three)
  out |= weights
  for pattern, name in rules:
    out = {re.sub(pattern, name, k): v for k, v in out.items()}
  return out


def openai(weights):
  """transformers' CLIP in OpenAI's names, whose projections are no Linears."""
  rules = (
    (r"_proj\.(in)_", r"\1_proj_"),
    (r"self_attn\.in_proj\.", "attn.in_proj_"),
    ("self_attn.out_proj", "attn.out_proj"),
    (r"layer_norm(\d)", r"ln_\1"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    (r"vision_model\.encoder\.layers", "visual.transformer.resblocks"),
    (r"text_model\.encoder\.layers", "transformer.resblocks"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    (
      "vision_model.embeddings.position_embedding.weight",
      "visual.positional_embedding",
    ),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("text_model.final_layer_norm", "ln_final"),
    ("visual_projection.weight", "visual.proj"),
    ("text_projection.weight", "text_projection"),
  )
  qkv = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
  out = renamed(weights, rules, qkv, "self_attn.in_proj")
  turned = ("visual.proj", "text_projection")
  return {k: v.T.copy() if k in turned else v for k, v in out.items()}


def authors(weights):
  """transformers' DINOv2 in its authors' names."""
  rules = (
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"attention\.qkv", "attn.qkv"),
    (r"attention\.output\.dense", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^layernorm", "norm"),
  )
  qkv = tuple(f"attention.attention.{n}" for n in ("query", "key", "value"))
  return renamed(weights, rules, qkv, "attention.qkv")


@pytest.fixture(scope="module")
def net():
  return clip.CLIP(DATA / "clip")


@pytest.fixture(scope="module", params=["two files", "one file", "OpenAI's file"])
def vocabulary(request, tmp_path_factory):
  """The fixture's pieces in each of the forms that they are published in."""
  folder = tmp_path_factory.mktemp("pieces")
  ids = json.loads((DATA / "clip/vocab.json").read_text())
  merges = (DATA / "clip/merges.txt").read_text().splitlines()[1:]
  if request.param == "two files":
    return BPE(DATA / "clip", len(ids))
  if request.param == "one file":
    ends = [{"content": k, "id": ids.pop(k)} for k in list(ids) if k.startswith("<|")]
    content = {"model": {"vocab": ids, "merges": [m.split() for m in merges]}}
    content["added_tokens"] = ends
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return BPE(folder, len(ids) + 2)
  lines = ['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges, "o f", "t h"]
  path = folder / "bpe_simple_vocab_16e6.txt.gz"
  path.write_bytes(gzip.compress("\n".join(lines).encode()))
  return BPE(folder, len(ids))


def test_ids_are_those_of_transformers(vocabulary):
  for prompt, ids in zip(TOKENS["prompts"], TOKENS["ids"]):
    found = [vocabulary.first, *vocabulary.pieces(prompt), vocabulary.last]
    assert found == ids, prompt
  row = vocabulary.encode(["", SHORT[0]], 77)
  assert row.shape == (2, 77) and row.dtype == np.int32
  assert row[0, 0] == vocabulary.first and (row[0, 1:] == vocabulary.last).all()
  assert row[1, : len(TOKENS["ids"][0])].tolist() == TOKENS["ids"][0]


def test_ends_within_a_prompt_are_text(vocabulary):
  ids = vocabulary.pieces("a <|endoftext|> b")
  assert vocabulary.last not in ids and vocabulary.first not in ids


def test_long_prompts_are_cut_aloud_or_refused(net, capsys):
  assert LONG
  cut = net.vocabulary.encode(LONG, 77, on_long="cut")
  assert cut[0, -1] == net.vocabulary.last != cut[0, -2]
  assert net.texts(LONG + SHORT[:1]).shape == (len(LONG) + 1, 20)
  said = capsys.readouterr().err
  assert "1 of 2 prompts have more than the 77 text tokens" in said
  assert said.count("\n") == 1
  with pytest.raises(PromptError, match="more than the 77 of this encoder: 'a photo"):
    net.texts(LONG, on_long="error")


def test_vocabularies_of_others_are_one_line(tmp_path, net):
  with pytest.raises(config.ConfigError, match="no vocabulary in .*vocab.json with"):
    BPE(tmp_path)
  with pytest.raises(config.ConfigError, match="has 584 ids, not 600"):
    BPE(DATA / "clip", 600)
  shutil.copy(DATA / "clip/merges.txt", tmp_path)
  for content, message in (("{", "is damaged"), ('{"a": 0}', "lacks '!'")):
    (tmp_path / "vocab.json").write_text(content)
    with pytest.raises(config.ConfigError, match=message) as error:
      BPE(tmp_path)
    assert "\n" not in str(error.value)


def test_clip_equals_transformers(net):
  assert net.name == "CLIP-32x8-32" and net.outputs == {"pool": 20}
  x = net.preprocess(EXPECTED["images"])
  assert x.shape == (3, 32, 32, 3) and x.dtype == np.uint8
  found = pool(net)
  assert found.dtype == np.float32
  close(found, "clip_pool")
  close(net.texts(SHORT), "clip_texts")
  close(pool(clip.CLIP(DATA / "clip", activation="gelu")), "clip_gelu")


def test_openai_spelling_is_the_same_network(net, tmp_path):
  own = {"input_resolution": np.array(32), "visual.attn_mask": np.zeros(3)}
  folder = copy("clip", tmp_path / "own", lambda weights: openai(weights) | own)
  (folder / "config.json").unlink()
  assert clip.CLIP(folder).name == net.name  # OpenAI's own file needs no config.
  folder = copy("clip", tmp_path, openai)
  (folder / "config.json").unlink()
  with pytest.raises(config.ConfigError, match="does not say which GELU"):
    clip.CLIP(folder)
  model = {"vision_cfg": {"head_width": 8}, "text_cfg": {"heads": 3}}
  content = {"model_cfg": model | {"quick_gelu": True}}
  (folder / "open_clip_config.json").write_text(json.dumps(content))
  found = clip.CLIP(folder)
  np.testing.assert_array_equal(pool(found), pool(net))
  np.testing.assert_array_equal(found.texts(SHORT[:3]), net.texts(SHORT[:3]))
  content["model_cfg"].pop("quick_gelu")
  (folder / "open_clip_config.json").write_text(json.dumps(content))
  close(pool(clip.CLIP(folder)), "clip_gelu")


def test_mean_and_deviation_are_those_of_the_folder(tmp_path):
  """An image of the mean alone is all zeros, whatever it is divided by."""
  old = {"vision_model.embeddings.position_ids": np.arange(17)[None]}
  folder = copy("clip", tmp_path, lambda weights: weights | old)
  plain = np.full((1, 32, 32, 3), 51, np.uint8)
  found = [pool(clip.CLIP(folder), plain)]
  for std in (1.0, 7.0):
    content = {"image_mean": [0.2] * 3, "image_std": [std] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    found.append(pool(clip.CLIP(folder), plain))
  np.testing.assert_allclose(found[1], found[2], atol=1e-5)
  assert np.abs(found[1] - found[0]).max() > 0.1


def test_products_are_in_float32(net):
  """Published numbers are; accelerators round the inputs where nobody asks."""
  program = str(
    jax.make_jaxpr(net.apply)(net.params, net.preprocess(EXPECTED["images"]))
  )
  assert (
    program.count("dot_general[") == program.count("HIGHEST, Precision.HIGHEST") > 4
  )


def test_rows_and_devices_do_not_matter(net):
  whole = pool(net), net.texts(SHORT[:5])
  np.testing.assert_allclose(
    pool(net, EXPECTED["images"][1:2]), whole[0][1:2], atol=1e-5
  )
  np.testing.assert_allclose(net.texts(SHORT[3:4]), whole[1][3:4], atol=1e-5)
  with jax.set_mesh(sharding.make_mesh(config.Mesh())):
    np.testing.assert_allclose(net.texts(SHORT[:5]), whole[1], atol=1e-5)
  assert net.texts([]).shape == (0, 20)


def test_the_middle_of_an_image_is_kept(net):
  ramp = np.zeros((1, 32, 96, 3), np.uint8)
  ramp[:, :, 32:64] = 200
  assert (net.preprocess(ramp) == 200).all()
  assert (net.preprocess(ramp.swapaxes(1, 2)) == 200).all()
  np.testing.assert_array_equal(net.preprocess(ramp[:, :, :32]), ramp[:, :, :32])


def test_dinov2_equals_transformers():
  net = dinov2.DINOv2(DATA / "dinov2")
  assert net.name == "DINOv2-24x14" and net.outputs == {"pool": 24}
  found = pool(net)
  close(found, "dinov2_pool")
  # The authors' tenth of a patch is seen: transformers' features are others.
  assert np.abs(found - EXPECTED["dinov2_plain"]).max() > 1e-3
  np.testing.assert_allclose(
    net.params["position"][:, :4], EXPECTED["dinov2_positions"], atol=1e-5
  )
  np.testing.assert_allclose(pool(net, EXPECTED["images"][2:]), found[2:], atol=1e-5)
  net = dinov2.DINOv2(DATA / "dinov2_reg")
  assert net.name == "DINOv2-16x14-reg"
  close(pool(net), "dinov2_reg_pool")


@pytest.mark.parametrize("name", ["dinov2", "dinov2_reg"])
def test_authors_spelling_is_the_same_network(name, tmp_path):
  """In a torch zip, as they publish it."""
  weights = authors(safetensors.numpy.load_file(DATA / name / "model.safetensors"))
  assert {"blocks.1.attn.qkv.weight", "mask_token", "norm.bias"} <= set(weights)
  storages = {
    k: Storage("HalfStorage", str(i), v.reshape(-1))
    for i, (k, v) in enumerate(weights.items())
  }
  strides = {k: [s // v.itemsize for s in v.strides] for k, v in weights.items()}
  tree = {k: View(storages[k], 0, v.shape, strides[k]) for k, v in weights.items()}
  write_zip(tmp_path / "dinov2.pth", tree, storages.values())
  shutil.copy(DATA / name / "config.json", tmp_path)
  found = dinov2.DINOv2(tmp_path / "dinov2.pth")
  np.testing.assert_array_equal(pool(found), pool(dinov2.DINOv2(DATA / name)))


@pytest.mark.parametrize("side", [8, 16, 31])
def test_antialiased_interpolation_is_that_of_jax(side):
  """torch's other kernel is in the features and positions of DINOv2."""
  table = np.random.default_rng(side).normal(size=(1 + 400, 3)).astype(np.float32)
  found = vit.interpolate(table, side, antialias=True)
  wanted = jax.image.resize(table[1:].reshape(20, 20, 3), (side, side, 3), "bicubic")
  np.testing.assert_allclose(found[1:].reshape(side, side, 3), wanted, atol=1e-5)
  np.testing.assert_array_equal(found[0], table[0])
  assert vit.interpolate(table, 20, offset=0.1) is table


def test_files_that_do_not_fit_are_one_line(tmp_path):
  head = "vision_model.encoder.layers.1.mlp.fc2.bias"
  odd = {
    f"missing.*{head}": lambda w: {k: v for k, v in w.items() if k != head},
    r"left over: extra \(3,\)": lambda w: w | {"extra": np.zeros(3)},
    "other shapes.*visual_projection|other shapes: vision/projection": lambda w: (
      w | {"visual_projection.weight": np.zeros((20, 31))}
    ),
    "is no CLIP .it lacks vision_model.*visual.conv1": lambda w: {"x": np.zeros(3)},
    "known kind .it lacks text_model.encoder.layers.0.mlp.fc1": lambda w: {
      k: v for k, v in w.items() if not k.startswith("text_model.enc")
    },
  }
  for i, (message, change) in enumerate(odd.items()):
    folder = copy("clip", tmp_path / str(i), change)
    with pytest.raises(config.ConfigError, match=message) as error:
      clip.CLIP(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)
  swiglu = lambda w: {k.replace("fc1", "weights_in"): v for k, v in w.items()}
  with pytest.raises(config.ConfigError, match="ViT-g has SwiGLU, which is not here"):
    dinov2.DINOv2(copy("dinov2", tmp_path / "giant", swiglu))
  folder = copy("clip", tmp_path / "damaged")
  (folder / "config.json").write_text("{")
  with pytest.raises(config.ConfigError, match="config.json is damaged"):
    clip.CLIP(folder)


def test_where_weights_are(monkeypatch, tmp_path):
  monkeypatch.delenv(base.FOLDER, raising=False)
  message = "'CLIP-L14-336' needs .*no file was named.*huggingface.co/openai"
  with pytest.raises(config.ConfigError, match=message):
    clip.CLIP()
  monkeypatch.setenv(base.FOLDER, str(tmp_path))
  with pytest.raises(config.ConfigError, match="no .*dinov2-large.: .*facebook"):
    dinov2.DINOv2()
  with pytest.raises(
    config.ConfigError, match="unknown model 'x'; choose from CLIP-B32"
  ):
    clip.CLIP(model="x")
  shutil.copytree(DATA / "dinov2", tmp_path / "dinov2-base")
  assert dinov2.DINOv2(model="DINOv2-B14").name == "DINOv2-24x14"


class Stub:
  """A network that sees the mean colour, and knows four words."""

  KNOWN = {"red": [1, 0, 0], "green": [0, 1, 0], "blue": [0, 0, 1], "white": [1, 1, 1]}
  params = None

  def __init__(self):
    self.seen, self.asked = [], []

  def preprocess(self, images):
    self.seen.append(images[0])
    return images.mean((1, 2))

  def apply(self, params, x):
    return {"pool": x}

  def texts(self, prompts):
    self.asked.append(list(prompts))
    words = [re.split("[ -]", prompt)[4] for prompt in prompts]
    return np.array([self.KNOWN.get(word, [-1, -1, -1]) for word in words], float)


def test_colors_of_crops():
  net = Stub()
  classify = colors.ClipColors(net)
  image = np.zeros((20, 30, 3), np.uint8)
  image[:, :10, 0], image[:, 10:20, 1], image[:, 20:, 2] = 250, 251, 252
  boxes = [[20.4, 5, 29.6, 20], [0, 0, 9.4, 3], [10, 3, 20, 4], [25, -3, 99, 99]]
  assert classify(image, boxes, "bus") == ["blue", "red", "green", "blue"]
  sizes = [crop.shape[:2] for crop in net.seen]
  assert sizes == [(15, 10), (3, 9), (1, 10), (20, 5)]
  # Ten colours in three templates, and a class is asked for once.
  classify(image, boxes[:1], "bus")
  classify(image, boxes[:1], "cat")
  assert [len(asked) for asked in net.asked] == [30, 30]
  assert net.asked[1][3:6] == [
    "a photo of a orange cat",
    "a photo of a orange-colored cat",
    "a photo of a orange object",
  ]
  assert classify(image, [], "dog") == [] and len(net.asked) == 2
  assert classify(image, [[29, 19, 29, 19], [40, 40, 50, 50]], "cat") == ["blue"] * 2


def test_background_outside_a_mask_is_grey():
  net = Stub()
  image = np.zeros((8, 8, 3), np.uint8)
  image[..., 0] = 255
  mask = np.zeros((8, 8), bool)
  mask[2:4, 2:4] = True
  image[2:4, 2:4] = [0, 255, 0]
  box = [0, 0, 8, 8]
  found = colors.ClipColors(net)(image, [box, box], "cat", [mask, None])
  grey, whole = net.seen
  assert (grey[~mask] == 0x99).all() and (grey[mask] == [0, 255, 0]).all()
  np.testing.assert_array_equal(whole, image)
  assert found == ["white", "red"]


def test_colors_of_a_network_are_its_nearest_prompts(net):
  """By the definition: cosines to the mean of three unit vectors."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (40, 60, 3)).astype(np.uint8)
  boxes = [[0, 0, 30, 30], [10, 5, 50, 39], [40, 0, 60, 40]]
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  scores = []
  for left, top, right, bottom in boxes:
    x = pool(net, image[None, top:bottom, left:right])
    row = []
    for color in COLORS:
      prompts = [f"a photo of a {color} {end}" for end in ("dog", "object")]
      prompts.append(f"a photo of a {color}-colored dog")
      row.append(unit(x[0]) @ unit(unit(net.texts(prompts)).mean(0)))
    scores.append(row)
  wanted = [COLORS[i] for i in np.argmax(scores, 1)]
  assert colors.ClipColors(net)(image, boxes, "dog") == wanted
