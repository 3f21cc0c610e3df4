"""Every attention kernel equals the plain formula, gradients and meshes included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluid import config
from fluid.models import attention as module
from fluid.models.attention import attention
from fluid.models.trunks.fluid import FluidConfig
from fluid.parallel import sharding


def plain(q, k, v, mask, causal):
  scores = jnp.einsum("blhk,bthk->bhlt", q, k) / np.sqrt(q.shape[-1])
  allowed = jnp.broadcast_to(mask[:, None, None], scores.shape)
  if causal is True:
    allowed &= np.tril(np.ones(scores.shape[2:], bool))
  elif causal:
    allowed &= module.block_mask(causal)
  weights = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf), -1)
  return jnp.einsum("bhlt,bthk->blhk", weights, v)


def case(queries, keys, heads=4, width=8, batch=4):
  r = np.random.default_rng(0)
  draw = lambda n: jnp.asarray(r.normal(size=(batch, n, heads, width)), jnp.float32)
  mask = np.arange(keys) < r.integers(1, keys + 1, batch)[:, None]
  return draw(queries), draw(keys), draw(keys), jnp.asarray(mask)


def check(got, q, k, v, mask, causal):
  """Outputs and the gradients of all three inputs."""
  weigh = lambda f: lambda q, k, v: (f(q, k, v) * jnp.cos(q)).sum()
  want = lambda q, k, v: plain(q, k, v, mask, causal)
  # Queries that see no key of a causal, masked row have no defined output.
  np.testing.assert_allclose(got(q, k, v), want(q, k, v), rtol=1e-4, atol=1e-5)
  for a, b in zip(*(jax.grad(weigh(f), (0, 1, 2))(q, k, v) for f in (got, want))):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("causal, queries, keys", [(True, 6, 6), (False, 6, 5)])
def test_xla(causal, queries, keys):
  q, k, v, mask = case(queries, keys)
  run = lambda q, k, v: attention(q, k, v, mask=mask, causal=causal)
  check(run, q, k, v, mask, causal)


@pytest.fixture
def interpreted(monkeypatch):
  """Runs TPU kernels in Pallas's interpreter."""
  run = functools.partial(module._splash, interpret=True)
  monkeypatch.setattr(module, "_splash", run)


@pytest.mark.parametrize(
  "causal, queries, keys",
  [
    (True, 256, 256),
    (False, 256, 128),
    # Lengths that blocks do not divide: a class token, an odd text, VAR's pyramid.
    (True, 257, 257),
    (False, 640, 130),
    ((1, 4, 9, 16, 25, 36, 64), 155, 155),
  ],
)
def test_splash(interpreted, causal, queries, keys):
  q, k, v, mask = case(queries, keys, heads=2, batch=2)
  run = lambda q, k, v: attention(q, k, v, mask=mask, causal=causal, kernel="splash")
  check(jax.jit(run), q, k, v, mask, causal)


def test_splash_on_a_mesh(interpreted):
  """Each device works on its own examples and heads."""
  q, k, v, mask = case(128, 128, heads=4, batch=4)
  mesh = sharding.make_mesh(config.Mesh(data=2, fsdp=2, model=2))
  want = plain(q, k, v, mask, False)
  with jax.set_mesh(mesh):
    heads = sharding.names("batch", None, "heads", None)
    q, k, v = (jax.reshard(a, heads) for a in (q, k, v))
    mask = jax.reshard(mask, sharding.names("batch", None))
    got = jax.jit(lambda *a: attention(*a[:3], mask=a[3], kernel="splash"))(
      q, k, v, mask
    )
    assert jax.typeof(got).sharding.spec == heads
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "causal, queries, keys", [(True, 7, 7), (False, 6, 5), ((1, 4), 5, 5)]
)
def test_cudnn_gets_what_it_takes(monkeypatch, causal, queries, keys):
  """A mask has the shape of the scores, whose sides are even; else it is refused."""
  asked = []

  def xla(q, k, v, *, mask, implementation, **rest):
    asked.append(implementation)
    assert mask.shape[2:] == (q.shape[1], k.shape[1])
    assert not any(size % 2 for size in mask.shape[2:])
    return real(q, k, v, mask=mask, implementation="xla", **rest)

  real = jax.nn.dot_product_attention
  monkeypatch.setattr(jax.nn, "dot_product_attention", xla)
  q, k, v, mask = case(queries, keys)
  run = lambda q, k, v: attention(q, k, v, mask=mask, causal=causal, kernel="cudnn")
  check(run, q, k, v, mask, causal)
  assert set(asked) == {"cudnn"}


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("causal, queries, keys", [(True, 256, 256), (False, 256, 128)])
def test_cudnn(causal, queries, keys):
  q, k, v, mask = case(queries, keys, width=64)
  half = [a.astype(jnp.bfloat16) for a in (q, k, v)]
  got = attention(*half, mask=mask, causal=causal, kernel="cudnn")
  np.testing.assert_allclose(got, plain(q, k, v, mask, causal), rtol=0.05, atol=0.05)


def test_kernel_by_platform():
  def kernel(platform, dtype="bfloat16", **trunk):
    return FluidConfig(**trunk).on(platform, dtype).attention

  assert kernel("cpu", width=128, heads=2) == "xla"
  assert kernel("tpu", width=128, heads=2) == "splash"
  assert kernel("gpu", width=128, heads=2) == "cudnn"
  assert kernel("gpu", "float32") == "xla"
  assert kernel("tpu", attention="xla") == "xla"
