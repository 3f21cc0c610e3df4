"""Parameters and FLOPs by component, and what the devices could do at best.

    python -m fluid.flops [--size S]

Components: core (trunk), aligner (text side), head, embeddings (tables, positions,
token projections), and frozen: text_encoder, tokenizer. 'total' is what is trained.
Parameters are those of the tree, which its parts' PARAMETERS sort; FLOPs are counted in
the jaxpr, because XLA counts a scanned body once. A matmul of [m, k] by [k, n] has
2 m k n FLOPs; norms, softmax and activations are not counted.
"""

import dataclasses
import functools
import math
import time
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from absl import flags

from fluid import config, models, sampling, tokenizers, trees
from fluid.console import cli
from fluid.text import weights

TRAINED = ("core", "aligner", "head", "embeddings")

# Dense bfloat16 FLOP/s of one jax device, from the vendors' datasheets; the first name
# found in device_kind counts. A TPU7x chip (2307e12) shows up as two devices.
PEAKS = {
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v6": 918e12,
  "TPU7x": 1153.5e12,
  "H200": 989e12,
  "H100 PCIe": 756e12,
  "H100": 989e12,
  "A100": 312e12,
}


def parameters(net: models.Net) -> dict[str, int]:
  """Trained parameters by component and their total."""
  out = dict.fromkeys(TRAINED, 0)
  for name, leaf in trees.paths(jax.eval_shape(net.init, jax.random.key(0))).items():
    out[net.rule(name)[1]] += leaf.size
  return out | {"total": sum(out.values())}


@functools.cache
def forward(net: models.Net) -> dict[str, int]:
  """FLOPs of one training forward pass of one image, by component and in total.

  Attention counts every pair, also of causal attention, as that is what is computed.
  """
  plain = dataclasses.replace(net.model, trunk=net.model.trunk.plain())
  net = dataclasses.replace(net, model=plain)
  batch = net.example(1)
  text, mask, drop = batch["text"], batch["text_mask"], jnp.zeros(1, bool)
  keys = jax.random.split(jax.random.key(0), 1)

  def run(params):
    cond = net.condition(params, text, mask, drop)
    args = batch["tokens"], cond, keys, net.order.passes, 0
    return net.apply(params, "trained", *args)[1]

  params = jax.eval_shape(net.init, jax.random.key(0))
  count = lambda f: traced(f, params)
  total = count(lambda p: net.loss(p, batch, keys, train=True, step=0)["loss"])
  inside = count(run)
  condition = count(lambda p: net.condition(p, text, mask, drop))
  embeddings = count(lambda p: net.embed(p, batch["tokens"]))
  return {
    "core": inside - condition - embeddings,
    "aligner": condition,
    "head": total - inside,
    "embeddings": embeddings,
    "total": total,
  }


@functools.cache
def drawing(net: models.Net, sample: config.Sample) -> int:
  """FLOPs of drawing one image's tokens: every step, both halves of a guided pair."""
  program, dials = sampling.turned(sample)
  params = jax.eval_shape(net.init, jax.random.key(0))
  example = net.example(1)
  run = lambda params, text, mask, key: sampling.generate(
    net, params, text, mask, key[None], program, dials
  )
  key = jax.eval_shape(lambda: jax.random.key(0))
  return traced(run, params, example["text"], example["text_mask"], key)


def traced(fn, *args) -> int:
  """FLOPs of the matmuls and convolutions of fn(*args), counted in its jaxpr."""
  return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr) -> int:
  total = 0
  for eqn in jaxpr.eqns:
    out = math.prod(eqn.outvars[0].aval.shape) if eqn.outvars else 0
    if eqn.primitive.name == "dot_general":
      (contract, _), _ = eqn.params["dimension_numbers"]
      total += 2 * out * math.prod(eqn.invars[0].aval.shape[i] for i in contract)
    elif eqn.primitive.name == "conv_general_dilated":
      kernel = eqn.invars[1].aval.shape
      features = eqn.params["dimension_numbers"].rhs_spec[0]
      total += 2 * out * math.prod(kernel) // kernel[features]
    times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
    total += times * sum(_count(j) for j in jex.core.jaxprs_in_params(eqn.params))
  return total


def describe(net: models.Net, run: config.Run) -> dict[str, dict[str, int]]:
  """-> 'params' and 'forward_flops_per_image', each by component.

  The tokenizer's FLOPs are those of encoding an image; a cached data set pays them
  once, so they are not in the total; the same holds for a frozen text encoder.
  """
  tokenizer = tokenizers.described(run.tokenizer)
  frozen, text = tokenizing(tokenizer, run.data.image_size), reading(run.text)
  trained = {"params": parameters(net), "forward_flops_per_image": forward(net)}
  return {
    k: v | {"text_encoder": text[k], "tokenizer": frozen[k]} for k, v in trained.items()
  }


