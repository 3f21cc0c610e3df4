"""Small nets of every cell, their parameters and batches, for tests of models."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fluid import config, rng
from fluid.models import HEADS, KINDS, ORDERS, build
from fluid.tokenizers.base import TokenSpec

L, T, B = 16, 6, 8
SPECS = {
  "discrete": TokenSpec("discrete", L, (4, 4), vocab=32),
  "continuous": TokenSpec("continuous", L, (4, 4), channels=5),
}
CELLS = list(itertools.product(HEADS, ORDERS))
cells = pytest.mark.parametrize("head,order", CELLS)


def tiny(head, order, **changes):
  text = changes.pop("text", config.Text(length=T, width=12))
  model = config.Model(
    head=head,
    order=order,
    layers=2,
    width=32,
    heads=2,
    aligner_layers=1,
    head_layers=2,
    dtype="float32",
    remat="none",
  )
  return build(dataclasses.replace(model, **changes), SPECS[KINDS[head]], text, 20)


@functools.cache
def params_of(net, seed=0):
  """Initial parameters, with the zero-initialised ones made to matter."""
  params = jax.jit(net.init)(jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return tree.unflatten(
    [a + 0.1 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)]
  )


def batch_of(net, b=B, seed=0):
  r = np.random.default_rng(seed)
  batch = {k: np.array(v) for k, v in net.example(b).items()}
  if net.tokens.kind == "discrete":
    batch["tokens"] = r.integers(0, net.tokens.vocab, batch["tokens"].shape)
  else:
    batch["tokens"] = r.normal(size=batch["tokens"].shape).astype(np.float32)
  batch["text"] = r.integers(0, net.vocab, batch["text"].shape)
  lengths = r.integers(1, T + 1, b)
  batch["text_mask"] = np.arange(T) < lengths[:, None]
  batch["id"] = np.arange(b, dtype=np.int32)
  return jax.tree.map(jnp.asarray, batch)


def keys_of(b=B):
  return rng.example_keys(rng.stream(0, "test"), jnp.arange(b))
