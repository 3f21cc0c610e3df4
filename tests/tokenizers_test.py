"""Tokenizers: grouping, codebook, latent scale, storage."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from fluid import config as config_lib
from fluid import files, tokenizers
from fluid.tokenizers import autoencoder, base, store, train, vq
from fluid.tokenizers.vae import VAEConfig
from fluid.tokenizers.vq import VQConfig
from tests.pixels import (
  SIZE,
  SMALL,
  TINY,
  TINY_VQ,
  Pictures,
  bound,
  pictures,
  shrunk,
)

FULL = {"width": 8, "multipliers": (1, 2), "stem": 2, "attention": "deep"}
FULL |= {"z_channels": 6}


@pytest.fixture(scope="module", params=[TINY, TINY_VQ], ids=["vae", "vq"])
def trained(request):
  images = train.Images(Pictures("train"))
  config = request.param
  tokenizer, params, state = train.fit(config, SIZE, images.batches(16, 0), seed=0)
  variables = tokenizer.finish(params, state, images.some(64), 16)
  return config.make(SIZE, variables)


def test_patchify_equals_reference(fixtures):
  with np.load(fixtures / "mar" / "cases.npz") as cases:
    latent, tokens = cases["patchify/latent_nchw"], cases["patchify/tokens"]
  latent = latent.transpose(0, 2, 3, 1)
  patch = round((latent.shape[1] * latent.shape[2] / tokens.shape[1]) ** 0.5)
  np.testing.assert_array_equal(base.patchify(latent, patch), tokens)
  grid = (latent.shape[1] // patch, latent.shape[2] // patch)
  np.testing.assert_array_equal(base.unpatchify(tokens, patch, grid), latent)


def test_patchify_is_row_major_over_tokens_and_channel_major_within():
  latent = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
  tokens = base.patchify(latent, 2)
  assert tokens.shape == (2, 6, 12)
  for row, column, c, p, q in np.ndindex(2, 3, 3, 2, 2):
    np.testing.assert_array_equal(
      tokens[:, row * 3 + column, (c * 2 + p) * 2 + q],
      latent[:, row * 2 + p, column * 2 + q, c],
    )
  np.testing.assert_array_equal(base.unpatchify(tokens, 2, (2, 3)), latent)


@pytest.mark.parametrize(
  "config",
  [
    VAEConfig(**SMALL),
    VQConfig(**SMALL),
    VAEConfig(**FULL),
    VQConfig(**FULL, cosine=True),
  ],
  ids=["stem-vae", "stem-vq", "full-vae", "full-vq"],
)
def test_round_trip_fits_the_spec(config):
  kind, tokenizer = config.kind, bound(config)
  spec = tokenizer.spec
  images = np.zeros((3, SIZE, SIZE, 3), np.float32)
  tokens = tokenizer.encode(images)
  assert spec.length == spec.grid[0] * spec.grid[1]
  if kind == "vae":
    assert (tokens.shape, tokens.dtype) == ((3, 4, 16), jnp.float32)
    assert (spec.kind, spec.length, spec.channels) == ("continuous", 4, 16)
    mean, std = tokenizer.moments(images)
    np.testing.assert_array_equal(mean, tokens)
    assert std.shape == mean.shape and (std > 0).all()
  else:
    assert (tokens.shape, tokens.dtype) == ((3, 16), jnp.int32)
    assert (spec.kind, spec.length, spec.vocab) == ("discrete", 16, config.vocab)
    with pytest.raises(config_lib.ConfigError, match="no moments"):
      tokenizer.moments(images)
  recon = tokenizer.decode(tokens)
  assert (recon.shape, recon.dtype) == (images.shape, jnp.float32)
  assert np.abs(recon).max() <= 1
  assert tokenizers.TokenSpec.from_dict(spec.to_dict()) == spec


def test_layers_of_published_width_match_the_original():
  variables = jax.eval_shape(VAEConfig(width=128).make(16).init, jax.random.key(0))
  encoder = variables["params"]["encoder"]
  assert encoder["down_1_block_0"]["nin_shortcut"]["kernel"].shape == (1, 1, 128, 256)
  assert encoder["conv_out"]["kernel"].shape == (3, 3, 256, 8)
  for channels in (128, 256, 512):
    assert autoencoder.norm(channels, "norm").num_groups == 32


def test_nearest_equals_brute_force():
  gen = np.random.default_rng(0)
  z, codes = gen.normal(size=(200, 8)), gen.normal(size=(50, 8))
  distance = np.square(z[:, None] - codes[None]).sum(-1)
  ids = vq.nearest(jnp.asarray(z, jnp.float32), jnp.asarray(codes, jnp.float32))
  np.testing.assert_array_equal(ids, distance.argmin(1))


def test_straight_through_takes_value_and_gradient_from_different_places():
  z, codes = jnp.array([0.3, -0.7]), jnp.array([1.0, 2.0])
  value, grad = jax.value_and_grad(
    lambda z: (vq.straight_through(z, codes) ** 2).sum()
  )(z)
  assert value == pytest.approx(5.0)
  np.testing.assert_allclose(grad, 2 * codes, rtol=1e-6)


def test_codebook_moves_to_the_mean_of_its_latents_and_dead_codes_revive():
  z = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [0.0, 7.0]])
  ids = jnp.array([0, 0, 1, 1])
  state = {"count": jnp.array([1.0, 1.0, 1e-3]), "sum": jnp.ones((3, 2))}
  state, codebook, revived = vq.update_codebook(state, z, ids, jax.random.key(0), 0.5)
  np.testing.assert_allclose(codebook[0], [(0.5 + 2.0) / 1.5, 0.5 / 1.5], rtol=1e-6)
  np.testing.assert_allclose(codebook[1], [0.5 / 1.5, (0.5 + 6.0) / 1.5], rtol=1e-6)
  assert revived == 1
  assert any(np.allclose(codebook[2], row) for row in z)
  ids = vq.nearest(z, codebook)
  assert 2 in ids
  # A code that wins its share is not touched again.
  assert vq.update_codebook(state, z, ids, jax.random.key(1), 0.5)[2] == 0


def test_empty_codebook_is_placed_on_distinct_latents():
  z = jax.random.normal(jax.random.key(0), (64, 4))
  state = {"count": jnp.zeros(16), "sum": jnp.zeros((16, 4))}
  ids = jnp.zeros(64, jnp.int32)
  _, codebook, _ = vq.update_codebook(state, z, ids, jax.random.key(1), 0.9)
  distance = np.square(codebook[1:, None] - z[None]).sum(-1).min(1)
  np.testing.assert_allclose(distance, 0, atol=1e-10)
  assert len(np.unique(np.asarray(codebook), axis=0)) == 16


def test_training_raises_psnr(trained):
  images = train.to_float(pictures(32, seed=1))
  before, _ = train.evaluate(bound(trained.config), images)
  after, recon = train.evaluate(trained, images)
  assert recon.shape == images.shape
  assert after["val/psnr"] > before["val/psnr"] + 4
  if trained.spec.kind == "discrete":
    assert after["val/perplexity"] > 8
    assert after["val/codebook_used"] > 0.5


def test_latent_scale_gives_zero_mean_unit_variance(trained):
  if trained.spec.kind == "discrete":
    pytest.skip("ids have no scale")
  images = train.Images(Pictures("train")).some(64)
  mean, std = trained.moments(images)
  mean, std = (base.unpatchify(x, TINY.patch, trained.spec.grid) for x in (mean, std))
  axes = (0, 1, 2)  # One channel of the latent at a time.
  np.testing.assert_allclose(mean.mean(axes), 0, atol=1e-4)
  np.testing.assert_allclose(mean.var(axes) + (std**2).mean(axes), 1, rtol=1e-3)


def test_encoding_does_not_depend_on_the_batch(trained):
  images = train.to_float(pictures(10, seed=2))
  whole = np.asarray(trained.encode(images))
  parts = tokenizers.in_batches(trained.encode, images, 4)
  one = np.concatenate([trained.encode(x[None]) for x in images])
  for other in (parts, one):
    if trained.spec.kind == "discrete":
      np.testing.assert_array_equal(other, whole)
    else:
      np.testing.assert_allclose(other, whole, atol=2e-5)


def test_encoding_works_inside_jit_and_under_a_mesh(trained):
  images = train.to_float(pictures(8))
  plain = np.asarray(trained.encode(images))
  inside = jax.jit(lambda x: trained.encode(x * 1.0))(images)
  np.testing.assert_allclose(inside, plain, atol=2e-5)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
  with jax.set_mesh(mesh):
    tokens = trained.encode(images)
    np.testing.assert_allclose(tokens, plain, atol=2e-5)
    assert tokens.is_fully_replicated
    np.testing.assert_allclose(trained.encode(images[:3]), plain[:3], atol=2e-5)
    np.testing.assert_allclose(
      trained.decode(tokens), np.asarray(trained.decode(plain)), atol=2e-5
    )
  # A device holds the activations of its own image alone.
  spec = jax.ShapeDtypeStruct(images.shape, images.dtype)
  with jax.set_mesh(mesh):
    one, whole = (
      jax.jit(fn).lower(trained.variables, x).compile().memory_analysis()
      for fn, x in (
        (trained._jit("encode_with"), spec),
        (trained.encode_with, spec),
      )
    )
  assert one.temp_size_in_bytes < 0.5 * whole.temp_size_in_bytes


def test_save_and_load_bitwise(trained, tmp_path):
  path = str(tmp_path)
  store.save(path, trained, {"val/psnr": 1.0})
  again = tokenizers.load(path)
  assert (again.spec, again.config) == (trained.spec, trained.config)
  jax.tree.map(np.testing.assert_array_equal, again.variables, trained.variables)
  digest = store.read_config(path)["weights_sha256"]
  assert tokenizers.load(path, digest).spec == trained.spec
  with pytest.raises(config_lib.ConfigError, match="another tokenizer .*tokenizer"):
    tokenizers.load(path, "0" * 64)


def test_damaged_folders_are_one_clear_line(tmp_path):
  path = str(tmp_path / "vq")
  with pytest.raises(config_lib.ConfigError, match=f"no tokenizer in {path}"):
    tokenizers.load(path)
  with pytest.raises(config_lib.ConfigError, match="'tokenizer.path' is empty"):
    tokenizers.load("")
  store.save(path, bound(TINY_VQ), {})
  weights, settings = (
    os.path.join(path, n) for n in ("weights.safetensors", "config.json")
  )
  with open(settings, encoding="utf-8") as f:
    good = json.load(f)
  other = good | {"tokenizer": good["tokenizer"] | {"vocab": 64}}
  files.write_json(settings, other)
  with pytest.raises(config_lib.ConfigError, match="codebook has shape"):
    tokenizers.load(path)
  files.write_json(settings, good | {"tokenizer": good["tokenizer"] | {"blocks": 2}})
  with pytest.raises(config_lib.ConfigError, match="lacks params.decoder"):
    tokenizers.load(path)
  files.write_json(settings, good)
  os.truncate(weights, os.path.getsize(weights) // 2)
  with pytest.raises(config_lib.ConfigError, match="weights.safetensors .* is damaged"):
    tokenizers.load(path)
  os.remove(weights)
  with pytest.raises(config_lib.ConfigError, match="has no weights.safetensors"):
    tokenizers.load(path)
  files.write_bytes(settings, b'{"tokenizer":')
  with pytest.raises(config_lib.ConfigError, match="config.json .* is damaged"):
    tokenizers.load(path)
  files.write_json(settings, config_lib.to_dict(config_lib.Run()))
  with pytest.raises(config_lib.ConfigError, match="holds a run, not a tokenizer"):
    tokenizers.load(path)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"kind": "gan"}, "choose from vae, vq"),
    ({"width": 18}, "'tokenizer.width' .18. must be a multiple of 4"),
    ({"stem": 16}, "'data.image_size' .16. must be a multiple of 32"),
    ({"attention": "some"}, "'tokenizer.attention' is 'some'; choose from none, mid"),
    ({"multipliers": ()}, "'tokenizer.multipliers' .*must hold numbers above 0"),
    ({"multipliers": (1, 0)}, "'tokenizer.multipliers' .*must hold numbers above 0"),
    ({"vocab": 64}, "unknown config key 'tokenizer.vocab'"),  # Of the other kind.
  ],
)
def test_bad_settings_name_the_key(change, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    tree = config_lib.to_dict(config_lib.Run(tokenizer=TINY))
    tree["tokenizer"] |= change
    config_lib.from_config_dict(tree).tokenizer.make(SIZE)


@pytest.mark.parametrize("kind", tokenizers.TOKENIZERS)
def test_every_kind_round_trips_in_any_batch_and_is_stored(kind, tmp_path):
  known = {"vae": TINY, "vq": TINY_VQ}
  config = known.get(kind) or shrunk(kind)
  tokenizer = bound(config)
  spec, images = tokenizer.spec, train.to_float(pictures(4))
  tokens = tokenizer.encode(images)
  assert tokens.shape[:2] == (4, spec.length)
  if spec.kind == "discrete":
    assert 0 <= tokens.min() and tokens.max() < spec.vocab
  else:
    assert tokens.shape[2:] == (spec.channels,)
    np.testing.assert_allclose(tokenizer.moments(images)[0], tokens, atol=1e-5)
  recon = tokenizer.decode(tokens)
  assert recon.shape == images.shape and np.abs(recon).max() <= 1
  np.testing.assert_allclose(tokenizer.encode(images[1:2]), tokens[1:2], atol=1e-4)
  np.testing.assert_allclose(tokenizer.decode(tokens[1:2]), recon[1:2], atol=1e-4)
  store.save(str(tmp_path), tokenizer, {})
  again = tokenizers.load(str(tmp_path))
  assert again.config == config and again.spec == spec
  np.testing.assert_array_equal(again.encode(images), tokens)


def test_a_tokenizer_of_scales_smooths_them():
  with pytest.raises(config_lib.ConfigError, match="'x.smoothers' must be positive"):
    shrunk("var_vq", smoothers=0).check("x.")


@pytest.mark.parametrize("side", [0, -16])
def test_a_size_of_no_image_is_refused(side):
  with pytest.raises(config_lib.ConfigError, match="'data.image_size'"):
    TINY.make(side)
