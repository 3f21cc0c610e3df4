"""AdamW and Muon: learning rate schedule, clipping, EMA, accumulation.

B batch, A microbatches.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax
import optax.contrib

from fluid import config, trees
from fluid.parallel import sharding

Axes = optax.contrib.MuonDimensionNumbers


def schedule(cfg: config.Optim, steps: int) -> Callable:
  """Updates done so far -> learning rate of the next update.

  The warm-up is linear and reaches lr with update number `warmup`; the first update
  already has lr / warmup. 'cosine' ends at 0; 'wsd' falls linearly to 0 over the last
  decay_fraction of the steps.
  """

  def lr(step):
    t = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum((t + 1) / max(cfg.warmup, 1), 1.0)
    if cfg.schedule == "cosine":
      done = jnp.clip((t - cfg.warmup) / max(steps - cfg.warmup, 1), 0.0, 1.0)
      shape = 0.5 * (1 + jnp.cos(jnp.pi * done))
    elif cfg.schedule == "wsd":
      shape = jnp.clip((steps - t) / max(cfg.decay_fraction * steps, 1e-9), 0.0, 1.0)
    else:
      shape = 1.0
    return cfg.lr * warm * shape

  return lr


def of(run: config.Run, net) -> tuple[optax.GradientTransformation, Callable]:
  """The optimizer of a run and its learning rate by update."""
  cfg = run.optim.at(run.model.trunk.width)
  optimizer = make_optimizer(cfg, run.steps, net.decays, net.matrix)
  return optimizer, schedule(cfg, run.steps)


def make_optimizer(
  cfg: config.Optim, steps: int, decays: Callable, matrices: Callable
) -> optax.GradientTransformation:
  """Clip by global norm (0: off), then AdamW, or Muon for the matrices.

  Args:
    decays: params -> tree of bools, which of them decay (Net.decays).
    matrices: name -> input and output axes of a matrix for Muon, or None (Net.matrix).
  """
  clip = optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity()
  adamw = optax.adamw(
    schedule(cfg, steps),
    b1=cfg.b1,
    b2=cfg.b2,
    weight_decay=cfg.weight_decay,
    mask=decays,
  )
  if not cfg.muon:
    return optax.chain(clip, adamw)
  muon = optax.chain(
    optax.trace(0.95, nesterov=True),
    orthogonal(matrices),
    optax.add_decayed_weights(cfg.weight_decay, decays),
    optax.scale_by_learning_rate(
      schedule(dataclasses.replace(cfg, lr=cfg.muon), steps)
    ),
  )

  labels = lambda params: trees.map_names(
    lambda name, _: "muon" if matrices(name) else "adamw", params
  )
  return optax.chain(clip, optax.partition({"muon": muon, "adamw": adamw}, labels))


def orthogonal(matrices: Callable) -> optax.GradientTransformation:
  """Updates -> singular values near sqrt(max(1, outputs / inputs)), by Newton-Schulz.

  On a mesh the iterations need whole matrices, which are gathered for them: each device
  has its share of the layers where fsdp divides them, else all.
  """

  def one(name, x):
    inputs, outputs = matrices(name)
    # Without a past it is a function: momentum comes before it.
    muon = optax.contrib.scale_by_muon(
      beta=0.0, nesterov=False, weight_dimension_numbers=Axes(inputs, outputs)
    )
    size = lambda axes: math.prod(x.shape[i] for i in axes)
    scale = math.sqrt(max(1, size(outputs) / size(inputs)))
    run = lambda x: scale * muon.update(x, muon.init(x))[0]
    if not sharding.explicit():
      return run(x)
    parts = jax.sharding.get_abstract_mesh().shape["fsdp"]
    where = jax.P("fsdp" if x.shape[0] % parts == 0 else None)
    run = jax.shard_map(run, in_specs=where, out_specs=where)
    return jax.reshard(run(jax.reshard(x, where)), jax.typeof(x).sharding)

  return optax.stateless(lambda updates, params=None: trees.map_names(one, updates))


def update_ema(ema, params, decay: float):
  """decay * ema + (1 - decay) * params, by leaf."""
  return optax.incremental_update(params, ema, 1 - decay)


def module_norms(tree) -> dict[str, jax.Array]:
  """Norm over the leaves of each module, by the first two parts of their names."""
  squares: dict[str, list] = {}
  for name, leaf in trees.paths(tree).items():
    module = "/".join(name.split("/")[:2])
    squares.setdefault(module, []).append(jnp.sum(jnp.square(leaf)))
  return {module: jnp.sqrt(sum(s)) for module, s in squares.items()}


def distance(a, b) -> jax.Array:
  """Norm of a - b over all leaves."""
  return optax.global_norm(jax.tree.map(jnp.subtract, a, b))


def keep_if(good: jax.Array, new, old):
  """`new` where the scalar `good` is true, else `old`, leaf by leaf.

  Counters go on in any case, so that keys, data and schedule stay those of the step.
  """

  def leaf(n, o):
    counts = jnp.issubdtype(n.dtype, jnp.integer)
    return n if counts else jax.lax.select(good, n, o)

  return jax.tree.map(leaf, new, old)


def mean_grad(loss_fn, params, batch: dict, accum: int = 1) -> tuple[dict, Any, dict]:
  """Gradient of a mean over the batch, in `accum` microbatches.

  Args:
    loss_fn: (params, batch) -> dict of name -> Mean with 'loss' among them, and an
      array with a row for each example.
    batch: arrays [B, ...], B a multiple of accum.

  Returns:
    The dict of Means over the whole batch, the rows [B, ...], and the gradient of
    Means['loss'].value. Sums are accumulated and divided once, so microbatches with
    different counts (masked tokens, padding rows) weigh what they weigh in the unsplit
    batch.
  """

  def total(params, batch):
    means, rows = loss_fn(params, batch)
    return means["loss"].sum, (means, rows)

  grad = jax.grad(total, has_aux=True)
  if accum == 1:
    grads, (means, rows) = grad(params, batch)
  else:
    # '(b a)': each device splits its own rows; '(a b)' would move them between devices.
    split = {
      k: einops.rearrange(v, "(b a) ... -> a b ...", a=accum) for k, v in batch.items()
    }
    split = sharding.by_rows(split, axis=1)
    part = lambda microbatch: grad(params, sharding.by_rows(microbatch))

    def add(carry, microbatch):
      grads, (means, rows) = part(microbatch)
      return jax.tree.map(jnp.add, carry, (grads, means)), rows

    shapes = jax.eval_shape(part, {k: v[0] for k, v in split.items()})
    zeros = (
      jax.tree.map(jnp.zeros_like, params),
      jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes[1][0]),
    )
    (grads, means), rows = jax.lax.scan(add, zeros, split)
    rows = einops.rearrange(rows, "a b ... -> (b a) ...")
  count = jnp.maximum(means["loss"].count, 1e-30)
  return means, rows, jax.tree.map(lambda g: g / count, grads)
