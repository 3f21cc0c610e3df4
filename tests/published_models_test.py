"""Published models against the numbers of their references."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fluid import sampling
from fluid.convert import family, models, tokenizers
from fluid.errors import ConfigError
from fluid.models import Net
from fluid.models.diffusion import Diffusion
from fluid.models.heads.categorical import CategoricalDraw, filtered
from fluid.models.heads.diffusion import guide
from fluid.models.orders import random as random_order
from fluid.models.orders.permuted import following
from fluid.models.orders.raster import Raster

CLOSE = 1e-4  # Relative to the largest value.


@dataclasses.dataclass(frozen=True)
class Case:
  """A fixture: the kind it is of, its file, and its config.json as our changes."""

  kind: str
  file: str
  changes: Callable[[dict], dict]


def _mar(c):
  return {
    "model.trunk.width": c["decoder_embed_dim"],
    "model.trunk.heads": c["decoder_num_heads"],
    "model.trunk.layers": c["encoder_depth"],
    "model.trunk.decoder_layers": c["decoder_depth"],
    "model.trunk.buffer": c["buffer_size"],
    "model.head.layers": c["diffloss_d"],
    "model.head.width": c["diffloss_w"],
    "text.vocab_size": c["class_num"],
    "tokenizer.channels": c["vae_embed_dim"],
    "tokenizer.patch": c["patch_size"],
    "data.image_size": c["img_size"],
  }


def _llamagen(c):
  out = {
    "model.trunk.width": c["dim"],
    "model.trunk.heads": c["n_head"],
    "model.trunk.layers": c["n_layer"],
    "model.trunk.multiple": c["multiple_of"],
    "tokenizer.vocab": c["vocab_size"],
    "data.image_size": 16 * int(c["block_size"] ** 0.5),
  }
  if c["model_type"] == "c2i":
    return out | {"text.vocab_size": c["num_classes"]}
  return out | {"text.length": c["cls_token_num"], "text.width": c["caption_dim"]}


def _maskgit(c):
  return {
    "model.trunk.width": c["width"],
    "model.trunk.heads": c["heads"],
    "model.trunk.layers": c["layers"],
    "model.trunk.hidden_width": c["mlp"],
    "tokenizer.vocab": c["vocab"],
    "text.vocab_size": c["classes"],
    "data.image_size": 16 * c["side"],
  }


def _rar(c):
  return {
    "model.trunk.width": c["hidden_size"],
    "model.trunk.heads": c["num_attention_heads"],
    "model.trunk.layers": c["num_hidden_layers"],
    "model.trunk.hidden_width": c["intermediate_size"],
    "tokenizer.vocab": c["vocab"],
    "text.vocab_size": c["classes"],
    "data.image_size": 16 * int(c["image_seq_len"] ** 0.5),
  }


def _var(c):
  factor = 2 ** (len(c["mult"]) - 1)
  return {
    "model.trunk.width": c["embed_dim"],
    "model.trunk.heads": c["num_heads"],
    "model.trunk.layers": c["depth"],
    "model.trunk.unit_attention": c["attn_l2_norm"],
    "model.trunk.shared_modulation": c["shared_aln"],
    "tokenizer.vocab": c["vocab"],
    "tokenizer.channels": c["z"],
    "tokenizer.width": c["ch"],
    "tokenizer.multipliers": c["mult"],
    "tokenizer.scales": c["patch_nums"],
    "text.vocab_size": c["num_classes"],
    "data.image_size": c["patch_nums"][-1] * factor,
  }


CASES = {
  "mar": Case("mar_b", "weights.safetensors", _mar),
  "llamagen_c2i": Case("llamagen_b", "weights.safetensors", _llamagen),
  "llamagen_t2i": Case("llamagen_t2i", "weights.safetensors", _llamagen),
  "maskgit": Case("maskgit", "checkpoint.msgpack", _maskgit),
  "rar": Case("rar_b", "weights.safetensors", _rar),
  "var": Case("var_d16", "weights.safetensors", _var),
  "var_shared": Case("var_d36_512", "weights.safetensors", _var),
}


@dataclasses.dataclass
class Model:
  """A converted fixture, with its numbers by name."""

  net: Net
  params: Any
  cases: Any
  config: dict
  run: Any

  def condition(self, text, mask=None, drop=None):
    """Of ids [B] or features [B, T, E]."""
    text = jnp.asarray(text)
    text = text[:, None] if text.ndim == 1 else text
    mask = jnp.ones(text.shape[:2], bool) if mask is None else mask
    drop = jnp.zeros(len(text), bool) if drop is None else drop
    return self.net.condition(self.params, text, mask, drop)

  def outputs(self, tokens, plan, text, **kwargs):
    """Trunk outputs [B, S, D]."""
    cond = self.condition(text)
    run = lambda p, t: self.net.run(p, t, plan, cond, **kwargs)[0]
    return jax.jit(run)(self.params, jnp.asarray(tokens))

  def logits(self, z):
    return self.net.module.apply({"params": self.params}, z, method=_logits)

  def generate(self, text, mask=None, **options):
    """Tokens for ids [B] or features [B, T, E]."""
    text = jnp.asarray(text)
    text = text[:, None] if text.ndim == 1 else text
    mask = jnp.ones(text.shape[:2], bool) if mask is None else jnp.asarray(mask)
    cfg = self.run.sample.replace(**options)
    keys = jax.random.split(jax.random.key(0), len(text))
    draw = jax.jit(sampling.generate, static_argnums=(0, 5))
    return np.asarray(draw(self.net, self.params, text, mask, keys, cfg))


def _logits(module, z):
  return module.head.logits(z)


@pytest.fixture(scope="module")
def converted(fixtures, tmp_path_factory):
  @functools.cache
  def get(name: str) -> Model:
    case, folder = CASES[name], fixtures / name
    config = json.loads((folder / "config.json").read_text())
    changes = case.changes(config) | {"model.dtype": "float32"}
    out = tmp_path_factory.mktemp(name)
    if case.kind.startswith("var"):  # Its inputs are the tokenizer's.
      changes["tokenizer.path"] = str(out / "tokenizer")
      of = {k.split(".")[1]: v for k, v in changes.items() if k.startswith("tokenizer")}
      of = {k: v for k, v in of.items() if k != "path"}
      of["image_size"] = changes["data.image_size"]
      tokenizer = tokenizers.FAMILIES["var_vq"]
      family.convert(tokenizer, folder / case.file, out / "tokenizer", of)
    entry = models.FAMILIES[case.kind].change(changes)
    params = family.convert(entry, folder / case.file, out / "model")
    entry = entry.change({})
    params = jax.tree.map(jnp.asarray, params)
    cases = np.load(folder / "cases.npz")
    return Model(Net.of(entry.config), params, cases, config, entry.config)

  return get


def close(got, want, gate=CLOSE):
  np.testing.assert_allclose(got, want, rtol=0, atol=gate * np.abs(want).max())


def test_mar_backbone(converted):
  """Also where the encoder reads no more tokens than the row with most has."""
  m = converted("mar")
  mask = m.cases["backbone/mask"].astype(bool)
  for most in (0, int((~mask).sum(1).max())):
    plan = random_order._plan(mask.shape[1], jnp.asarray(mask), most)
    got = m.outputs(m.cases["backbone/tokens"], plan, m.cases["backbone/labels"])
    close(got, m.cases["backbone/z"])


class _MAR(sampling.Decoder):
  """Denoises with the fixture's noise, which it has by position."""

  noises: Any = None

  def draw(self, z, positions, stage, *, known, decoded):
    guidance = 1 + (self.options.guidance - 1) * decoded
    rows = jnp.arange(len(positions))[:, None]
    first, later = (a[..., rows, positions, :] for a in self.noises)
    diffusion = Diffusion(1000).respace(len(later), "ancestral")

    def run(m):
      both = jnp.stack(jnp.split(z, 2))
      cond, times = (
        m.head.net.condition(both),
        m.head.net.time(jnp.asarray(diffusion.tables["timestep"]), z.dtype),
      )

      def network(x, i):
        y = cond + times[i]
        x = jnp.broadcast_to(x, (*y.shape[:-1], x.shape[-1]))
        return guide(m.head.net.denoise(x, y), True, guidance)

      # The fixture counts reverse steps from the first one.
      noise = lambda i: later[len(later) - 1 - i]
      return diffusion.sample(network, first, noise, 1.0, 0.0, solver="ancestral")

    return self.net.module.apply({"params": self.params}, method=run), None


