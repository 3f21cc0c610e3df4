"""Diffusion head: the public reference's numbers, and Gaussian data in closed form."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fluid import config
from fluid.models import build, heads
from fluid.models import diffusion as module
from fluid.models.conditions.text import TextConfig
from fluid.models.diffusion import Diffusion, respaced_steps
from fluid.models.heads.diffusion import Denoiser, guide
from fluid.models.orders.random import Random
from fluid.models.trunks.fluid import FluidConfig
from fluid.text.learned import LearnedConfig
from fluid.tokenizers.base import TokenSpec


def relative(got, want):
  got, want = (np.asarray(a, np.float64) for a in (got, want))
  return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.fixture(scope="module")
def reference(fixtures):
  """The reference's tiny MAR: our denoiser with its weights, and its cases."""
  folder = fixtures / "mar"
  cfg = json.loads((folder / "config.json").read_text())
  weights = safetensors.numpy.load_file(folder / "weights.safetensors")
  cases = dict(np.load(folder / "cases.npz"))
  pick = lambda name: {
    "w": weights[f"diffloss.net.{name}.weight"].T,
    "b": weights[f"diffloss.net.{name}.bias"],
  }
  params = {
    "input": pick("input_proj"),
    "time_up": pick("time_embed.mlp.0"),
    "time_down": pick("time_embed.mlp.2"),
    "cond": pick("cond_embed"),
    "modulation": pick("final_layer.adaLN_modulation.1"),
    "output": pick("final_layer.linear"),
  }
  for i in range(cfg["diffloss_d"]):
    at = f"res_blocks.{i}"
    norm = pick(f"{at}.in_ln")
    params[f"blocks_{i}"] = {
      "norm": {"scale": norm["w"], "bias": norm["b"]},
      "up": pick(f"{at}.mlp.0"),
      "down": pick(f"{at}.mlp.2"),
      "modulation": pick(f"{at}.adaLN_modulation.1"),
    }
  net = Denoiser(
    cfg["diffloss_d"], cfg["diffloss_w"], cfg["vae_embed_dim"], cfg["decoder_embed_dim"]
  )
  apply = jax.jit(lambda *a: net.apply({"params": params}, *a))
  return apply, cases


