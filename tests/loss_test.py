"""Validation loss and likelihood: the plain loop is their witness."""

import jax
import numpy as np
import pytest

from fluid import evals, rng
from fluid.evals import loss
from fluid.parallel import sharding
from tests import tiny


def context(run, batches, workdir="/unused"):
  mesh = sharding.make_mesh(run.mesh)
  return evals.EvalContext(run, None, None, mesh, workdir, lambda *_: batches)


def rows(batches):
  """All rows of some batches, as one."""
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def measure(net, params, run, batches, **arguments):
  made = loss.LossConfig(draws=2, **arguments)
  evaluator = made.make(net, context(run, batches))
  with jax.set_mesh(sharding.make_mesh(run.mesh)):
    return dict(evaluator.run(params, 0))


@pytest.fixture(scope="module", params=["categorical", "diffusion"])
def case(request):
  run = tiny.run(request.param, "random")
  net = tiny.net(run)
  params = jax.jit(net.init)(jax.random.key(3))
  batches = [tiny.batch(run, 8, seed) for seed in range(2)]
  batches[1]["id"] += 50
  return net, jax.tree.map(np.asarray, params), run, batches


def test_loss_is_the_plain_loop(case):
  net, params, run, batches = case
  total, count, each = 0.0, 0, []
  bins = np.zeros((2, loss.BINS))
  one = jax.jit(lambda p, b, k: net.loss(p, b, k, train=False))
  everything = rows(batches)
  for i in np.flatnonzero(everything["mask"]):
    row = {k: v[i : i + 1] for k, v in everything.items()}
    own = [0.0, 0]
    for draw in range(2):
      key = rng.stream(0, "val")
      key = jax.random.fold_in(key, draw) if draw else key
      out = one(params, row, rng.example_keys(key, row["id"]))
      for l in np.flatnonzero(out["mask"][0]):
        own[0] += float(out["loss"][0, l])
        own[1] += 1
        for r in range(out["t"].shape[-1] if "t" in out else 0):
          b = int(out["t"][0, l, r]) * 10 // run.model.head.steps
          bins[:, b] += float(out["mse"][0, l, r]), 1
    each.append(own)
    total, count = total + own[0], count + own[1]
  got = measure(net, params, run, batches)
  assert got["val/loss"] == pytest.approx(total / count, rel=1e-5)
  assert got["val/loss_count"] == 14
  sums, counts = np.array(each).T
  sem = np.sqrt(((sums - total / count * counts) ** 2).sum() * 14 / 13) / count
  assert got["val/loss_sem"] == pytest.approx(sem, rel=1e-4)
  if run.model.head.kind == "diffusion":
    assert bins[1].sum() == count * run.model.head.batch_mul
    for i in np.flatnonzero(bins[1]):
      wanted = bins[0, i] / bins[1, i]
      assert got[f"val/mse_bin{i}"] == pytest.approx(wanted, rel=1e-4)
  else:
    assert 0 <= got["val/accuracy"] <= 1


@pytest.mark.parametrize("head", ["categorical", "diffusion"])
@pytest.mark.parametrize("order", ["raster", "random"])
def test_likelihood_is_the_plain_loop(head, order):
  """Random order: of uniform counts whatever masks and passes it is trained with."""
  changes = {"order__masks": 2, "order__mask": "cosine"} if order == "random" else {}
  run = tiny.run(head, order, changes=changes)
  net, batches = tiny.net(run), [tiny.batch(run, 8, seed) for seed in range(2)]
  batches[1]["id"] += 50
  params = jax.jit(net.init)(jax.random.key(3))
  evaluator = loss.LikelihoodConfig(draws=3).make(net, context(run, batches))
  with jax.set_mesh(sharding.make_mesh(run.mesh)):
    got = dict(evaluator.run(params, 0))
  twin = net
  if order == "random":
    twin = tiny.net(tiny.run(head, order, changes={"order__mask": "uniform"}))
  one = jax.jit(lambda p, b, k: twin.loss(p, b, k, train=False, nats=True))
  nats, bins, counts = [], np.zeros((2, 10)), set()
  everything = rows(batches)
  for i in np.flatnonzero(everything["mask"]):
    row = {k: v[i : i + 1] for k, v in everything.items()}
    nats.append([])
    for draw in range(3):
      key = jax.random.fold_in(rng.stream(0, "val"), draw) if draw else None
      key = rng.stream(0, "val") if key is None else key
      out = one(params, row, rng.example_keys(key, row["id"]))
      hit, each = np.asarray(out["mask"][0]), np.asarray(out["loss"][0], np.float64)
      counts.add(int(hit.sum()))
      found = np.asarray(out["nats"][0], np.float64)
      if head == "categorical":
        np.testing.assert_array_equal(found, each)
      nats[-1].append(tiny.LENGTH * found[hit].mean())
      for l in np.flatnonzero(hit):
        known = l if order == "raster" else (~hit).sum()
        bins[:, 10 * known // tiny.LENGTH] += each[l], 1
  nats = np.mean(nats, 1)
  name = "val/nats" if head == "categorical" else "val/density_nats"
  assert [k for k in got if k.endswith("nats")] == [name]
  assert got[name] == pytest.approx(nats.mean(), rel=1e-5)
  sem = nats.std(ddof=1) / np.sqrt(len(nats))
  assert got[f"{name}_sem"] == pytest.approx(sem, rel=1e-3)
  if head == "categorical":
    values = 3 * run.data.image_size**2 * np.log(2)
    assert got["val/bits_per_dim"] == pytest.approx(nats.mean() / values)
  assert len(counts) == 1 if order == "raster" else len(counts) > 8
  for i in np.flatnonzero(bins[1]):
    want = bins[0, i] / bins[1, i]
    assert got[f"val/loss_known{i}"] == pytest.approx(want, rel=1e-4)


def test_loss_ignores_batching_order_and_padding(case):
  net, params, run, batches = case
  want = measure(net, params, run, batches)
  everything = rows(batches)
  order = np.random.RandomState(0).permutation(16)
  shuffled = {k: v[order] for k, v in everything.items()}
  pad = ~shuffled["mask"]
  shuffled["id"] = np.where(pad, 7, shuffled["id"]).astype(np.int32)
  if run.model.head.kind == "diffusion":
    shuffled["tokens"][pad] = np.nan  # Whatever padding holds.
  got = measure(net, params, run, [shuffled], batch=16)
  assert got.keys() == want.keys()
  for name, value in want.items():
    assert got[name] == pytest.approx(value, rel=1e-5), name


def test_loss_of_the_first_examples(case):
  net, params, run, batches = case
  first = {k: v.copy() for k, v in batches[0].items()}
  first["mask"][3:] = False
  want = measure(net, params, run, [first])
  assert want["val/loss_count"] == 3
  assert measure(net, params, run, batches, examples=3) == want