@functools.cache
def tokenizing(config: Any, image_size: int) -> dict[str, int]:
  """A tokenizer's 'params', and 'forward_flops_per_image' of encoding one."""
  tokenizer, variables, image = _untrained(config, image_size)
  return {
    "params": sum(a.size for a in jax.tree.leaves(variables)),
    "forward_flops_per_image": traced(tokenizer.encode_with, variables, image),
  }


@functools.cache
def training(config: Any, image_size: int) -> int:
  """FLOPs of an image in a tokenizer's training step: three times its loss."""
  tokenizer, variables, image = _untrained(config, image_size)

  def loss(variables, image, key):
    state = tokenizer.training_state(variables)
    return tokenizer.loss(variables["params"], state, image, key)[0]

  key = jax.eval_shape(lambda: jax.random.key(0))
  return 3 * traced(loss, variables, image, key)


@functools.cache
def _untrained(config, image_size: int):
  """-> (tokenizer, shapes of its variables and of one image)."""
  tokenizer = config.make(image_size)
  key = jax.eval_shape(lambda: jax.random.key(0))
  variables = jax.eval_shape(tokenizer.init, key)
  image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  return tokenizer, variables, image


@functools.cache
def reading(text) -> dict[str, int]:
  """Of a frozen one, for one prompt; a learned one has nothing frozen."""
  network = text.network()
  if network is None:
    return {"params": 0, "forward_flops_per_image": 0}
  params = weights.abstract(network.rows(), text.dtype)
  ids = jax.ShapeDtypeStruct((1, text.length), jnp.int32)
  mask = jax.ShapeDtypeStruct(ids.shape, bool)
  run = lambda *args: network(*args, jnp.dtype(text.dtype))
  return {
    "params": sum(a.size for a in jax.tree.leaves(params)),
    "forward_flops_per_image": traced(run, params, ids, mask),
  }


def peak(devices) -> float:
  """FLOP/s of all devices at best, for MFU; NaN if they are not in the table.

  A CPU has no datasheet: its matmul rate is measured. Simulated devices share it.
  """
  if devices[0].platform == "cpu":
    return _cpu_peak() * len({d.process_index for d in devices})
  kind = devices[0].device_kind
  return next((v for k, v in PEAKS.items() if k in kind), math.nan) * len(devices)


@functools.cache
def _cpu_peak(size: int = 1024, repeats: int = 5) -> float:
  a = jax.device_put(jnp.ones((size, size)), jax.local_devices()[0])
  multiply = jax.jit(lambda a: a @ a)
  multiply(a).block_until_ready()
  best = math.inf
  for _ in range(repeats):
    start = time.perf_counter()
    multiply(a).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best


def table(rows: dict[str, dict[str, int]], unit: float, suffix: str) -> str:
  """Row name -> component -> count, as text in units of `unit`."""
  names = [*TRAINED, "total", "text_encoder", "tokenizer"]
  lines = [f"{suffix:20}" + "".join(f"{n:>13}" for n in names)]
  for name, row in rows.items():
    lines.append(f"{name:20}" + "".join(f"{row[n] / unit:13,.3f}" for n in names))
  return "\n".join(lines)


def main(argv) -> None:
  """Prints both tables; for one size what drawing an image costs, too."""
  del argv
  from configs import fluid as paper
  from configs import sizes, toy
  from fluid.models.published import RUNS

  known = [*sizes.PAPER, *sizes.TOY, *RUNS]
  size = flags.FLAGS.size
  if size and size not in known:
    raise cli.UserError(f"unknown size '{size}'; choose from {', '.join(known)}")
  described, drawn = {}, {}
  for name in [size] if size else known:
    if name in RUNS:
      run = RUNS[name]()
      net = models.Net.of(run)
      described[name] = describe(net, run)
      if size:
        drawn[name] = drawing(net, run.sample)
      continue
    module = paper if name in sizes.PAPER else toy
    for kind in ("continuous", "discrete"):
      run = config.from_config_dict(module.get_config(f"tokens={kind},size={name}"))
      net = models.Net.of(run)
      described[f"{name} {kind}"] = describe(net, run)
      if size:
        drawn[f"{name} {kind}"] = drawing(net, run.sample)
  for key, unit, title in (
    ("params", 1e6, "parameters [M]"),
    ("forward_flops_per_image", 1e9, "forward GFLOP/image"),
  ):
    print(table({k: v[key] for k, v in described.items()}, unit, title), end="\n\n")
  print("A training step has 3x the forward FLOPs; tokenizer: to encode an image.")
  if drawn:
    print(f"\n{'drawing [TFLOP/image]':20}")
  for name, count in drawn.items():
    print(f"{name:20}{count / 1e12:13,.3f}")


if __name__ == "__main__":
  flags.DEFINE_string("size", None, "Of configs/sizes.py or published; default: all.")
  cli.run(main)
