"""The grid, by independent witnesses: gradients, equalities, every mesh."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluid import config, flops, sampling
from fluid.models import HEADS, ORDERS, build, orders
from fluid.models import stack as transformer
from tests.nets import SPECS, B, L, T, batch_of, cells, keys_of, params_of, tiny

generate = jax.jit(sampling.generate, static_argnums=(0, 5))


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def loss(net, params, batch, keys, train=True):
  return net.loss(params, batch, keys, train=train)


@functools.partial(jax.jit, static_argnums=0)
def trunk(net, params, batch, tokens=None, x=None):
  """Trunk outputs [B, L, D] for tokens or embedded x, with the masks of keys_of."""

  def f(m):
    n = len(batch["text"])
    text, mask = m.aligner(batch["text"], batch["text_mask"], jnp.zeros(n, bool))
    y, _ = m.order.corrupt(
      keys_of(n), m.head.embed(tokens) if x is None else x, m.fill()
    )
    return m.through(y, text, mask)

  return net.module.apply({"params": params}, method=f)


@pytest.mark.parametrize("head", HEADS)
def test_raster_is_causal_by_gradient(head):
  """The trunk's output at i moves with embedded tokens before i and no others."""
  net = tiny(head, "raster")
  params, batch = params_of(net), batch_of(net, 1)

  x = jax.random.normal(jax.random.key(0), (1, L, 32))
  weights = jax.random.normal(jax.random.key(1), (32,))
  grad = jax.jit(jax.grad(lambda x, i: trunk(net, params, batch, x=x)[0, i] @ weights))
  jac = np.stack([grad(x, i)[0] for i in range(L)])  # [L out, L in, D]
  moved = np.abs(jac).max(-1) > 1e-6
  np.testing.assert_array_equal(moved, np.tril(np.ones((L, L), bool), -1))


@pytest.mark.parametrize("head", HEADS)
def test_random_order_does_not_leak_masked_tokens(head):
  """Other values at masked positions change no trunk output; visible ones do."""
  net = tiny(head, "random")
  params, batch = params_of(net), batch_of(net)
  _, mask = net.order.corrupt(keys_of(), jnp.zeros((B, L, 1)), jnp.zeros(1))
  z = lambda tokens: trunk(net, params, batch, tokens)
  other = batch_of(net, seed=1)["tokens"]
  pick = lambda where: jnp.where(
    where.reshape(where.shape + (1,) * (other.ndim - 2)), other, batch["tokens"]
  )
  np.testing.assert_array_equal(z(pick(mask)), z(batch["tokens"]))
  assert np.abs(z(pick(~mask)) - z(batch["tokens"])).max() > 1e-3


@pytest.mark.parametrize("head", HEADS)
def test_cached_decode_equals_full_forward(head):
  """Feeding sampled tokens through the uncached trunk gives the same next tokens."""
  net = tiny(head, "raster")
  params, batch = params_of(net), batch_of(net)
  cfg = config.Sample(guidance=1.0, diffusion_steps=4)
  tokens = generate(net, params, batch["text"], batch["text_mask"], keys_of(), cfg)
  z = trunk(net, params, batch, tokens)
  keys = jax.vmap(
    lambda k: jax.vmap(lambda p: jax.random.fold_in(k, p))(jnp.arange(L))
  )(keys_of())
  full = jax.jit(lambda p: net.apply(p, "draw", z, keys, None, 1.0, cfg))(params)
  np.testing.assert_allclose(full, tokens, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("head", HEADS)
def test_outputs_of_some_positions_equal_those_of_all(head):
  """Sampling's trunk, with text projected once and the last block on few tokens."""
  net = tiny(head, "random")
  params, batch = params_of(net), batch_of(net)
  _, unknown = net.order.corrupt(keys_of(), jnp.zeros((B, L, 1)), jnp.zeros(1))
  at = jax.vmap(lambda k: orders.permutation(k, L)[:5])(keys_of())

  def few(params):
    text, mask = net.apply(
      params, "encode_text", batch["text"], batch["text_mask"], jnp.zeros(B, bool)
    )
    text_kv = transformer.project_text(params["trunk"], text, net.model.heads)
    return net.apply(params, "fill_in", batch["tokens"], unknown, at, text_kv, mask)

  full = trunk(net, params, batch, batch["tokens"])
  want = jnp.take_along_axis(full, at[..., None], 1)
  np.testing.assert_allclose(jax.jit(few)(params), want, rtol=1e-4, atol=1e-4)


class _Recorder:
  """A net of positions: what is drawn is the step at which it was drawn."""

  def __init__(self, b, order):
    self.keys, self.length, self.count = keys_of(b), L, 0

  def blank(self):
    return jnp.zeros((len(self.keys), L), jnp.int32)

  def fill_in(self, tokens, unknown, positions, stage):
    # A position is unknown exactly while it holds its blank.
    marks = tokens * 10 + unknown
    return jnp.take_along_axis(marks, positions, 1)[..., None].astype(float)

  def start(self):
    return jnp.zeros(()), jnp.zeros((len(self.keys), 1, 1))

  def decode(self, cache, x, position):
    return jnp.zeros_like(x), cache

  def embed(self, tokens):
    return tokens[..., None].astype(float)

  def draw(self, z, positions, decoded, stage):
    # Drawing from a known position (z >= 10) is remembered as a large number.
    return jnp.where(z[..., 0] >= 10, 10_000, 0).astype(jnp.int32) + decoded


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, 3, 7, 15, 16, 40])
def test_every_position_is_revealed_once(order, steps):
  net = _Recorder(5, order)
  got = np.asarray(ORDERS[order]().sample(net, config.Sample(steps=steps)))
  left = orders.remaining(L, steps) if order == "random" else np.arange(L, -1, -1)
  expected = np.repeat(L - left[1:], left[:-1] - left[1:])
  assert (got < 1000).all() and (got > 0).all()
  for row in got:
    np.testing.assert_array_equal(np.sort(row), expected)
  if order == "random" and steps > 3:
    assert len({tuple(row) for row in got}) == 5  # Another order for each image.