def test_mar_sampler(converted, monkeypatch):
  m = converted("mar")
  orders, counts = m.cases["sampler/orders"], m.cases["sampler/tokens_per_step"]
  b, n = orders.shape
  steps, channels = int(m.cases["sampler/num_iter"]), m.net.tokens.channels
  left = random_order.remaining(n, steps)
  np.testing.assert_array_equal(left[:-1] - left[1:], counts)
  reverse = int(m.config["num_sampling_steps"])
  first, later = np.zeros((b, n, channels)), np.zeros((reverse, b, n, channels))
  for k in range(steps):
    now = np.zeros((b, n), bool)
    now[np.arange(b)[:, None], orders[:, left[k + 1] : left[k]]] = True
    first[now] = m.cases[f"sampler/noise_init/{k}"]
    later[:, now] = m.cases[f"sampler/noise_steps/{k}"]
  monkeypatch.setattr(
    random_order,
    "permutation",
    lambda key, n: jnp.asarray(orders)[jax.random.key_data(key)[1]],
  )
  keys = jax.random.wrap_key_data(
    jnp.stack([jnp.zeros(b), jnp.arange(b)], 1).astype(jnp.uint32)
  )
  cfg = m.run.sample.replace(
    guidance=float(m.cases["sampler/cfg_scale"]), steps=steps, batch=b
  )
  labels = jnp.asarray(m.cases["sampler/labels"])[:, None]

  def draw(params):
    ones = jnp.ones(labels.shape, bool)
    decoder = _MAR.create(m.net, params, labels, ones, keys, cfg)
    decoder.noises = tuple(jnp.asarray(a, jnp.float32) for a in (first, later))
    return m.net.order.sample(decoder, cfg)

  got = np.asarray(jax.jit(draw)(m.params))
  want = m.cases["sampler/latent_nchw"].transpose(0, 2, 3, 1)
  error = np.linalg.norm(got.reshape(want.shape) - want) / np.linalg.norm(want)
  assert error < 1e-3  # 1e-5 is measured.


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


