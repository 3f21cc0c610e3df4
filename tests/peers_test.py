"""The PyTorch peers of published models agree with the authors' numbers, too.

A ratio of speeds says something only of two programs that do the same.
"""

import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.published import CASES, close

torch = pytest.importorskip(
  "torch", reason="peers want PyTorch, which nothing else does"
)
peers = pytest.importorskip("benchmarks.peers")


def _peer(m, name, fixtures):
  """The peer of a converted fixture, with its parameters under the authors' names."""
  peer = peers.of(m.net)
  arrays = safetensors.numpy.load_file(fixtures / name / CASES[name].file)
  missing, extra = peer.load_state_dict(
    {k: torch.from_numpy(v) for k, v in arrays.items()}, strict=False
  )
  assert not missing and all(k.endswith(("freqs_cis", "causal_mask")) for k in extra)
  return peer.eval()


def _case(m, name):
  return torch.from_numpy(np.array(m.cases[name]))


@torch.no_grad()
def test_mar(converted, fixtures):
  m = converted("mar")
  peer = _peer(m, "mar", fixtures)
  at = lambda name: _case(m, f"backbone/{name}")
  masked, label = at("mask").bool(), peer.class_emb(at("labels"))
  # Rows with as many known tokens go through the encoder together.
  for count in masked.sum(1).unique():
    rows = masked.sum(1) == count
    z = peer.backbone(at("tokens")[rows], label[rows], masked[rows])
    close(z.numpy(), at("z")[rows].numpy())
  at = lambda name: _case(m, f"diffloss/{name}")
  z = _case(m, "backbone/z").flatten(0, 1)
  close(peer.diffloss.net(at("x_t"), at("t"), z).numpy(), at("net").numpy())


@torch.no_grad()
def test_mar_sampler(converted, fixtures):
  m = converted("mar")
  peer = _peer(m, "mar", fixtures)
  at = lambda name: _case(m, f"sampler/{name}")
  steps, reverse = int(at("num_iter")), int(m.config["num_sampling_steps"])
  given = iter(
    [
      noise
      for k in range(steps)
      for noise in (at(f"noise_init/{k}"), *at(f"noise_steps/{k}"))
    ]
  )
  options = m.run.sample.replace(
    guidance=float(at("cfg_scale")), steps=steps, diffusion_steps=reverse
  )
  got = peer.draw(
    at("labels")[:, None], None, options, at("orders"), lambda *_: next(given)
  ).numpy()
  want = at("latent_nchw").permute(0, 2, 3, 1).flatten(1, 2).numpy()
  assert np.linalg.norm(got - want) < 1e-3 * np.linalg.norm(want)


@torch.no_grad()
def test_llamagen(converted, fixtures):
  m = converted("llamagen_c2i")
  peer = _peer(m, "llamagen_c2i", fixtures)
  label = peer.label(_case(m, "condition")[:, None], torch.tensor(False))
  logits = peer.logits(_case(m, "tokens"), label)
  close(logits.numpy(), m.cases["logits"])
  options = m.run.sample.replace(guidance=3.0, temperature=0.0)
  codes = peer.draw(_case(m, "condition")[:, None], None, options)
  np.testing.assert_array_equal(codes.numpy(), m.cases["greedy_cfg/codes"])


@pytest.mark.parametrize("name", ["mar", "llamagen_c2i"])
def test_training_losses_are_ours(converted, fixtures, name):
  """On average over masks and noise: they are drawn by other generators."""
  m = converted(name)
  peer = _peer(m, name, fixtures)
  rows = 64
  example = {k: np.array(v) for k, v in m.net.example(rows).items()}
  r = np.random.default_rng(0)
  if m.net.tokens.kind == "discrete":
    shape = example["tokens"].shape
    example["tokens"] = r.integers(0, m.net.tokens.vocab, shape, np.int32)
  else:
    example["tokens"] = r.normal(size=example["tokens"].shape).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), rows)
  found = jax.jit(lambda p: m.net.loss(p, example, keys, train=False))(m.params)
  ours = float((found["loss"] * found["mask"]).sum() / found["mask"].sum())
  peer.rate = 0.0  # No label is dropped.
  inputs = peers.tensors(m.net, example)
  with torch.no_grad():
    theirs = np.mean([float(peer(**inputs)) for _ in range(8)])
  assert theirs == pytest.approx(ours, rel=0.05)
