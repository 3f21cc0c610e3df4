"""Schedules in closed form, decay by path, accumulation and meshes change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fluid import config, rng, trees
from fluid.parallel import sharding
from fluid.training import optim, state
from fluid.training.mean import Mean
from fluid.training.step import make_step
from tests import tiny


def test_schedules_match_their_closed_form():
  cfg = config.Optim(lr=2.0, warmup=10, decay_fraction=0.2)
  lr = {
    name: optim.schedule(dataclasses.replace(cfg, schedule=name), 110)
    for name in ("constant", "cosine", "wsd")
  }
  for fn in lr.values():
    np.testing.assert_allclose([fn(t) for t in (0, 4, 9)], [0.2, 1.0, 2.0], rtol=1e-6)
  np.testing.assert_allclose([lr["constant"](t) for t in (10, 109)], 2.0)
  np.testing.assert_allclose(
    [lr["cosine"](t) for t in (10, 35, 60, 110)],
    [2.0, 1 + np.sqrt(0.5), 1.0, 0.0],
    atol=1e-6,
  )
  np.testing.assert_allclose(
    [lr["wsd"](t) for t in (10, 88, 99, 110)], [2.0, 2.0, 1.0, 0.0], atol=1e-6
  )
  assert optim.schedule(dataclasses.replace(cfg, warmup=0), 110)(0) == 2.0


@pytest.mark.parametrize("head", tiny.SPECS)
@pytest.mark.parametrize("tied", [True, False])
def test_decay_covers_every_parameter_and_only_kernels(head, tied):
  changes = {"condition__layers": 2}
  if head == "categorical":
    changes["head__tie_embeddings"] = tied
  net = tiny.net(tiny.run(head, changes=changes))
  params = jax.eval_shape(net.init, jax.random.key(0))
  mask = trees.paths(net.decays(params))
  assert mask["trunk/blocks/self/q/w"] and mask["aligner/stack/blocks/mlp/up/w"]
  for name in mask:
    if name.endswith(("/b", "/bias", "/scale")) or "pos" in name or "table" in name:
      assert not mask[name], name
    assert not (name.startswith("head/net/") and mask[name]), name
  # 8 kernels of a trunk block, 5 of an aligner block, the text projection.
  assert sum(mask.values()) == 14 + (head == "diffusion" or not tied)


def test_a_parameter_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match="'trunk/new_thing' fits 0 rows"):
    tiny.net(tiny.run()).decays({"trunk": {"new_thing": 0}})


def test_update_is_adamw_after_clipping():
  cfg = config.Optim(lr=0.1, warmup=0, weight_decay=0.5, clip=1.0, b1=0.9, b2=0.95)
  params = {"aligner": {"proj": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}}}
  grads = jax.tree.map(lambda a: 100 * jnp.ones_like(a), params)
  net = tiny.net(tiny.run())
  opt = optim.make_optimizer(cfg, 10, net.decays, net.matrix)
  updates, _ = opt.update(grads, opt.init(params), params)
  new = optax.apply_updates(params, updates)["aligner"]["proj"]
  # First Adam step has size lr whatever the gradient; only the kernel decays.
  np.testing.assert_allclose(new["b"], 1 - 0.1, rtol=1e-5)
  np.testing.assert_allclose(new["w"], 1 - 0.1 - 0.1 * 0.5, rtol=1e-5)
  mu = opt.update(grads, opt.init(params), params)[1][1][0].mu
  np.testing.assert_allclose(optax.global_norm(mu), (1 - cfg.b1) * cfg.clip, rtol=1e-5)


def test_rate_follows_the_width():
  cfg = config.Optim(lr=2e-3, lr_width=64)
  assert cfg.at(64).lr == 2e-3 and cfg.at(128).lr == 1e-3
  assert dataclasses.replace(cfg, lr_power=0.5).at(256).lr == 1e-3
  assert config.Optim(lr=3.0).at(256).lr == 3.0
  run = tiny.run(optim=dataclasses.replace(cfg, warmup=0, lr_width=32))
  _, lr = optim.of(run, tiny.net(run))
  np.testing.assert_allclose(lr(5), 2 * 2e-3, rtol=1e-6)  # Its trunk has width 16.


def test_muon_moves_matrices_along_their_singular_vectors():
  """Against the SVD: U V' of the momentum, up to Newton-Schulz's 0.7 to 1.2."""
  cfg = config.Optim(lr=0.1, muon=0.5, warmup=0, weight_decay=0.0, clip=0.0)
  net = tiny.net(tiny.run(changes={"condition__layers": 1}))
  params = jax.jit(net.init)(jax.random.key(0))
  keys = iter(jax.random.split(jax.random.key(1), 99))
  grads = jax.tree.map(lambda a: jax.random.normal(next(keys), a.shape), params)
  opt = optim.make_optimizer(cfg, 10, net.decays, net.matrix)
  updates, opt_state = jax.jit(opt.update)(grads, opt.init(params), params)
  adamw = optim.make_optimizer(
    dataclasses.replace(cfg, muon=0.0), 10, net.decays, net.matrix
  )
  others, _ = adamw.update(grads, adamw.init(params), params)
  seen = 0
  for name, update in trees.paths(updates).items():
    if not (axes := net.matrix(name)):
      np.testing.assert_allclose(update, trees.paths(others)[name], rtol=1e-6)
      continue
    seen += 1
    gradient = trees.paths(grads)[name]
    inputs, outputs = (np.prod([update.shape[i] for i in a]) for a in axes)
    order = [i for i in range(update.ndim) if i not in sum(axes, ())] + [*sum(axes, ())]
    flat = lambda a: np.asarray(a).transpose(order).reshape(-1, inputs, outputs)  # noqa: B023
    for matrix, of in zip(flat(update), flat(gradient), strict=True):
      u, _, v = np.linalg.svd(of, full_matrices=False)
      size = u.T @ matrix @ v.T / (-0.5 * np.sqrt(max(1, outputs / inputs)))
      assert 0.6 < np.diag(size).min() and np.diag(size).max() < 1.3, name
      np.testing.assert_allclose(size, np.diag(np.diag(size)), atol=0.02)
  # Queries, keys and values, outputs; both MLP layers: of trunk and condition.
  assert seen == 8 + 5
  assert sum(a.shape == params["fill"]["w"].shape for a in jax.tree.leaves(opt_state))


def test_ema_is_a_geometric_average():
  ema = optim.update_ema({"a": jnp.zeros(())}, {"a": jnp.ones(())}, 0.9)
  ema = optim.update_ema(ema, {"a": jnp.ones(())}, 0.9)
  np.testing.assert_allclose(ema["a"], 1 - 0.9**2, rtol=1e-6)


def test_accumulation_of_unequal_counts_is_the_whole_mean():
  x = jnp.arange(12.0).reshape(6, 2)
  mask = jnp.array([1, 1, 0, 1, 0, 0], bool)

  def loss(p, b):
    each = p * jnp.square(b["x"])
    return {"loss": Mean.of(each, b["mask"])}, each

  batch = {"x": x, "mask": mask}
  for accum in (1, 2, 3, 6):
    means, each, grad = optim.mean_grad(loss, jnp.float32(3.0), batch, accum)
    np.testing.assert_allclose(each, 3 * x**2)
    expected = np.square(x[mask]).mean()
    np.testing.assert_allclose(grad, expected, rtol=1e-6)
    np.testing.assert_allclose(means["loss"].value, 3 * expected, rtol=1e-6)


@pytest.mark.parametrize(
  "head", ["categorical", pytest.param("diffusion", marks=pytest.mark.slow)]
)
def test_loss_and_gradient_on_1_and_8_devices_and_under_accumulation(head):
  """Nor the update, that of Muon as well; with several masks of an image."""
  optimizer = config.Optim(lr=1e-2, muon=1e-2, warmup=2, ema=0.9)
  cfg = tiny.run(head, "random", changes={"order__masks": 2}, optim=optimizer)
  net, batch = tiny.net(cfg), tiny.batch(cfg, 16)
  found = []
  for shape, devices, accum in (
    (config.Mesh(), 1, 1),
    (config.Mesh(2, 2, 2), 8, 1),
    (config.Mesh(2, 2, 2), 8, 4),
  ):
    mesh = sharding.make_mesh(shape, jax.devices()[:devices])
    run = dataclasses.replace(cfg, accum=accum)
    start = state.init_state(net, run, mesh)
    with jax.set_mesh(mesh):
      step = jax.jit(make_step(net, run))
      _, values = step(start, sharding.shard_batch(batch, mesh))
    report = values.pop("report")
    found.append({k: np.asarray(v) for k, v in (values | report["grad_norm"]).items()})
    found[-1] |= {"ids": np.asarray(report["id"]), "each": np.asarray(report["loss"])}
  for other in found[1:]:
    for name in found[0]:
      np.testing.assert_allclose(other[name], found[0][name], rtol=1e-5, err_msg=name)


def test_padding_rows_and_their_contents_change_nothing():
  cfg = tiny.run()
  net, batch = tiny.net(cfg), tiny.batch(cfg, 8)
  params = net.init(rng.stream(0, "init"))

  def loss(batch):
    keys = rng.example_keys(rng.stream(0, "train", 0), batch["id"])
    out = net.loss(params, batch, keys, train=True)
    return Mean.of(out["loss"], out["mask"] & batch["mask"][:, None]).value

  other = {k: v.copy() for k, v in batch.items()}
  other["tokens"][-1] = 0
  other["text"][-1] = 1
  fn = jax.jit(loss)
  assert fn(batch) == fn(other)
  np.testing.assert_allclose(
    jax.jit(loss)({k: v[:-1] for k, v in batch.items()}), fn(batch), rtol=1e-6
  )


def test_one_row_alone_and_in_a_microbatch_has_the_loss_it_has_among_two():
  cfg, found = tiny.run(), []
  net, rows = tiny.net(cfg), tiny.batch(cfg, 2)
  mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
  for size, accum in ((2, 1), (1, 1), (2, 2)):
    with jax.set_mesh(mesh):
      step = jax.jit(make_step(net, dataclasses.replace(cfg, accum=accum)))
      held = sharding.shard_batch({k: v[:size] for k, v in rows.items()}, mesh)
      _, values = step(state.init_state(net, cfg, mesh), held)
    found.append(np.asarray(values["report"]["loss"]))
  np.testing.assert_allclose(found[1], found[0][:1], rtol=1e-5)
  np.testing.assert_allclose(found[2], found[0], rtol=1e-5)