@pytest.mark.parametrize("name", ["llamagen_c2i", "llamagen_t2i"])
def test_llamagen_samples_greedily(converted, name):
  """Guidance until step k of the reference is until two tokens later here."""
  m = converted(name)
  n = m.net.tokens.length
  for case, options in {
    "plain": dict(guidance=1.0),
    "cfg": dict(guidance=3.0),
    "cfg_interval": dict(guidance=3.0, guidance_to=7 / n),
  }.items():
    got = m.generate(m.cases["condition"], temperature=0.0, top_k=0, **options)
    np.testing.assert_array_equal(got, m.cases[f"greedy_{case}/codes"], case)


def test_llamagen_pads_captions_on_the_left(converted):
  m = converted("llamagen_t2i")
  mask, features = m.cases["emb_masks"].astype(bool), m.cases["condition"]
  text, there = np.zeros_like(features), np.zeros_like(mask)
  for row, (of, real) in enumerate(zip(features, mask)):
    assert real.any() and np.array_equal(np.sort(real), real)  # Padding comes first.
    text[row, : real.sum()], there[row, : real.sum()] = of[real], True
  got = m.generate(text, there, temperature=0.0, top_k=0, guidance=2.0)
  np.testing.assert_array_equal(got, m.cases["greedy_masked/codes"])


@pytest.mark.parametrize("name", ["llamagen_c2i", "llamagen_t2i"])
def test_llamagen_filters(fixtures, name):
  cases = np.load(fixtures / name / "cases.npz")
  for case in (k for k in cases.files if k.startswith("filter/top_")):
    option, value = case.removeprefix("filter/")[:5], case.removeprefix("filter/")[5:]
    draw = CategoricalDraw(**{option: type(getattr(CategoricalDraw, option))(value)})
    got = filtered(jnp.asarray(cases["filter/in"]), 1.0, draw)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(cases[case]))


def test_maskgit_logits(converted):
  m = converted("maskgit")
  ids = m.cases["input_ids"]
  hidden = jnp.asarray(ids[:, 1:] < 0)
  tokens = jnp.maximum(jnp.asarray(ids[:, 1:]), 0)
  plan = random_order._plan(hidden.shape[1], hidden)
  z = m.outputs(tokens, plan, m.cases["labels"])
  close(m.logits(z), m.cases["logits"][:, 1:, : m.net.tokens.vocab])