def test_network_and_losses_match_the_reference(reference):
  apply, cases = reference
  case = {k.split("/", 1)[1]: v for k, v in cases.items() if k.startswith("diffloss/")}
  z = cases["backbone/z"].reshape(-1, cases["backbone/z"].shape[-1])
  x0 = cases["backbone/tokens"].reshape(len(z), -1)
  t, noise = case["t"].astype(int), case["noise"]
  diffusion = Diffusion(1000)
  x_t = diffusion.noised(x0, t, noise)
  assert relative(x_t, case["x_t"]) < 1e-5
  output = apply(x_t, t, z)
  assert relative(output, case["net"]) < 1e-4
  mse, vb = diffusion.losses(output, x0, t, noise)
  np.testing.assert_allclose(mse, case["mse"], rtol=1e-4)
  np.testing.assert_allclose(vb, case["vb"], rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(mse + vb, case["loss"], rtol=1e-4)


@pytest.mark.parametrize("kind", ["plain", "cfg"])
def test_samples_match_the_reference(reference, kind):
  """20 respaced steps with the reference's own noise."""
  apply, cases = reference
  case = {
    k.split("/")[-1]: v
    for k, v in cases.items()
    if k.startswith(f"head_sample/{kind}/")
  }
  guided = kind == "cfg"
  z = case["z"]
  diffusion = Diffusion(1000).respace(20)
  steps = jnp.asarray(diffusion.tables["timestep"])
  first, noise = case["noise_init"], jnp.asarray(case["noise_steps"])
  if guided:
    z = np.stack(np.split(z, 2), 1)  # Conditional first, as here.
    n = len(z)
    first, noise = first[:n], noise[:, :n]
  z = jnp.asarray(z)

  def network(x, i):
    rows = x[:, None] if guided else x
    rows = jnp.broadcast_to(rows, (*z.shape[:-1], x.shape[-1]))
    return guide(
      apply(rows, jnp.full(z.shape[:-1], steps[i]), z),
      guided,
      float(case["cfg_scale"]) if guided else 1.0,
    )

  got = diffusion.sample(
    network,
    jnp.asarray(first),
    lambda i: noise[len(diffusion) - 1 - i],
    float(case["temperature"]),
  )
  want = case["tokens"][: len(first)]
  assert relative(got, want) < 1e-3


def test_respacing_of_the_reference():
  """Evenly spread, ends included, for the counts in use."""
  for n in (1, 2, 20, 25, 100, 250, 1000):
    steps = respaced_steps(1000, n)
    assert len(set(steps)) == n and steps[0] == 0
    assert n == 1 or steps[-1] == 999
  np.testing.assert_array_equal(respaced_steps(1000, 1000), np.arange(1000))


MEAN, STD = 0.7, 0.5


def gaussian_network(diffusion):
  """The exact eps and log variance of N(MEAN, STD^2) data under `diffusion`."""
  tables = {k: jnp.asarray(v) for k, v in diffusion.tables.items()}

  def network(x, i):
    t = {k: v[i] for k, v in tables.items()}
    a, s, low, high = (
      t[k] for k in ("sqrt_bar", "sqrt_one_minus_bar", "log_variance", "log_beta")
    )
    # E[noise | x_t]: noise and x_t are jointly Gaussian.
    total = a**2 * STD**2 + s**2
    eps = s * (x - a * MEAN) / total
    # Var[x_{t-1} | x_t] = posterior variance + mean_x0^2 Var[x_0 | x_t].
    var = jnp.exp(low) + t["mean_x0"] ** 2 * STD**2 * s**2 / total
    fraction = 2 * (jnp.log(var) - low) / (high - low) - 1
    return jnp.concatenate([eps, jnp.full_like(x, fraction)], -1)

  return network


@pytest.mark.parametrize("steps", [50, 1000])
def test_reverse_process_recovers_mean_and_variance(steps):
  """With the exact network the samples are the data's Gaussian."""
  diffusion = Diffusion(1000).respace(steps)
  n = 20_000
  x = jax.random.normal(jax.random.key(0), (n, 1))
  noise = lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(1), i), (n, 1))
  got = jax.jit(lambda x: diffusion.sample(gaussian_network(diffusion), x, noise))(x)
  np.testing.assert_allclose(got.mean(), MEAN, atol=0.015)
  np.testing.assert_allclose(got.std(), STD, rtol=0.03)
  cold = diffusion.sample(gaussian_network(diffusion), x, noise, 0.5)
  assert cold.std() < 0.9 * got.std()


def ode_error(solver, steps):
  """Distance from the flow's closed form: quantiles of the noise to the data's."""
  diffusion = Diffusion(1000).respace(steps, solver)
  x = jnp.linspace(-2, 2, 9)[:, None]
  alpha, sigma = (diffusion.tables[k][-1] for k in ("sqrt_bar", "sqrt_one_minus_bar"))
  flow = MEAN + STD * (x - alpha * MEAN) / np.hypot(alpha * STD, sigma)
  got = diffusion.sample(gaussian_network(diffusion), x, None, solver=solver)
  return float(jnp.abs(got - flow).max())


def test_solvers_converge_to_the_flow_with_their_order():
  """Twice the steps: DDIM's error falls 2x, that of DPM-Solver++ (2M) at least 4x."""
  ddim, dpmpp = ([ode_error(s, n) for n in (8, 16, 32)] for s in ("ddim", "dpmpp"))
  assert 1.7 < ddim[0] / ddim[1] < 2.3 and 1.7 < ddim[1] / ddim[2] < 2.3
  assert dpmpp[0] / dpmpp[1] > 3.8
  assert dpmpp[1] < ddim[1] / 5 and dpmpp[2] < 0.005


@pytest.mark.parametrize("solver", ["ddim", "dpmpp"])
def test_temperature_of_a_solver_narrows_the_samples(solver):
  diffusion = Diffusion(1000).respace(50, solver)
  x = jax.random.normal(jax.random.key(0), (5_000, 1))
  cool = diffusion.sample(gaussian_network(diffusion), x, None, 0.5, solver=solver)
  np.testing.assert_allclose(cool.mean(), MEAN, atol=0.03)
  np.testing.assert_allclose(cool.std(), 0.5 * STD, rtol=0.05)


