"""From tokens of several scales to latents, for models that read these.

B batch, h w latent grid (the last scale), s a scale's side, L tokens of all scales,
C latent channels.
"""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from fluid.parallel import sharding


class Latents:
  """The part of a tokenizer between tokens and latents, with its fixed weights.

  Equal and of one hash where config and weights are, so that it can be static in jit:
  the weights (about a megabyte) are constants of what is compiled, no parameters.

  Attributes:
    sides: of the scales.
  """

  def __init__(self, config, params):
    self._config = dataclasses.replace(config, path="")
    self._module = self._config.module()
    if params is None:
      tokens = jnp.zeros((1, sum(s * s for s in config.scales)), jnp.int32)
      made = lambda: self._module.init(
        jax.random.key(0), tokens, method=self._module.latents
      )
      shapes = jax.eval_shape(made)["params"]
      params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
    wanted = ("codebook", *(f"smooth_{i}" for i in range(config.smoothers)))
    self._params = {
      k: jax.tree.map(np.asarray, v) for k, v in params.items() if k in wanted
    }
    self.sides = tuple(config.scales)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(self._params):
      digest.update(leaf.tobytes())
    self._identity = (self._config, digest.hexdigest())

  def __eq__(self, other):
    return isinstance(other, Latents) and self._identity == other._identity

  def __hash__(self):
    return hash(self._identity)

  def _apply(self, method, *args):
    params = jax.tree.map(jnp.asarray, self._params)
    run = lambda *args: self._module.apply({"params": params}, *args, method=method)
    if sharding.explicit():  # Convolutions and gathers: by the compiler.
      mesh = jax.sharding.get_abstract_mesh()
      run = jax.sharding.auto_axes(
        run, axes=mesh.axis_names, out_sharding=sharding.batch_spec()
      )
    return run(*args)

  def blank(self, rows: int) -> jax.Array:
    """The sum before the first scale [B, h, w, C]."""
    return jnp.zeros((rows, *[self.sides[-1]] * 2, self._config.channels))

  def inputs(self, tokens) -> jax.Array:
    """[B, L] -> inputs of all scales but the first [B, L - s s, C]."""
    return self._apply(self._module.inputs, tokens)

  def add(self, latent, tokens, scale: int) -> jax.Array:
    """The sum with the tokens of one more scale [B, s s]."""
    return latent + self._apply(self._module.contribution, tokens, scale)

  def at(self, latent, scale: int) -> jax.Array:
    """The sum as the input of a scale [B, s s, C]."""
    return self._apply(self._module.at_scale, latent, scale)
