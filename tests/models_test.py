"""The grid, by independent witnesses: gradients, equalities, every mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluid import config, flops, sampling
from fluid.models import build
from fluid.models.attention import block_mask
from fluid.models.orders import random as random_order
from fluid.models.orders.base import stage
from fluid.models.plan import take
from tests.nets import (
  GRID,
  SPECS,
  B,
  L,
  T,
  batch_of,
  cells,
  keys_of,
  options,
  params_of,
  part,
  tiny,
)

generate = jax.jit(sampling.generate, static_argnums=(0, 5))


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def loss(net, params, batch, keys, train=True):
  return net.loss(params, batch, keys, train=train)


def plan_of(net, n=B):
  return net.order.plan(keys_of(n), None, net.tokens)


@functools.partial(jax.jit, static_argnums=0)
def trunk(net, params, batch, tokens=None, x=None):
  """Trunk outputs [B, S, D] for tokens or embedded x, with the plan of keys_of."""
  n = len(batch["text"])

  def f(m):
    cond = m.condition(batch["text"], batch["text_mask"], jnp.zeros(n, bool))
    embedded = m.embed(tokens) if x is None else x
    return m._trunk(embedded, plan_of(net, n), cond)[0]

  return net.module.apply({"params": params}, method=f)


@cells
def test_outputs_see_what_the_plan_shows_by_gradient(cell):
  """An output moves with the tokens that its slot sees, and with no others."""
  net = tiny(cell)
  params, batch = params_of(net), batch_of(net, 1)
  plan = plan_of(net, 1)
  embedded = jax.eval_shape(net.embed, params, batch["tokens"])
  x = jax.random.normal(jax.random.key(0), embedded.shape)
  weights = jax.random.normal(jax.random.key(1), (32,))
  jac = jax.jit(jax.jacrev(lambda x: trunk(net, params, batch, x=x)[0] @ weights))(x)
  moved = np.abs(jac[:, 0]).max(-1) > 1e-6  # [S out, L in]
  read = np.broadcast_to(np.asarray(plan.read), (1, moved.shape[0]))[0]
  shown = read >= 0 if plan.known is None else (read >= 0) & np.asarray(plan.known[0])
  slots = np.arange(len(read))
  sees = np.ones((len(read),) * 2, bool)
  if plan.causal:
    sees = block_mask((1,) * len(read) if plan.causal is True else plan.causal)
  want = np.zeros_like(moved)
  for s in slots[shown]:
    want[:, read[s]] |= sees[:, s]
  np.testing.assert_array_equal(moved, want)
  if net.scales is not None:  # Its inputs are not its tokens one by one.
    return
  targets = np.broadcast_to(np.asarray(plan.targets), (1, len(slots)))[0]
  assert not want[slots, targets][np.asarray(plan.predicted[0])].any()


@cells
def test_hidden_tokens_change_no_loss_but_their_own(cell):
  """Other values of the tokens to predict move no output of the trunk."""
  net = tiny(cell)
  params, batch = params_of(net), batch_of(net)
  plan = plan_of(net)
  if plan.causal:
    pytest.skip("a causal order shows every token to later ones")
  z = lambda tokens: trunk(net, params, batch, tokens)
  other = batch_of(net, seed=1)["tokens"]
  pick = lambda where: jnp.where(
    where.reshape(where.shape + (1,) * (other.ndim - 2)), other, batch["tokens"]
  )
  mask = plan.predicted
  np.testing.assert_array_equal(z(pick(mask)), z(batch["tokens"]))
  assert np.abs(z(pick(~mask)) - z(batch["tokens"])).max() > 1e-3


@cells
def test_cached_decode_equals_full_forward(cell):
  """Feeding sampled tokens through the uncached trunk gives the same next tokens."""
  net = tiny(cell)
  plan = plan_of(net)
  if not plan.causal:
    pytest.skip("only a causal order keeps what it has run")
  params, batch = params_of(net), batch_of(net)
  cfg = options(net, guidance=1.0, diffusion_steps=4)
  tokens = generate(net, params, batch["text"], batch["text_mask"], keys_of(), cfg)
  z = trunk(net, params, batch, tokens)
  fold = lambda k: jax.vmap(lambda p: jax.random.fold_in(k, p))(plan.targets)
  keys = jax.vmap(fold)(keys_of())
  draw = dict(temperature=cfg.temperature, draw=cfg.head)
  full = jax.jit(lambda p: net.draw(p, z, keys, **draw)[0])(params)
  np.testing.assert_allclose(full, take(tokens, plan.targets), rtol=2e-3, atol=2e-4)


@cells
def test_outputs_of_some_slots_equal_those_of_all(cell):
  """Sampling's trunk, with text projected once and the last block on few slots."""
  net = tiny(cell)
  plan = plan_of(net)
  if plan.causal:
    pytest.skip("a causal order runs its slots one by one")
  params, batch = params_of(net), batch_of(net)
  at = jax.vmap(lambda k: random_order.permutation(k, L)[:5])(keys_of())

  def few(params):
    drop = jnp.zeros(B, bool)
    cond = net.condition(params, batch["text"], batch["text_mask"], drop)
    kept = net.start(params, cond)
    return net.run(params, batch["tokens"], plan_of(net), cond, kept, at)[0]

  full = trunk(net, params, batch, batch["tokens"])
  want = jnp.take_along_axis(full, at[..., None], 1)
  np.testing.assert_allclose(jax.jit(few)(params), want, rtol=1e-4, atol=1e-4)