def test_decoding_schedule_is_the_reference_one():
  """floor(L cos), at least one fewer each step, 1 to 7 tokens for 256 in 64 steps."""
  left = orders.remaining(256, 64)
  counts = left[:-1] - left[1:]
  assert len(left) == 65 and left[-1] == 0 and counts.min() == 1 and counts.max() == 7
  for length, steps in itertools.product((1, 2, 16, 63, 256), (1, 2, 16, 64, 300)):
    left = orders.remaining(length, steps)
    assert left[0] == length and left[-1] == 0 and (np.diff(left) < 0).all()
    groups = orders.segments(left, [k > length / 2 for k in left[:-1]])
    flat = [n for g in groups for n in g[2]]
    np.testing.assert_array_equal(flat, -np.diff(left))


@pytest.mark.parametrize(
  "mask,mean,low",
  [
    ("cosine", 2 / np.pi, 0),
    ("arccos", 2 / np.pi, 0),
    ("uniform", 0.5, 0),
    ("truncated_normal", 0.8655, 0.7),
  ],
)
def test_masked_fraction(mask, mean, low):
  """Means in closed form: E cos = E arccos = 2/pi; half a truncated normal."""
  cfg = config.Model(mask=mask, mask_min=low)
  rate = jax.vmap(lambda k: orders.masked_fraction(k, cfg))(
    jax.random.split(jax.random.key(0), 20_000)
  )
  assert low <= rate.min() and rate.max() <= 1
  if mask == "truncated_normal":
    a = (low - 1) / 0.25
    from scipy import stats

    mean = stats.truncnorm.mean(a, 0, loc=1, scale=0.25)
  np.testing.assert_allclose(rate.mean(), mean, atol=0.006)


@cells
def test_guidance_one_is_conditional(head, order):
  """w = 1 + 1e-7 runs the guided program; the plain one must agree."""
  net = tiny(head, order)
  params, batch = params_of(net), batch_of(net)
  draw = lambda w: generate(
    net,
    params,
    batch["text"],
    batch["text_mask"],
    keys_of(),
    config.Sample(guidance=w, steps=5, diffusion_steps=4, guidance_schedule="constant"),
  )
  np.testing.assert_allclose(draw(1.0), draw(1 + 1e-7), rtol=1e-3, atol=1e-4)


@cells
def test_guidance_outside_its_interval_is_off(head, order):
  """Never inside it: w has no say. Inside for half the tokens: neither of the two."""
  net = tiny(head, order)
  params, b = params_of(net), batch_of(net)

  def draw(**changes):
    cfg = config.Sample(steps=5, diffusion_steps=4, clip=3.0, **changes)
    return generate(net, params, b["text"], b["text_mask"], keys_of(), cfg)

  plain, full = draw(guidance=1.0), draw(guidance=6.0)
  never, late = (
    draw(guidance=6.0, guidance_to=0.0),
    draw(guidance=6.0, guidance_from=0.5),
  )
  if head == "categorical":  # A random denoiser magnifies rounding at every step.
    np.testing.assert_array_equal(never, plain)
    np.testing.assert_array_equal(never, draw(guidance=3.0, guidance_to=0.0))
  assert not np.allclose(late, plain) and not np.allclose(late, full)


@pytest.mark.parametrize("order", ORDERS)
def test_diffusion_steps_fall_from_first_to_last(order):
  net = tiny("diffusion", order)
  params, b = params_of(net), batch_of(net)

  def draw(**changes):
    cfg = config.Sample(steps=7, guidance=1.0, solver="dpmpp", clip=3.0, **changes)
    return generate(net, params, b["text"], b["text_mask"], keys_of(), cfg)

  even, falling = (draw(diffusion_steps=8, diffusion_steps_last=n) for n in (0, 2))
  same = draw(diffusion_steps=8, diffusion_steps_last=8)
  np.testing.assert_array_equal(even, same)
  assert not np.allclose(even, falling)
  cfg = config.Sample(diffusion_steps=50, diffusion_steps_last=5)
  steps = [orders.stage(cfg, k / 8).diffusion_steps for k in range(8)]
  assert steps == [50, 50, 35, 35, 20, 20, 5, 5]


