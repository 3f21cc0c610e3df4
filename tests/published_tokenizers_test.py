"""Published tokenizers against the numbers of their references."""

import dataclasses
import json
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from fluid import tokenizers as tokenizers_lib
from fluid.convert import family, tokenizers
from fluid.tokenizers import base, latents, multiscale

CLOSE = 1e-4  # Relative to the largest value.
TIE = 1e-5  # Of two distances, where the reference may choose either code.


@dataclasses.dataclass(frozen=True)
class Case:
  """A fixture: the kind it is of, its file, and its config.json as our changes."""

  kind: str
  folder: str
  file: str
  changes: Callable[[dict], dict]


def _autoencoder(c):
  return {"width": c["ch"], "multipliers": c["mult"], "image_size": c["image"]}


def _sd(c):
  width, *_ = widths = c["block_out_channels"]
  return {
    "width": width,
    "multipliers": [w // width for w in widths],
    "blocks": c["layers_per_block"],
    "channels": c["latent_channels"],
    "groups": c["norm_num_groups"],
    "latent_scale": c["scaling_factor"],
    "image_size": c["image"],
  }


def _kl(c):
  out = {"channels": c["z"], "blocks": c["res"], "latent_scale": c["latent_scale"]}
  return _autoencoder(c) | out


def _llamagen(c):
  out = {"channels": c["codebook_embed_dim"], "z_channels": c["z"]}
  return _autoencoder(c) | out | {"vocab": c["codebook_size"], "cosine": c["l2_norm"]}


def _taming(c):
  return _autoencoder(c) | {"channels": c["e"], "z_channels": c["z"], "vocab": c["n"]}


def _maskgit(c):
  out = {"channels": c["dim"], "blocks": c["res"], "vocab": c["n"]}
  sizes = {"width": c["filters"], "multipliers": c["mult"], "image_size": c["image"]}
  return sizes | out


def _var(c):
  scales = c["patch_nums"]
  image = {"image": scales[-1] * 2 ** (len(c["mult"]) - 1)}
  out = {"channels": c["z"], "vocab": c["vocab"], "scales": scales}
  return _autoencoder(c | image) | out


CASES = {
  "sd_vae": Case("sd_vae", "sd_vae", "diffusers", _sd),
  "sd_vae-ldm": Case("sd_vae", "sd_vae", "ldm.ckpt", _sd),
  "kl16": Case("kl16", "kl16", "kl16.ckpt", _kl),
  "llamagen_vq": Case("llamagen_vq", "llamagen_vq", "weights.safetensors", _llamagen),
  "taming_vq": Case("taming_vq", "taming_vq", "last.ckpt", _taming),
  "maskgit_vq": Case("maskgit_vq", "maskgit_vq", "checkpoint.msgpack", _maskgit),
  "var": Case("var_vq", "var", "weights.safetensors", _var),
  "var_shared": Case("var_vq", "var_shared", "weights.safetensors", _var),
}


@pytest.fixture(scope="module")
def loaded(fixtures, tmp_path_factory):
  """name -> (tokenizer loaded from the folder that was written, reference's arrays)."""
  done = {}

  def get(name):
    if name not in done:
      case, path = CASES[name], tmp_path_factory.mktemp(name)
      folder = fixtures / case.folder
      changes = case.changes(json.loads((folder / "config.json").read_text()))
      entry = tokenizers.FAMILIES[case.kind]
      family.convert(entry, folder / case.file, path, changes)
      with np.load(folder / "cases.npz") as cases:
        done[name] = tokenizers_lib.load(str(path)), dict(cases)
    return done[name]

  return get


def last(x):
  """[B, C, H, W] -> [B, H, W, C]."""
  return np.moveaxis(x, 1, -1)


def close(found, expected):
  assert found.shape == expected.shape
  error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
  assert error < CLOSE


def network(tokenizer, method, x):
  params = {"params": tokenizer.variables["params"]}
  return tokenizer.module.apply(params, x, method=method)


def same_codes(found, expected, latents, codebook, record_property):
  """[N] codes of latents [N, C], equal but for ties of the two best."""
  found, expected = np.asarray(found).ravel(), expected.ravel()
  distance = np.square(latents[:, None].astype(np.float64) - codebook).sum(-1)
  best = np.sort(distance, 1)
  tie = best[:, 1] - best[:, 0] < TIE
  record_property("ties", int(tie.sum()))
  np.testing.assert_array_equal(found[~tie], expected[~tie])


@pytest.mark.parametrize("name", ["sd_vae", "sd_vae-ldm", "kl16"])
def test_vae_equals_reference(name, loaded):
  tokenizer, cases = loaded(name)
  config, images = tokenizer.config, last(cases["image"])
  mean, logvar = tokenizer.posterior(tokenizer.variables, images)
  close(mean, last(cases["mean"]))
  close(logvar, last(cases["logvar"]))
  close(network(tokenizer, "decode", last(cases["latent"])), last(cases["decoded"]))
  # Tokens are patches of the scaled latent.
  scale, patch = config.latent_scale, config.patch
  expected = base.patchify(last(cases["mean"]) * scale, patch)
  close(tokenizer.encode(images), expected)
  tokens = base.patchify(last(cases["latent"]) * scale, patch)
  close(tokenizer.decode(tokens), np.clip(last(cases["decoded"]), -1, 1))


@pytest.mark.parametrize("name", ["llamagen_vq", "taming_vq"])
def test_vq_equals_reference(name, loaded, record_property):
  tokenizer, cases = loaded(name)
  images, pre = last(cases["image"]), last(cases["pre_quant"])
  close(network(tokenizer, "encode", images), pre)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  unit = unit if tokenizer.config.cosine else lambda x: x
  flat, codebook = unit(pre.reshape(-1, pre.shape[-1])), tokenizer.variables["codebook"]
  codebook = unit(np.asarray(codebook))
  codes, expected = tokenizer.encode(images), cases["codes"]
  same_codes(codes, expected, flat, codebook, record_property)
  close(codebook[expected].reshape(pre.shape), last(cases["quant"]))
  decoded = last(cases["decoded"])
  close(network(tokenizer, "decode", last(cases["quant"])), decoded)
  close(tokenizer.decode(jnp.asarray(expected, jnp.int32)), np.clip(decoded, -1, 1))


def test_maskgit_vq_equals_reference(loaded, record_property):
  tokenizer, cases = loaded("maskgit_vq")
  images, pre = 2 * cases["image"] - 1, cases["pre_quant"]
  close(network(tokenizer, "encode", images), pre)
  codebook = np.asarray(tokenizer.variables["codebook"])
  flat, expected = pre.reshape(-1, pre.shape[-1]), cases["codes"]
  same_codes(tokenizer.encode(images), expected, flat, codebook, record_property)
  latents = codebook[expected].reshape(pre.shape)
  close((network(tokenizer, "decode", latents) + 1) / 2, cases["decoded"])
  clipped = (np.asarray(tokenizer.decode(expected)) + 1) / 2
  close(clipped, np.clip(cases["decoded"], 0, 1))


@pytest.mark.parametrize("name", ["var", "var_shared"])
def test_var_equals_reference(name, loaded, record_property):
  tokenizer, cases = loaded(name)
  images, scales = last(cases["image"]), tokenizer.config.scales
  expected = [cases[f"codes/{k}"] for k in range(len(scales))]
  tokens = np.concatenate(expected, 1).astype(np.int32)
  close(network(tokenizer, "encode", images), last(cases["pre_quant"]))
  codebook = np.asarray(tokenizer.variables["params"]["codebook"])
  # Each scale is judged on what the reference's own codes leave.
  latent = last(cases["pre_quant"])
  sums = np.asarray(network(tokenizer, "latents", tokens))
  found = network(tokenizer, "split", np.asarray(tokenizer.encode(images)))
  for k, codes in enumerate(expected):
    rest = latent - (sums[k - 1] if k else 0)
    matrix = multiscale.averaging(scales[-1], scales[k])
    flat = np.asarray(multiscale.resize(rest, matrix)).reshape(-1, latent.shape[-1])
    same_codes(found[k], codes, flat, codebook, record_property)
  fixed = latents.Latents(tokenizer.config, tokenizer.variables["params"])
  close(fixed.inputs(tokens), cases["var_input"])
  reconstruction = np.clip(last(cases["reconstruction"]), -1, 1)
  close(tokenizer.decode(tokens), reconstruction)
  greedy = (tokenizer.decode(cases["greedy/codes"].astype(np.int32)) + 1) / 2
  close(greedy, last(cases["greedy/image_0_1"]))
  # Scale by scale, as a model that samples goes.
  step, parts = fixed.blank(len(latent)), []
  for k, codes in enumerate(expected):
    parts.append(fixed.at(step, k))
    step = fixed.add(step, codes, k)
  close(np.concatenate(parts[1:], 1), cases["var_input"])
  assert not np.any(parts[0])
  close(step, sums[-1])


def test_resizing_is_that_of_torch():
  """Rows sum to one; half-pixel weights of a = -0.75; bins that overlap."""
  for small, large in ((1, 4), (2, 4), (3, 16), (4, 4), (10, 13)):
    for matrix in (
      multiscale.bicubic(small, large),
      multiscale.averaging(large, small),
    ):
      np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
  np.testing.assert_array_equal(multiscale.bicubic(4, 4), np.eye(4))
  double = multiscale.bicubic(8, 16)[7, 2:6]  # At 3.25 of 8.
  np.testing.assert_allclose(double, [-0.10546875, 0.87890625, 0.26171875, -0.03515625])
  np.testing.assert_allclose(
    multiscale.averaging(4, 3) * 2, [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
  )
  # Scales 2 and 7 lie halfway: rounding decides, in the authors' order of operations.
  found = [multiscale.smoother_of(k, 10, 4) for k in range(10)]
  assert found == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