@cells
def test_guidance_one_is_conditional(cell):
  """w = 1 + 1e-7 runs the guided program; the plain one must agree."""
  net = tiny(cell)
  params, batch = params_of(net), batch_of(net)
  draw = lambda w: generate(
    net,
    params,
    batch["text"],
    batch["text_mask"],
    keys_of(),
    options(net, guidance=w, steps=5, diffusion_steps=4, guidance_schedule="constant"),
  )
  np.testing.assert_allclose(draw(1.0), draw(1 + 1e-7), rtol=1e-3, atol=1e-4)


@cells
def test_guidance_outside_its_interval_is_off(cell):
  """Never inside it: w has no say. Inside for half the tokens: neither of the two."""
  net = tiny(cell)
  params, b = params_of(net), batch_of(net)

  def draw(**changes):
    cfg = options(net, steps=5, diffusion_steps=4, clip=3.0, **changes)
    return generate(net, params, b["text"], b["text_mask"], keys_of(), cfg)

  plain, full = draw(guidance=1.0), draw(guidance=6.0)
  never, late = (
    draw(guidance=6.0, guidance_to=0.0),
    draw(guidance=6.0, guidance_from=0.5),
  )
  if cell.head == "categorical":  # A random denoiser magnifies rounding at every step.
    # Programs of B and 2B rows round differently: a near tie may fall either way.
    assert (np.asarray(never) != np.asarray(plain)).mean() < 0.05
    np.testing.assert_array_equal(never, draw(guidance=3.0, guidance_to=0.0))
  assert not np.allclose(late, plain) and not np.allclose(late, full)


@pytest.mark.parametrize("head", ["categorical", "diffusion"])
def test_masks_of_an_image_are_passes_of_their_own(head):
  """The first is that of one mask a step; the others have other keys."""
  one, three = (tiny((head, "random"), order__masks=n) for n in (1, 3))
  params, batch, keys = params_of(one), batch_of(one), keys_of()
  got, want = (loss(net, params, batch, keys) for net in (three, one))
  assert got["mask"].shape == (B, 3 * L)
  for name, value in want.items():
    np.testing.assert_allclose(got[name][:, :L], value, rtol=1e-4, atol=1e-5)
  masks = np.asarray(got["mask"]).reshape(B, 3, L)
  assert (masks[:, 0] != masks[:, 1]).any(1).sum() >= B - 2
  alone = loss(three, params, jax.tree.map(lambda a: a[2:3], batch), keys[2:3])
  np.testing.assert_allclose(alone["loss"][0], got["loss"][2], rtol=1e-4, atol=1e-5)
  evaluated = loss(three, params, batch, keys, train=False)
  assert evaluated["loss"].shape == (B, L)


