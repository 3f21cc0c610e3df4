"""Linear layers, norms and tables, aware of explicit sharding.

B batch, D width.

Parameters are float32 and cast to the activations' type where they are used; norms and
softmax compute in float32.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid.parallel import sharding
from fluid.parallel.sharding import spec

EMBED_INIT = nn.initializers.normal(0.02)


def _param(module, name, init, shape, axes):
  return module.param(
    name, lambda key: init(key, shape, jnp.float32, out_sharding=spec(*axes))
  )


class Table(nn.Module):
  """A learned array: embeddings, positions, single vectors."""

  shape: Sequence[int]
  axes: Sequence[str | None]
  init: Callable = EMBED_INIT

  @nn.compact
  def __call__(self) -> jax.Array:
    return _param(self, "w", self.init, tuple(self.shape), self.axes)


class Linear(nn.Module):
  """Contracts the last `n_in` axes of x with a kernel of shape (*inputs, *outputs).

  Attributes:
    inputs, outputs: sizes of the contracted and of the new axes.
    axes: logical names of the kernel's axes.
    init: of the kernel; default Xavier uniform over the flattened fans (as MAR).
    whole: see sharding.product.
  """

  inputs: Sequence[int]
  outputs: Sequence[int]
  axes: Sequence[str | None]
  bias: bool = True
  init: Callable | None = None  # type: ignore[assignment]
  whole: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    n, m = len(self.inputs), len(self.outputs)
    shape = (*self.inputs, *self.outputs)
    init = self.init or nn.initializers.variance_scaling(
      1.0, "fan_avg", "uniform", in_axis=range(n), out_axis=range(n, n + m)
    )
    w = _param(self, "w", init, shape, self.axes)
    lead, i, o = "abcde"[: x.ndim - n], "uvw"[:n], "xyz"[:m]
    # Outputs over fsdp would collide with the batch, which is sharded there already.
    free = [None if a == "embed" else a for a in self.axes]
    b = None
    if self.bias:
      b = _param(self, "b", nn.initializers.zeros, tuple(self.outputs), free[n:])
    return sharding.product(
      f"{lead}{i},{i}{o}->{lead}{o}",
      x,
      w.astype(x.dtype),
      b,
      x_axes=("batch", *[None] * (len(lead) - 1), *free[:n]),
      w_axes=self.axes,
      whole=self.whole,
    )


class Norm(nn.Module):
  """LayerNorm (default: as MAR) or RMSNorm over the last axis, computed in float32.

  Attributes:
    affine: with a learned scale, and bias.
    epsilon: added to the variance, or to the mean square.
    centred: LayerNorm; else RMSNorm, which has no bias.
  """

  affine: bool = True
  epsilon: float = 1e-6
  centred: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = x.astype(jnp.float32)
    if self.centred:
      y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
    if self.affine:
      d = x.shape[-1]
      y = y * _param(self, "scale", nn.initializers.ones, (d,), (None,))
      if self.centred:
        y = y + _param(self, "bias", nn.initializers.zeros, (d,), (None,))
    return y.astype(x.dtype)