@cells
def test_guidance_and_text_change_samples(head, order):
  net = tiny(head, order)
  params, batch = params_of(net), batch_of(net)
  draw = lambda text, w: np.asarray(
    generate(
      net,
      params,
      text,
      batch["text_mask"],
      keys_of(),
      config.Sample(guidance=w, steps=5, diffusion_steps=4),
    )
  )
  base = draw(batch["text"], 1.0)
  assert np.abs(base - draw(batch["text"], 6.0)).max() > 1e-3
  assert np.abs(base - draw((batch["text"] + 1) % net.vocab, 1.0)).max() > 1e-3


@cells
def test_padding_tokens_of_the_text_change_nothing(head, order):
  net = tiny(head, order)
  params, batch = params_of(net), batch_of(net)
  of = lambda b: loss(net, params, b, keys_of(), train=False)["loss"]
  changed = batch | {"text": jnp.where(batch["text_mask"], batch["text"], 7)}
  np.testing.assert_array_equal(of(batch), of(changed))


@cells
def test_losses_and_samples_do_not_depend_on_the_batch(head, order):
  """Rows computed together equal rows computed alone: keys are per example."""
  net = tiny(head, order)
  params, batch = params_of(net), batch_of(net)
  part = jax.tree.map(lambda a: a[2:4], batch)
  whole = loss(net, params, batch, keys_of())
  alone = loss(net, params, part, keys_of()[2:4])
  np.testing.assert_array_equal(whole["mask"][2:4], alone["mask"])
  np.testing.assert_allclose(whole["loss"][2:4], alone["loss"], rtol=1e-4, atol=1e-5)
  cfg = config.Sample(guidance=2.0, steps=4, diffusion_steps=3)
  draw = lambda b, k: generate(net, params, b["text"], b["text_mask"], k, cfg)
  np.testing.assert_allclose(
    draw(batch, keys_of())[2:4], draw(part, keys_of()[2:4]), rtol=1e-3, atol=1e-4
  )


@cells
def test_scan_and_remat_change_nothing(head, order):
  """Loss and gradient: the loop unrolled, and each way to rematerialise."""
  nets = [
    tiny(head, order, scan=scan, remat=remat)
    for scan, remat in [(True, "none"), (True, "block"), (False, "dots")]
  ]
  params, batch = params_of(nets[0]), batch_of(nets[0])

  def f(net, p):
    out = net.loss(p, batch, keys_of(), train=True)
    return (out["loss"] * out["mask"]).sum() / out["mask"].sum()

  want = jax.jit(jax.value_and_grad(lambda p: f(nets[0], p)))(params)
  for net in nets[1:]:
    got = jax.jit(jax.value_and_grad(lambda p, net=net: f(net, p)))(params)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), want, got
    )


def test_rematerialisation_repeats_attention_alone_or_most_products():
  found = {}
  for remat in ("none", "dots", "block"):
    net = tiny("categorical", "raster", remat=remat)
    loss = lambda p, *a, net=net: net.loss(p, *a, train=True)["loss"].sum()
    found[remat] = flops.traced(
      jax.grad(loss), params_of(net), batch_of(net), keys_of()
    )
  again = {k: v - found["none"] for k, v in found.items()}
  m, n, t = net.model, net.tokens.length, net.text.length
  pairs = m.layers * (n * n + n * t) + m.aligner_layers * t * t
  assert again["dots"] == 4 * B * m.width * pairs
  forward = flops.forward(net)
  assert 0.6 < again["block"] / (B * (forward["core"] + forward["aligner"])) < 1


def test_stack_equals_a_loop_over_its_layers():
  """The scanned stack against its block applied by hand, layer by layer."""
  from fluid.models.layers import Block, Norm
  from fluid.models.stack import Stack

  stack = Stack(3, 32, 2, 64, causal=True)
  x = jax.random.normal(jax.random.key(0), (2, L, 32))
  text, mask = jax.random.normal(jax.random.key(1), (2, T, 32)), jnp.ones((2, T), bool)
  p = stack.init(jax.random.key(2), x, text=text, text_mask=mask)["params"]
  want = stack.apply({"params": p}, x, text=text, text_mask=mask)
  for i in range(3):
    layer = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
    x, _ = Block(32, 2, 64, True).apply({"params": layer}, x, text, mask, None)
  x = Norm().apply({"params": p["norm"]}, x)
  np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-5)


def test_head_must_fit_the_tokens():
  with pytest.raises(config.ConfigError, match="needs discrete tokens"):
    build(config.Model(head="categorical"), SPECS["continuous"], config.Text(), 9)
