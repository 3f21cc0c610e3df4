"""One training step: a pure function of (state, batch), the same for every cell.

B batch, L tokens.
"""

import jax
import jax.numpy as jnp
import optax

from fluid import config, models, rng
from fluid.data.packing import BAD
from fluid.training import optim
from fluid.training.mean import Mean
from fluid.training.state import TrainState


def make_step(net: models.Net, run: config.Run):
  """-> step(state, batch) -> (state, values). Pure; not jitted.

  `values` maps names to scalars; its entry 'report' is for the case that something goes
  wrong: id and loss [B] of the examples, the gradient's norm by module, and how many
  rows were left out for each kind of damage. All of it is replicated, and none of it is
  copied to the host unless it is asked for.
  """
  optimizer, lr = optim.of(run, net)

  def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    key = rng.stream(run.seed, "train", state.step)

    def loss(params, batch):
      keys = rng.example_keys(key, batch["id"])
      if "cache" in batch:  # Of a mixture, whose ids repeat.
        keys = jax.vmap(jax.random.fold_in)(keys, batch["cache"])
      out = net.loss(params, batch, keys, train=True, step=state.step)
      mask = out["mask"] & batch["mask"][:, None]
      names = ("loss", "mse", "vb", "accuracy")
      each = jax.vmap(lambda x, m: Mean.of(x, m).value)(out["loss"], mask)
      return {k: Mean.of(out[k], mask) for k in names if k in out}, each

    means, each, grads = optim.mean_grad(loss, state.params, batch, run.accum)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    new = TrainState(
      state.step + 1,
      params,
      optim.update_ema(state.ema, params, run.optim.ema),
      opt_state,
    )
    by_module = optim.module_norms(grads)
    norm = jnp.sqrt(sum(jnp.square(n) for n in by_module.values()))
    size = optax.global_norm(params)
    values = {f"train/{k}": v.value for k, v in means.items()} | {
      "train/grad_norm": norm,
      "train/lr": lr(state.step),
      "train/update_ratio": optax.global_norm(updates) / size,
      "train/ema_distance": optim.distance(new.ema, params) / size,
    }
    if run.optim.max_skipped:
      good = jnp.isfinite(jnp.stack(jax.tree.leaves(values))).all()
      new = optim.keep_if(good, new, state)
    report = {"id": batch["id"], "loss": each, "grad_norm": by_module}
    if "bad" in batch:
      kinds = jnp.arange(1, 1 + len(BAD), dtype=jnp.int8)
      report["bad"] = (batch["bad"][:, None] == kinds).sum(0)
    return new, values | _latents(batch) | {"report": _replicated(report)}

  return step


def _latents(batch):
  """Mean and deviation of continuous tokens: a cache in other units shows here."""
  if not jnp.issubdtype(batch["tokens"].dtype, jnp.floating):
    return {}
  mean = Mean.of(batch["tokens"], batch["mask"]).value
  square = Mean.of(jnp.square(batch["tokens"] - mean), batch["mask"]).value
  return {"data/latent_mean": mean, "data/latent_std": jnp.sqrt(square)}


def _replicated(tree):
  if jax.sharding.get_abstract_mesh().empty:
    return tree
  return jax.tree.map(lambda x: jax.sharding.reshard(x, jax.P()), tree)