def test_maskgit_decodes_step_by_step(converted):
  """The order's steps with the fixture's noise, and its sampler's with the same."""
  m = converted("maskgit")
  noise = {k: m.cases[f"decode/noise_{k}"] for k in ("categorical", "confidence")}
  steps, vocab = int(m.config["num_iter"]), m.net.tokens.vocab
  b, n = len(m.cases["labels"]), m.net.tokens.length
  left = random_order.remaining(n, steps, single=True)
  of_left = np.zeros(n + 1, int)
  of_left[left[:-1]] = np.arange(steps)
  seen = []

  class Given(sampling.Decoder):
    def draw(self, z, positions, stage, **_):
      step = jnp.asarray(of_left)[positions[0, 0] // n]
      logits = m.logits(z)
      tokens = (logits + jnp.asarray(noise["categorical"])[step, :, 1:, :vocab]).argmax(
        -1
      )
      score = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)
      return tokens, score[..., 0]

    def noise(self, positions):
      step = jnp.asarray(of_left)[positions[0, 0] // n]
      return jnp.asarray(noise["confidence"])[step, :, 1:]

  reveal = random_order.reveal

  def watched(*args):
    tokens, unknown = reveal(*args)
    jax.debug.callback(lambda t, u: seen.append((t, u)), tokens, unknown, ordered=True)
    return tokens, unknown

  labels = jnp.asarray(m.cases["labels"])[:, None]
  cfg = m.run.sample.replace(
    steps=steps, choice_temperature=float(m.config["choice_temperature"]), batch=b
  )
  keys = jax.random.split(jax.random.key(0), b)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(random_order, "reveal", watched)
    ones = jnp.ones(labels.shape, bool)
    decoder = Given.create(m.net, m.params, labels, ones, keys, cfg)
    got = np.asarray(m.net.order.sample(decoder, cfg))
    jax.effects_barrier()
  np.testing.assert_array_equal(got, m.cases["decode/final"][:, 1:])
  for step, (tokens, unknown) in enumerate(seen[:-1]):
    want = m.cases["decode/after_step"][step][:, 1:]
    np.testing.assert_array_equal(np.where(unknown, -1, tokens), want, f"step {step}")
  assert len(seen) == steps


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


def test_rar_samples_greedily(converted):
  m = converted("rar")
  said = m.config["sampling"]
  got = m.generate(
    m.cases["labels"],
    temperature=0.0,
    guidance=said["guidance_scale"],
    guidance_power=said["guidance_scale_pow"],
  )
  np.testing.assert_array_equal(got, m.cases["greedy/codes"])


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


@pytest.mark.parametrize("name", ["var", "var_shared"])
def test_var_samples_greedily(converted, name):
  m = converted(name)
  options = dict(temperature=0.0, top_k=0, top_p=1.0)
  got = m.generate(m.cases["labels"], guidance=2.5, **options)  # cfg = 1.5.
  np.testing.assert_array_equal(got, m.cases["greedy/codes"])


def test_what_does_not_fit_is_one_line(fixtures, tmp_path):
  """Another family, another size, a tensor too many, one too few."""
  folder = fixtures / "llamagen_c2i"
  config = json.loads((folder / "config.json").read_text())
  changes, file = _llamagen(config), folder / "weights.safetensors"
  weights = safetensors.numpy.load_file(file)
  more, fewer = tmp_path / "more.safetensors", tmp_path / "fewer.safetensors"
  safetensors.numpy.save_file(weights | {"odd.weight": np.ones(3)}, more)
  name = sorted(weights)[-1]
  safetensors.numpy.save_file({k: v for k, v in weights.items() if k != name}, fewer)
  larger = changes | {"model.trunk.width": 2 * config["dim"]}
  for kind, source, given, said in (
    ("rar_b", file, {}, "is no rar_b of these sizes; .* missing: .* left over: "),
    ("llamagen_b", file, larger, r"of other shapes: .*head/table/w \(40, 128\)"),
    ("llamagen_b", more, changes, r"1 left over: odd.weight \(3,\)"),
    ("llamagen_b", fewer, changes, f"1 missing: .*{name}"),
    ("llamagen_b", file, changes | {"model.depth": 3}, "unknown key 'model.depth'"),
  ):
    with pytest.raises(ConfigError, match=said) as e:
      family.convert(models.FAMILIES[kind], source, tmp_path / "out", given)
    assert "\n" not in str(e.value)
  assert not (tmp_path / "out").exists()
