"""Published models against the numbers of their references: networks and losses."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs.reproduce import imagenet
from fluid import api, flops, trees
from fluid.convert import __main__ as command
from fluid.convert import containers, family, models, names
from fluid.errors import ConfigError
from fluid.models.orders import random as random_order
from fluid.models.orders.permuted import following
from fluid.models.orders.raster import Raster
from fluid.models.published import RUNS
from tests.published import CASES, close, convert


def test_mar_backbone(converted):
  """Also where the encoder reads no more tokens than the row with most has."""
  m = converted("mar")
  mask = m.cases["backbone/mask"].astype(bool)
  for most in (None, int((~mask).sum(1).max())):
    plan = random_order._plan(mask.shape[1], jnp.asarray(mask), most)
    got = m.outputs(m.cases["backbone/tokens"], plan, m.cases["backbone/labels"])
    close(got, m.cases["backbone/z"])


@pytest.mark.parametrize("name", ["llamagen_c2i", "llamagen_t2i"])
def test_llamagen_teacher_forced(converted, name):
  m = converted(name)
  tokens = jnp.asarray(m.cases["tokens"])
  plan = Raster().plan(
    jax.random.split(jax.random.key(0), len(tokens)), None, m.net.tokens
  )
  z = m.outputs(tokens, plan, m.cases["condition"])
  close(m.logits(z), m.cases["logits"])
  batch = {
    "tokens": tokens,
    "text": jnp.asarray(m.cases["condition"]).reshape(
      len(tokens), m.net.text.length, -1
    ),
  }
  if name == "llamagen_c2i":
    batch["text"] = batch["text"][..., 0]
  batch["text_mask"] = jnp.ones((len(tokens), m.net.text.length), bool)
  keys = jax.random.split(jax.random.key(0), len(tokens))
  loss = m.net.loss(m.params, batch, keys, train=False)["loss"]
  close(loss, m.cases["loss"])


def test_maskgit_logits(converted):
  m = converted("maskgit")
  ids = m.cases["input_ids"]
  hidden = jnp.asarray(ids[:, 1:] < 0)
  tokens = jnp.maximum(jnp.asarray(ids[:, 1:]), 0)
  plan = random_order._plan(hidden.shape[1], hidden)
  z = m.outputs(tokens, plan, m.cases["labels"])
  close(m.logits(z), m.cases["logits"][:, 1:, : m.net.tokens.vocab])


def test_rar_permuted_and_raster(converted):
  m = converted("rar")
  tokens, orders = (jnp.asarray(m.cases[k]) for k in ("tokens", "orders"))
  n = tokens.shape[1]
  for order, want in (
    (orders, "logits_permuted"),
    (jnp.broadcast_to(jnp.arange(n), tokens.shape), "logits_raster"),
  ):
    z = m.outputs(tokens, following(order), m.cases["labels"])
    close(m.logits(z), m.cases[want][:, :n])
  plan = following(orders)
  np.testing.assert_array_equal(plan.of_targets(tokens), m.cases["targets_permuted"])
  logits = m.logits(m.outputs(tokens, plan, m.cases["labels"]))
  nats = -jnp.take_along_axis(
    jax.nn.log_softmax(logits), plan.of_targets(tokens)[..., None], -1
  )
  close(nats[..., 0], m.cases["loss_permuted"])


@pytest.mark.parametrize("name", ["var", "var_shared"])
def test_var_teacher_forced(converted, name):
  """From the codes: what the scales read is the tokenizer's."""
  m = converted(name)
  scales = range(len(m.config["patch_nums"]))
  tokens = jnp.concatenate([m.cases[f"codes/{k}"] for k in scales], 1)
  close(m.net.scales.inputs(tokens), m.cases["var_input"])
  keys = jax.random.split(jax.random.key(0), len(tokens))
  plan = m.net.order.plan(keys, None, m.net.tokens)
  close(m.logits(m.outputs(tokens, plan, m.cases["labels"])), m.cases["logits"])


# Of an authors' name and the axes of its array: does it decay? As their optimizers ask.
DECAYS = {
  "mar": lambda name, axes: (
    axes > 1 and not name.endswith(".bias") and "diffloss" not in name
  ),
  # The null caption is a buffer.
  "llamagen": lambda name, axes: axes > 1 and "uncond_embedding" not in name,
  "rar": lambda name, axes: (
    axes > 1 and not re.search("ln|bias|mask_token|embed|norm|gamma", name)
  ),
  "var": lambda name, axes: (
    axes > 1 and not re.search("bias$|pos_1LC|pos_start|lvl_embed|ada_gss|scale_", name)
  ),
}


