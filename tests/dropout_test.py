"""Dropout: shares, means, and that it belongs to an example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluid import config
from fluid.models.attention import attention
from fluid.models.block import Mlp
from fluid.models.dropout import dropout, dropouts
from fluid.models.style import Style
from fluid.parallel import sharding
from tests.nets import batch_of, cell_of, keys_of, tiny

B, L, D = 6, 40, 50
X = jax.random.normal(jax.random.key(0), (B, L, D)) + 3


def test_values_are_dropped_and_the_others_scaled():
  y = np.asarray(dropout(X, keys_of(B), 0.3))
  gone = y == 0
  assert abs(gone.mean() - 0.3) < 5 * (0.3 * 0.7 / y.size) ** 0.5
  np.testing.assert_allclose(y[~gone], np.asarray(X)[~gone] / 0.7, rtol=1e-6)
  np.testing.assert_array_equal(dropout(X[2:4], keys_of(B)[2:4], 0.3), y[2:4])
  assert dropout(X, None, 0.3) is X and dropout(X, keys_of(B), 0.0) is X


def test_examples_lose_a_whole_block():
  keys = jax.random.split(jax.random.key(1), 400)
  y = np.asarray(dropout(jnp.ones((400, 3, 2)), keys, 0.25, whole=True))
  rows = y.reshape(400, -1)
  assert (rows == rows[:, :1]).all()
  assert abs((rows[:, 0] == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / 400) ** 0.5


def test_paths_are_dropped_more_in_later_blocks():
  keys = jax.random.split(jax.random.key(1), 400)
  style = Style(path_dropout=0.5, depth=5)
  gone = [
    float((dropouts(keys, i, style).mlp(jnp.ones((400, 1, 1))) == 0).mean())
    for i in range(5)
  ]
  assert gone[0] == 0 and abs(gone[2] - 0.25) < 0.11 and abs(gone[4] - 0.5) < 0.13


def test_attention_weights_are_dropped_by_example_and_head():
  q, k = (jax.random.normal(jax.random.key(i), (B, L, 2, 8)) for i in range(2))
  v, keys = jnp.ones((B, L, 2, 8)), keys_of(B)
  mask = jnp.arange(L)[None] < jnp.arange(20, 20 + B)[:, None]
  for causal in (False, True, (5, 35)):
    given = dict(causal=causal, mask=mask)
    none = attention(q, k, k, drop=(keys, 0.0), **given)
    np.testing.assert_allclose(none, attention(q, k, k, **given), rtol=1e-4, atol=1e-5)
  # Of values that are all one, what is left of the weights: one in the mean.
  left = np.asarray(attention(q, k, v, drop=(keys, 0.4)))[..., 0]
  assert abs(left.mean() - 1) < 0.03 and left.std() > 0.1
  assert np.abs(left[:, :, 0] - left[:, :, 1]).max() > 0.1
  alone = attention(q[1:3], k[1:3], v[1:3], drop=(keys[1:3], 0.4))
  np.testing.assert_allclose(alone[..., 0], left[1:3], rtol=1e-5)


@pytest.mark.parametrize("trunk", ["mar", "rar"])
def test_what_an_mlp_holds_is_dropped_on_every_mesh(trunk):
  """As in timm's Mlp, after the activation: also where its width is split."""
  mlp = Mlp(8, 16, config.resolve("trunk", trunk)(width=8, heads=2).style)
  x, keys = jax.random.normal(jax.random.key(0), (B, L, 8)), keys_of(B)
  params = mlp.init(jax.random.key(1), x)["params"]

  def run(params, x, keys):
    drop = dropouts(keys, 0, mlp.style).hidden
    return mlp.apply({"params": params}, x, drop)

  alone = run(params, x, keys)
  assert jnp.abs(alone - run(params, x, None)).max() > 0.01
  with jax.set_mesh(sharding.make_mesh(config.Mesh(1, 2, 2), jax.devices()[:4])):
    params = jax.jit(mlp.init)(jax.random.key(1), sharding.by_rows(x))["params"]
    split = jax.jit(run)(params, *sharding.by_rows((x, keys)))
  np.testing.assert_allclose(split, alone, rtol=1e-4, atol=1e-5)


def test_rar_drops_no_embeddings():
  """Its gates begin at 0, so that nothing that blocks drop shows at first."""
  cell = cell_of(trunk="rar")
  params = jax.jit(tiny(cell).init)(jax.random.key(0))
  losses = [
    net.loss(params, batch_of(net), keys_of(), train=True, step=0)["loss"]
    for rate in (0.0, 0.4)
    for net in [tiny(cell, trunk__dropout=rate, trunk__attention_dropout=rate)]
  ]
  np.testing.assert_array_equal(*losses)