def test_losses_of_the_exact_network_in_closed_form():
  """mse -> E Var[noise | x_t]; no other constant eps or variance does better."""
  diffusion = Diffusion(1000)
  n, t = 200_000, 300
  a, s = (float(diffusion.tables[k][t]) for k in ("sqrt_bar", "sqrt_one_minus_bar"))
  x0 = MEAN + STD * jax.random.normal(jax.random.key(0), (n, 1))
  noise = jax.random.normal(jax.random.key(1), (n, 1))
  ts = jnp.full(n, t)
  x_t = diffusion.noised(x0, ts, noise)
  output = gaussian_network(diffusion)(x_t, t)
  mse, vb = diffusion.losses(output, x0, ts, noise)
  want = a**2 * STD**2 / (a**2 * STD**2 + s**2)
  np.testing.assert_allclose(mse.mean(), want, rtol=0.02)
  for d in (0.3, -0.3):  # The variance that minimises the bound is the true one.
    worse = diffusion.losses(output + jnp.array([0.0, d]), x0, ts, noise)[1]
    assert worse.mean() > vb.mean()


def test_bound_is_exact_where_little_noise_is_left():
  """Against float64, by way of the two means: they agree to three digits there."""
  diffusion, draw = Diffusion(1000), np.random.default_rng(0)
  t = np.repeat([0, 1, 2, 10, 300], 200)
  x0, noise, eps, fraction = draw.normal(size=(4, len(t), 3)).clip(-0.9, 0.9)
  bar = np.cumprod(1 - module.cosine_betas(1000))
  prev = np.append(1.0, bar[:-1])
  beta = 1 - bar / prev
  variance = beta * (1 - prev) / (1 - bar)
  variance[0] = variance[1]
  at = lambda table: table[t][:, None]
  x_t = np.sqrt(at(bar)) * x0 + np.sqrt(1 - at(bar)) * noise
  implied = (x_t - np.sqrt(1 - at(bar)) * eps) / np.sqrt(at(bar))
  mean, true_mean = (
    at(beta * np.sqrt(prev) / (1 - bar)) * x
    + at((1 - prev) * np.sqrt(1 - beta) / (1 - bar)) * x_t
    for x in (implied, x0)
  )
  log_var = np.log(at(variance)) + (fraction + 1) / 2 * np.log(at(beta / variance))
  curve = lambda u: 2 * np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)
  ends = [curve((x0 - mean + s / 255) * np.exp(-log_var / 2)) for s in (-1, 1)]
  ends = np.where(x0 > mean, [-ends[1], -ends[0]], ends)
  low, high = 1 / (1 + np.exp(-ends))
  nll = -np.log(np.maximum(high - low, 1e-12))
  ratio = at(variance) / np.exp(log_var)
  kl = (ratio - 1 - np.log(ratio) + (true_mean - mean) ** 2 / np.exp(log_var)) / 2
  want = np.where(t == 0, nll.mean(-1), kl.mean(-1)) / np.log(2)
  output = jnp.float32(np.concatenate([eps, fraction], -1))
  _, vb = diffusion.losses(output, jnp.float32(x0), t, jnp.float32(noise))
  np.testing.assert_allclose(vb, want, rtol=3e-6, atol=1e-6)


def test_bound_moves_the_variance_only():
  diffusion = Diffusion(1000)
  x0, noise, t = jnp.ones((4, 2)) * 0.3, jnp.ones((4, 2)) * 0.2, jnp.arange(4) * 200
  grad = jax.grad(lambda o: diffusion.losses(o, x0, t, noise)[1].sum())(
    jnp.full((4, 4), 0.1)
  )
  assert (grad[:, :2] == 0).all() and (jnp.abs(grad[:, 2:]) > 0).all()