@pytest.mark.parametrize("name", [n for n in CASES if n.split("_")[0] in DECAYS])
def test_what_decays_is_what_decays_there(converted, fixtures, name):
  m = converted(name)
  entry, of = models.FAMILIES[CASES[name].kind], DECAYS[name.split("_")[0]]
  file = containers.read(fixtures / name / CASES[name].file)
  (spelling,) = entry.spellings
  file, decays = spelling.section(file), trees.paths(m.net.decays(m.params))
  for ours, decayed in decays.items():
    source = spelling.source(ours, m.run).replace("*", "0")
    theirs = [t.partition("[")[0] for t in names.tensors(source, ())]
    assert {of(t, file[t].ndim) for t in theirs} == {decayed}, (ours, theirs)
  assert 0 < sum(decays.values()) < len(decays)


def test_recipes_draw_mirror_images_where_their_authors_do():
  flips = {n: imagenet.get_config(f"model={n}").data.flips for n in RUNS}
  mirrored = {n.partition("_")[0] for n, flipped in flips.items() if flipped}
  assert mirrored == {"mar", "llamagen", "rar"} and not flips["llamagen_t2i"]
  assert flips["llamagen_3b"] and not flips["var_d36_512"]


def test_what_does_not_fit_is_one_line(fixtures, tmp_path):
  """Another family, another size, a tensor too many, one too few."""
  folder = fixtures / "llamagen_c2i"
  config = json.loads((folder / "config.json").read_text())
  changes, file = CASES["llamagen_c2i"].changes(config), folder / "weights.safetensors"
  weights = safetensors.numpy.load_file(file)
  more, fewer = tmp_path / "more.safetensors", tmp_path / "fewer.safetensors"
  safetensors.numpy.save_file(weights | {"odd.weight": np.ones(3)}, more)
  name = sorted(weights)[-1]
  safetensors.numpy.save_file({k: v for k, v in weights.items() if k != name}, fewer)
  width, vocab = 2 * config["dim"], config["vocab_size"]
  larger = changes | {"model.trunk.width": width}
  for kind, source, given, said in (
    ("rar_b", file, {}, "is no rar_b of these sizes; .* missing: .* left over: "),
    ("llamagen_b", file, larger, rf"of other shapes: .*table/w \({vocab}, {width}\)"),
    ("llamagen_b", more, changes, r"1 left over: odd.weight \(3,\)"),
    ("llamagen_b", fewer, changes, f"1 missing: .*{name}"),
    ("llamagen_b", file, changes | {"model.depth": 3}, "unknown key 'model.depth'"),
  ):
    with pytest.raises(ConfigError, match=said) as e:
      family.convert(models.FAMILIES[kind], source, tmp_path / "out", given)
    assert "\n" not in str(e.value)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", CASES)
def test_the_way_back_is_the_file(fixtures, tmp_path, name):
  """Every tensor of the authors' file, bit for bit, from what it was converted to."""
  case = CASES[name]
  source = fixtures / name / case.file
  convert(name, fixtures / name, tmp_path)
  entry = models.FAMILIES[case.kind]
  file, step = family.back(entry, tmp_path / "model", source, tmp_path / "back")
  want, got = containers.read(source), safetensors.numpy.load_file(file)
  assert got.keys() == set(want) and step == 0
  for key, array in got.items():
    np.testing.assert_array_equal(array, want[key])


def test_the_way_back_writes_what_the_folder_holds(fixtures, tmp_path):
  """And not what the file holds that lends its names."""
  source = fixtures / "llamagen_c2i" / "weights.safetensors"
  convert("llamagen_c2i", fixtures / "llamagen_c2i", tmp_path)
  entry = models.FAMILIES["llamagen_b"]
  other = {k: 0 * v for k, v in safetensors.numpy.load_file(source).items()}
  safetensors.numpy.save_file(other, tmp_path / "zeros.safetensors")
  zeros = tmp_path / "zeros.safetensors"
  file, _ = family.back(entry, tmp_path / "model", zeros, tmp_path / "back")
  want, got = containers.read(source), safetensors.numpy.load_file(file)
  skip = entry.spellings[0].skip
  for key, array in got.items():
    if not any(re.fullmatch(p, key) for p in skip):
      np.testing.assert_array_equal(array, want[key])
  with pytest.raises(ConfigError, match="zeros.safetensors is no mar_b as .* is; "):
    family.back(models.FAMILIES["mar_b"], tmp_path / "model", zeros, tmp_path / "x")
  given = [str(tmp_path / "model"), str(tmp_path / "again"), f"like={source}"]
  command.main(["convert", "llamagen_b", *given], "safetensors")
  said = (tmp_path / "again" / "README.md").read_text()
  net = models.Net.of(api.read_config(tmp_path / "model"))
  assert f"| {flops.parameters(net)['total']:,} |" in said and "none by this" in said