@pytest.mark.parametrize("order", ["raster", "random"])
def test_diffusion_steps_fall_from_first_to_last(order):
  net = tiny(("diffusion", order))
  params, b = params_of(net), batch_of(net)

  def draw(**changes):
    cfg = options(net, steps=7, guidance=1.0, solver="dpmpp", clip=3.0, **changes)
    return generate(net, params, b["text"], b["text_mask"], keys_of(), cfg)

  even, falling = (draw(diffusion_steps=8, diffusion_steps_last=n) for n in (0, 2))
  same = draw(diffusion_steps=8, diffusion_steps_last=8)
  np.testing.assert_array_equal(even, same)
  assert not np.allclose(even, falling)
  cfg = options(net, diffusion_steps=50, diffusion_steps_last=5)
  steps = [stage(cfg, k / 8).draw.diffusion_steps for k in range(8)]
  assert steps == [50, 50, 35, 35, 20, 20, 5, 5]


@cells
def test_guidance_and_text_change_samples(cell):
  net = tiny(cell)
  params, batch = params_of(net), batch_of(net)
  draw = lambda text, w: np.asarray(
    generate(
      net,
      params,
      text,
      batch["text_mask"],
      keys_of(),
      options(net, guidance=w, steps=5, diffusion_steps=4),
    )
  )
  base = draw(batch["text"], 1.0)
  assert np.abs(base - draw(batch["text"], 6.0)).max() > 1e-3
  assert np.abs(base - draw((batch["text"] + 1) % net.vocab, 1.0)).max() > 1e-3


@cells
def test_padding_tokens_of_the_text_change_nothing(cell):
  net = tiny(cell)
  if net.text.length == 1:
    pytest.skip("a prompt of one token has no padding")
  params, batch = params_of(net), batch_of(net)
  of = lambda b: loss(net, params, b, keys_of(), train=False)["loss"]
  text, real = batch["text"], batch["text_mask"]
  real = real.reshape(
    *real.shape, *[1] * (text.ndim - 2)
  )  # Features have an axis more.
  changed = batch | {"text": jnp.where(real, text, 7)}
  np.testing.assert_array_equal(of(batch), of(changed))


@cells
def test_losses_and_samples_do_not_depend_on_the_batch(cell):
  """A row computed with others equals it computed alone: keys are per example."""
  net = tiny(cell)
  params, batch = params_of(net), batch_of(net)
  part = jax.tree.map(lambda a: a[2:3], batch)
  whole = loss(net, params, batch, keys_of())
  alone = loss(net, params, part, keys_of()[2:3])
  np.testing.assert_array_equal(whole["mask"][2:3], alone["mask"])
  np.testing.assert_allclose(whole["loss"][2:3], alone["loss"], rtol=1e-4, atol=1e-5)
  cfg = options(net, guidance=2.0, steps=4, diffusion_steps=3)
  draw = lambda b, k: generate(net, params, b["text"], b["text_mask"], k, cfg)
  np.testing.assert_allclose(
    draw(batch, keys_of())[2:3], draw(part, keys_of()[2:3]), rtol=1e-3, atol=1e-4
  )


