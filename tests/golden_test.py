"""Stored numbers of every cell: three steps of training, and sampled tokens.

  python -m tests.golden_test    writes them anew; the commit says why they changed

Other machines and versions of jax round differently: losses hold to 1e-5.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from fluid import config, sampling, trees
from fluid.parallel import sharding
from fluid.training.state import init_state
from fluid.training.step import make_step
from tests import tiny
from tests.nets import GRID

DATA = pathlib.Path(__file__).parent / "data"
NAMES = [f"{c.head}-{c.order}" for c in GRID]


def _run(name: str) -> config.Run:
  head, order = name.split("-")
  return tiny.run(head, order, changes={"condition__layers": 1}, steps=200)


def steps(name: str, n: int):
  """Losses of the first n steps, and the moving average after them."""
  run = _run(name)
  net = tiny.net(run)
  mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
  with jax.set_mesh(mesh):
    state = init_state(net, run, mesh)
    step = jax.jit(make_step(net, run))
    losses = []
    for i in range(n):
      batch = sharding.shard_batch(tiny.batch(run, 8, seed=i), mesh)
      state, values = step(state, batch)
      losses.append(float(values["train/loss"]))
  return losses, state.ema


def tokens(name: str, params) -> np.ndarray:
  run = _run(name)
  net, b = tiny.net(run), tiny.batch(run, 4)
  known = net.model.sample().flat()
  wanted = {"guidance": 2.0, "steps": 6, "diffusion_steps": 8, "clip": 3.0}
  cfg = net.model.sample(**{k: v for k, v in wanted.items() if k in known})
  keys = jax.random.split(jax.random.key(7), 4)
  draw = jax.jit(functools.partial(sampling.generate, net, cfg=cfg))
  return np.asarray(draw(params, b["text"], b["text_mask"], keys))


def stored(name: str):
  """Parameters of a checkpoint, and the tokens that they drew."""
  flat = safetensors.numpy.load_file(DATA / f"{name}.safetensors")
  drawn = flat.pop("tokens")
  params: dict = {}
  for path, value in flat.items():
    node = params
    *parents, last = path.split("/")
    for part in parents:
      node = node.setdefault(part, {})
    node[last] = jnp.asarray(value, jnp.float32)
  return params, drawn


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_have_the_stored_losses(name):
  want = json.loads((DATA / "losses.json").read_text())[name]
  np.testing.assert_allclose(steps(name, len(want))[0], want, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_checkpoint_draws_the_stored_tokens(name):
  params, want = stored(name)
  got = tokens(name, params)
  if want.dtype == np.int32:
    np.testing.assert_array_equal(got, want)
  else:
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def main() -> None:
  """Writes tests/data/losses.json and a checkpoint with its tokens for each cell."""
  losses = {name: steps(name, 3)[0] for name in NAMES}
  (DATA / "losses.json").write_text(json.dumps(losses, indent=1) + "\n")
  for name in NAMES:
    _, ema = steps(name, 60)
    half = {k: np.asarray(v, np.float16) for k, v in trees.paths(ema).items()}
    file = DATA / f"{name}.safetensors"
    safetensors.numpy.save_file(half | {"tokens": np.zeros(1, np.int32)}, file)
    params, _ = stored(name)
    safetensors.numpy.save_file(half | {"tokens": tokens(name, params)}, file)


if __name__ == "__main__":
  main()
