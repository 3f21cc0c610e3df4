"""Published models draw what their references draw from the same noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluid import sampling
from fluid.models.diffusion import Diffusion
from fluid.models.heads.categorical import CategoricalDraw, filtered
from fluid.models.heads.diffusion import guide
from fluid.models.orders import random as random_order


class _MAR(sampling.Decoder):
  """Denoises with the fixture's noise, which it has by position."""

  noises: Any = None

  def draw(self, z, positions, stage, *, known, decoded):
    guidance = 1 + (self.options.guidance - 1) * decoded
    rows = jnp.arange(len(positions))[:, None]
    first, later = (a[..., rows, positions, :] for a in self.noises)
    diffusion = Diffusion(1000).respace(len(later), "ancestral")

    def run(m):
      both = z.reshape(len(positions), 2, *z.shape[1:])
      cond, times = (
        m.head.net.condition(both),
        m.head.net.time(jnp.asarray(diffusion.tables["timestep"]), z.dtype),
      )

      def network(x, i):
        y = cond + times[i]
        x = jnp.broadcast_to(x[:, None], (*y.shape[:-1], x.shape[-1]))
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
def test_var_samples_greedily(converted, name):
  m = converted(name)
  options = dict(temperature=0.0, top_k=0, top_p=1.0)
  got = m.generate(m.cases["labels"], guidance=2.5, **options)  # cfg = 1.5.
  np.testing.assert_array_equal(got, m.cases["greedy/codes"])