@pytest.mark.parametrize("head", ["categorical", "diffusion"])
@pytest.mark.parametrize("order", ["raster", "random"])
def test_scan_and_remat_change_nothing(head, order):
  """Loss and gradient: the loop unrolled, and each way to rematerialise."""
  nets = [
    tiny((head, order), trunk__scan=scan, trunk__remat=remat)
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
    net = tiny(("categorical", "raster"), trunk__remat=remat)
    loss = lambda p, *a, net=net: net.loss(p, *a, train=True)["loss"].sum()
    found[remat] = flops.traced(
      jax.grad(loss), params_of(net), batch_of(net), keys_of()
    )
  again = {k: v - found["none"] for k, v in found.items()}
  m, n, t = net.model.trunk, net.tokens.length, net.text.length
  pairs = m.layers * (n * n + n * t) + net.model.condition.layers * t * t
  assert again["dots"] == 4 * B * m.width * pairs
  forward = flops.forward(net)
  assert 0.6 < again["block"] / (B * (forward["core"] + forward["aligner"])) < 1


def test_stack_equals_a_loop_over_its_layers():
  """The scanned stack against its block applied by hand, layer by layer."""
  from fluid.models.block import Block
  from fluid.models.layers import Norm
  from fluid.models.stack import Stack
  from fluid.models.style import Given, Style

  stack = Stack(3, 32, 2, 64, Style(cross=True))
  x = jax.random.normal(jax.random.key(0), (2, L, 32))
  text, mask = jax.random.normal(jax.random.key(1), (2, T, 32)), jnp.ones((2, T), bool)
  given = Given(text=text, text_mask=mask)
  p = stack.init(jax.random.key(2), x, given)["params"]
  want, _ = stack.apply({"params": p}, x, given, causal=True)
  for i in range(3):
    layer = jax.tree.map(lambda a, i=i: a[i], p["blocks"])
    block = Block(32, 2, 64, Style(cross=True), causal=True)
    (x, _), _ = block.apply({"params": layer}, (x, None), None, given)
  x = Norm().apply({"params": p["norm"]}, x)
  np.testing.assert_allclose(x, want, rtol=1e-5, atol=1e-5)


def test_parts_must_fit_each_other():
  model = tiny(("categorical", "raster")).model
  text, classes = part("text", "learned"), part("text", "classes")
  with pytest.raises(config.ConfigError, match="needs discrete tokens"):
    build(model, SPECS["continuous"], text, 9)
  with pytest.raises(config.ConfigError, match="'text.kind' learned .*, not 'classes'"):
    build(model, SPECS["discrete"], classes, 9)


def test_kinds_are_the_keys_of_their_registries():
  for family in config.part.FAMILIES:
    for kind in config.part.registry(family):
      assert config.resolve(family, kind).kind == kind, (family, kind)


def test_options_of_parts_have_names_of_their_own():
  """Section 'sample' is flat: an option must have one owner."""
  for head, order in {(c.head, c.order) for c in GRID}:
    draws = [config.resolve(f, k).Draw() for f, k in (("head", head), ("order", order))]
    names = [n for d in (config.Sample(), *draws) for n in vars(d)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("cell", GRID[::3], ids=str)
def test_guidance_and_temperature_are_dials_of_one_program(cell):
  """Drawn with other values the program is the same, and the tokens are not."""
  net, params = tiny(cell), None
  params = jax.jit(net.init)(jax.random.key(0))
  b = net.example(2)
  keys = jax.random.split(jax.random.key(1), 2)
  args = params, b["text"], b["text_mask"], keys
  few = {"steps": 3, "diffusion_steps": 2, "clip": 3.0}
  before, drawn = sampling._generate._cache_size(), []
  for guidance, temperature in ((1.5, 1.0), (4.0, 1.0), (4.0, 0.5)):
    cfg = options(net, guidance=guidance, temperature=temperature, **few)
    program, dials = sampling.turned(cfg)
    drawn.append(np.asarray(sampling._generate(*args, dials, net=net, cfg=program)))
    close = dict(rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(drawn[-1], generate(net, *args, cfg), **close)
  assert sampling._generate._cache_size() == before + 1
  assert (drawn[1] != drawn[2]).any()