@pytest.mark.slow
def test_head_learns_gaussian_tokens():
  """Trained on one Gaussian a position, samples have its mean and deviation."""
  import optax

  spec = TokenSpec("continuous", 4, (2, 2), channels=2)
  model = config.Model(
    dtype="float32",
    head=heads.DiffusionConfig(layers=2, steps=200),
    order=Random(),
    trunk=FluidConfig(layers=1, width=32, heads=2, remat="none"),
    condition=TextConfig(layers=0, width=4, drop=0.0),
  )
  net = build(
    model,
    spec,
    LearnedConfig(length=2),
    4,
  )
  mean = np.array([-1.0, 0.0, 0.5, 1.0])[:, None] * np.array([1.0, -1.0])
  b = net.example(256)
  params = jax.jit(net.init)(jax.random.key(0))
  tx = optax.adam(optax.cosine_decay_schedule(4e-3, 600))

  @jax.jit
  def step(params, opt, i):
    key = jax.random.fold_in(jax.random.key(1), i)
    tokens = mean + 0.3 * jax.random.normal(key, (256, 4, 2))
    keys = jax.random.split(key, 256)

    def f(p):
      out = net.loss(p, b | {"tokens": tokens}, keys, train=True)
      return (out["loss"] * out["mask"]).sum() / out["mask"].sum()

    g = jax.grad(f)(params)
    u, opt = tx.update(g, opt)
    return optax.apply_updates(params, u), opt

  opt = tx.init(params)
  for i in range(600):
    params, opt = step(params, opt, i)
  from fluid import sampling

  got = jax.jit(sampling.generate, static_argnums=(0, 5))(
    net,
    params,
    b["text"],
    b["text_mask"],
    jax.random.split(jax.random.key(9), 256),
    model.sample(guidance=1.0, steps=4, diffusion_steps=50, clip=3.0),
  )
  np.testing.assert_allclose(got.mean(0), mean, atol=0.12)
  np.testing.assert_allclose(got.std(0), 0.3, atol=0.08)


def test_binned_likelihood_is_as_exact_above_the_mean_as_below():
  mean, log_std = 0.1, np.log(0.02)
  x = mean + 0.02 * np.linspace(-6, 6, 49)
  found = module._discretized_log_likelihood(
    jnp.float32(x), jnp.float32(x - mean), jnp.float32(log_std)
  )
  curve = lambda u: 2 * np.sqrt(2 / np.pi) * (u + 0.044715 * u**3)
  ends = [curve((x - mean + side / 255) / 0.02) for side in (-1, 1)]
  # In float64, and where the bin is above the mean, from the other side.
  ends = np.where(x > mean, [-ends[1], -ends[0]], ends)
  low, high = 1 / (1 + np.exp(-ends))
  np.testing.assert_allclose(found, np.log(np.maximum(high - low, 1e-12)), rtol=1e-4)


def test_the_bound_is_the_density_where_the_reverse_chain_is_exact():
  """Of standard normal data all x_t are, and the reverse steps are known: the terms of
  any x_0 add up to -log p(x_0), in expectation over the noise."""
  diffusion = module.Diffusion(100)
  x0 = jnp.asarray([[-1.5, 0.2, 0.9]])
  t = jnp.arange(100)
  shape = (2000, 100, 3)
  noise = jax.random.normal(jax.random.key(0), shape)
  at = jnp.broadcast_to(t, shape[:2])
  x_t = diffusion.noised(x0, at, noise)
  eps = diffusion.at("sqrt_one_minus_bar", at) * x_t
  output = jnp.concatenate([eps, jnp.ones_like(eps)], -1)  # The upper bound: beta.
  terms = diffusion.bound(output, x0, at, noise)
  sums = np.asarray(terms.sum(1) + diffusion.prior(x0[0]), np.float64)
  want = 0.5 * (x0**2 + np.log(2 * np.pi)).sum()
  sem = sums.std() / np.sqrt(len(sums))
  assert sem < 0.01 * want
  assert abs(sums.mean() - want) < 4 * sem
  # By steps that are drawn as the head draws them.
  u = jnp.asarray(np.random.default_rng(0).random((4, len(sums) // 4)))
  drawn, chances = (np.asarray(a).reshape(-1) for a in diffusion.even_in_snr(u))
  weighed = np.asarray(terms, np.float64)[np.arange(len(sums)), drawn] / chances
  weighed += float(diffusion.prior(x0[0]))
  sem = weighed.std() / np.sqrt(len(sums))
  assert abs(weighed.mean() - want) < 4 * sem and sem < 0.2 * want
  every, share = diffusion.even_in_snr((jnp.arange(1 << 16) + 0.5) / (1 << 16))
  assert len(np.unique(every)) == 100
  found, share = np.bincount(every) / (1 << 16), np.asarray(share)
  assert found[7] == share[np.asarray(every) == 7][0]
