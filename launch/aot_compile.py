"""Compiles a config for TPUs that are not here: does it fit, and how fast could it be?

  python -m launch.aot_compile --config=configs/fluid.py:size=1.1B --topology=v5p:4x4x4

Needs `pip install -r requirements-tpu.txt`, no TPU. Prints bytes per device against the
chip's memory, FLOPs, traffic between devices and, for training, two estimates of a
step's time:

- compiler: libtpu's own cost model (`optimal_seconds`). It counts the body of a loop
  once, so a layer's time is the difference of two unrolled programs that differ in one
  layer, and the program is put together from these.
- roofline: the slowest of FLOPs over peak, HBM bytes over bandwidth, and link bytes
  over bandwidth, as if all overlapped, by the data sheets in launch/chips.py.

Neither is a measurement. The exit status is 1 if the program does not fit.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import time
from typing import Any

import jax
from absl import flags

from fluid import config, flops, models, rng, sampling
from fluid.console import cli
from fluid.parallel import sharding
from fluid.text import frozen, weights
from fluid.tokenizers.base import by_rows
from fluid.training.state import abstract_state
from fluid.training.step import make_step
from launch import chips, hlo

# The last three are what fluid.prepare and the end of sampling run beside the net: the
# tokenizer of the config, and its frozen text encoder.
BESIDE = ("encode", "decode", "text")
MODES = ("train", "sample", "eval", *BESIDE)
GB = 2**30
# Forward once, backward twice, and once more what rematerialisation repeats.
RECOMPUTED = {"none": 3.0, "dots": 3.0, "block": 4.0}
# Several times faster to compile; memory came out 2 to 3 % higher, time the same.
QUICK = {"exec_time_optimization_effort": -1.0}


class DoesNotFit(Exception):
  """The compiler ran out of device memory."""


def report(
  run: config.Run,
  devices: list,
  mode: str = "train",
  *,
  estimate: bool = True,
  quick: bool = False,
) -> dict[str, Any]:
  """Compiles a run's program for `devices` -> what is printed, JSON-able.

  Raises:
    ConfigError: the mesh or the batch does not divide.
  """
  chip, peak = chips.of(devices[0])
  slices = len({getattr(d, "slice_index", 0) for d in devices})
  if slices > 1 and run.mesh.slice == 1:
    run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, slice=slices))
  mesh = sharding.make_mesh(run.mesh, devices)
  batch = run.batch if mode in ("train", "eval") else run.sample.batch
  if mode != "sample":  # The compiler lays sampling out; all else is divided by hand.
    sharding.check_batch(batch, mesh, run.accum if mode in ("train", "eval") else 1)
  out = {
    "mode": mode,
    "device": devices[0].device_kind,
    "devices": len(devices),
    "mesh": {k: v for k, v in mesh.shape.items() if v > 1},
    "batch": batch,
    "quick": quick,
    "jax": jax.__version__,
  }
  if mode in BESIDE:
    part = run.text if mode == "text" else run.tokenizer
    params = _beside(run, mode, mesh)[1]
    count = sum(a.size for a in jax.tree.leaves(params))
    out |= {"size": part.kind, "cell": "", "params": count}
  else:
    net = models.Net.of(run, platform="tpu")
    out |= {
      "size": run.model.size,
      "cell": run.model.cell,
      "accum": run.accum,
      "remat": run.model.trunk.remat,
      "attention": net.model.trunk.attention,
      "params": flops.parameters(net)["total"],
    }
  start = time.time()
  try:
    compiled = compile_program(run, mesh, mode, quick)
  except DoesNotFit as e:
    return out | {"fits": False, "error": str(e), "memory": {"limit": chip.memory}}
  out["compile_seconds"] = round(time.time() - start, 1)
  out["memory"] = memory(compiled) | {"limit": chip.memory}
  out["fits"] = out["memory"]["total"] <= chip.memory
  traffic = hlo.collectives(compiled.as_text())
  out["collectives"] = {k: dataclasses.asdict(v) for k, v in traffic.items()}
  if mode in ("train", "eval"):
    out["flops"] = flops.forward(net)["total"] * batch * (3 if mode == "train" else 1)
  if mode == "train" and estimate:
    dcn = 0.0
    if slices > 1:  # One all-reduce of this device's share of the gradients.
      share = 4 * out["params"] / mesh.shape["fsdp"] / mesh.shape["model"]
      dcn = 2 * (slices - 1) / slices * share / chip.dcn
    out["estimate"] = estimates(run, mesh, net, traffic, chip, peak, dcn)
  return out


def compile_program(run: config.Run, mesh, mode: str, quick: bool = False):
  """-> what jax compiled: the train step, the loss, the sampler, or what is beside.

  Raises:
    DoesNotFit: the compiler found no way to keep it in the device's memory.
  """
  if mode in BESIDE:
    fn, *args = _beside(run, mode, mesh)
    with jax.set_mesh(mesh):
      return _compile(jax.jit(fn).lower(*args), quick)
  net = models.Net.of(run, platform="tpu")
  rows = jax.NamedSharding(mesh, sharding.batch_spec())
  state = abstract_state(net, run, mesh)
  abstract = lambda f, s: jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), jax.eval_shape(f)
  )
  with jax.set_mesh(mesh):
    if mode == "sample":
      copies = jax.NamedSharding(mesh, jax.P())
      b = abstract(lambda: net.example(run.sample.batch), copies)
      keys = abstract(
        lambda: jax.random.split(jax.random.key(0), run.sample.batch), copies
      )
      program, dials = sampling.turned(run.sample)
      lowered = sampling._generate.lower(
        state.ema, b["text"], b["text_mask"], keys, dials, net=net, cfg=program
      )
    else:
      b = abstract(lambda: net.example(run.batch), rows)
      lowered = (
        jax.jit(make_step(net, run), donate_argnums=0).lower(state, b)
        if mode == "train"
        else jax.jit(functools.partial(_loss, net, run.seed)).lower(state.ema, b)
      )
    return _compile(lowered, quick)


def _compile(lowered, quick: bool):
  try:
    return lowered.compile(QUICK if quick else None)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    used = re.search(r"Used [\d.]+\w+ of [\d.]+\w+ \w+", str(e))
    raise DoesNotFit(used[0] if used else str(e).splitlines()[0][:200]) from e


def _beside(run: config.Run, mode: str, mesh) -> tuple[Any, ...]:
  """A function and its abstract arguments, of which the first is its parameters.

  Raises:
    ConfigError: the text encoder is not a frozen one of a published size.
  """
  like = lambda shape, dtype, spec: jax.ShapeDtypeStruct(
    shape, dtype, sharding=jax.NamedSharding(mesh, spec)
  )
  b, rows = run.sample.batch, sharding.batch_spec()
  if mode == "text":
    network = run.text.network() if isinstance(run.text, frozen.FrozenConfig) else None
    if network is None:
      raise config.ConfigError(
        f"config section 'text' ({run.text.kind}, width {run.text.width}) is no frozen "
        "encoder of a published size: there is nothing to compile"
      )
    params = weights.abstract(network.rows(), run.text.dtype, mesh)
    shape = (b, run.text.length)
    return (
      functools.partial(frozen.features, network, dtype=run.text.dtype),
      params,
      like(shape, "int32", rows),
      like(shape, "bool", rows),
    )
  tokenizer = run.tokenizer.make(run.data.image_size)
  shapes = jax.eval_shape(tokenizer.init, jax.random.key(0))
  params = jax.tree.map(lambda a: like(a.shape, a.dtype, jax.P()), shapes)
  spec, side = tokenizer.spec, run.data.image_size
  if mode == "encode":
    name = "moments_with" if spec.kind == "continuous" else "encode_with"
    data = like((b, side, side, 3), "float32", rows)
  else:
    name = "decode_with"
    data = (
      like((b, spec.length, spec.channels), "float32", rows)
      if spec.kind == "continuous"
      else like((b, spec.length), "int32", rows)
    )
  return functools.partial(by_rows, getattr(tokenizer, name)), params, data


def _loss(net, seed, params, batch):
  keys = rng.example_keys(rng.stream(seed, "eval"), batch["id"])
  out = net.loss(params, batch, keys, train=False)
  return (out["loss"] * out["mask"]).sum(-1)


def memory(compiled) -> dict[str, int]:
  """Bytes on a device: arguments, output (what does not reuse them), temporaries."""
  m = compiled.memory_analysis()
  out = {
    "arguments": m.argument_size_in_bytes,
    "output": m.output_size_in_bytes - m.alias_size_in_bytes,
    "temporaries": m.temp_size_in_bytes,
    "code": m.generated_code_size_in_bytes,
  }
  return out | {"total": sum(out.values())}


def estimates(run, mesh, net, traffic, chip, peak, dcn: float) -> dict[str, Any]:
  """Seconds and MFU of a training step by the compiler's model and by the roofline."""
  m, trunk = run.model, run.model.trunk
  beside = getattr(m.condition, "layers", 0)  # Blocks over the text.
  micro = dataclasses.replace(run, batch=run.batch // run.accum, accum=1)

  def cost(layers, aligner):
    changes = {"model.trunk.layers": layers, "model.trunk.scan": False}
    changes |= {"model.condition.layers": aligner} if beside else {}
    changed = config.replaced(micro, changes)
    compiled = compile_program(changed, mesh, "train", quick=True)
    c = compiled.cost_analysis()
    return c["optimal_seconds"], c["bytes accessed"]

  low = min(beside, 1)
  one, two = cost(1, low), cost(2, low)
  text = cost(1, 2) if beside > 1 else one
  seconds, hbm = (
    run.accum * (a + (trunk.layers - 1) * (b - a) + (beside - low) * (c - a))
    for a, b, c in zip(one, two, text)
  )
  forward = flops.forward(net)["total"] * run.batch / mesh.size
  link = sum(t.link_bytes for t in traffic.values())
  parts = {
    "flops": forward * RECOMPUTED[trunk.remat] / peak,
    "hbm": hbm / chip.hbm,
    "links": link / chip.ici,
    "slices": dcn,
  }
  best = 3 * forward / peak  # What MFU counts: no recomputation.
  roofline = max(parts.values())
  out = {
    "roofline_seconds": roofline,
    "roofline_mfu": best / roofline,
    "roofline_parts": parts,
    "hbm_bytes": hbm,
  }
  # libtpu's model is negative for some programs that send between slices.
  if min(one[0], two[0] - one[0], text[0], seconds) <= 0:
    return out
  return out | {
    "compiler_seconds": seconds + dcn,
    "compiler_mfu": best / (seconds + dcn),
    "layer_seconds": two[0] - one[0],
    "images_per_second": run.batch / (seconds + dcn),
  }


def lines(row: dict[str, Any]) -> list[str]:
  """The report as text."""
  mesh = " x ".join(f"{k} {v}" for k, v in row["mesh"].items()) or "1"
  out = [
    f"{row['size']} {row['cell']}".strip()
    + f", {row['mode']}: {row['params'] / 1e6:,.1f}M "
    f"parameters on {row['devices']} x {row['device']} ({mesh}), batch {row['batch']}"
    + (f" in {row['accum']} microbatches" if row.get("accum", 1) > 1 else "")
    + (
      f", remat {row['remat']}, attention {row['attention']}" if "remat" in row else ""
    )
  ]
  limit = row["memory"]["limit"] / GB
  if "error" in row:
    return [*out, f"DOES NOT FIT in {limit:.0f} GiB: {row['error']}"]
  m = {k: v / GB for k, v in row["memory"].items()}
  out.append(
    f"memory    {m['total']:.2f} of {limit:.0f} GiB a device: arguments "
    f"{m['arguments']:.2f}, temporaries {m['temporaries']:.2f}, output "
    f"{m['output']:.2f}, code {m['code']:.2f}"
    + ("" if row["fits"] else " DOES NOT FIT")
  )
  for kind, t in sorted(row["collectives"].items()):
    out.append(f"{kind:18} {t['count']:>6} x, {t['bytes'] / GB:8.3f} GiB a device")
  if "flops" in row:
    out.append(f"flops     {row['flops']:.3e} a step (model, without recomputation)")
  if e := row.get("estimate"):
    parts = ", ".join(
      f"{k} {v * 1e3:.1f} ms" for k, v in e["roofline_parts"].items() if v
    )
    out += [
      f"estimate  compiler {e['compiler_seconds'] * 1e3:.1f} ms a step, MFU "
      f"{e['compiler_mfu']:.1%}, {e['images_per_second']:,.0f} images/s; a trunk layer "
      f"{e['layer_seconds'] * 1e3:.2f} ms"
      if "compiler_seconds" in e
      else "estimate  compiler: none, its model gave a time below zero",
      f"estimate  roofline {e['roofline_seconds'] * 1e3:.1f} ms a step, MFU "
      f"{e['roofline_mfu']:.1%} ({parts})",
    ]
  return [*out, f"compiled in {row['compile_seconds']:.0f} s"]


def main(argv) -> None:
  """Prints the report of one config; writes it as JSON if asked."""
  del argv
  f = flags.FLAGS
  run = cli.read(CONFIG)
  if not f.topology:
    raise cli.UserError("missing flag --topology, e.g. --topology=v5p:4x4x4")
  devices = chips.devices(f.topology, f.num_slices)
  row = report(run, devices, f.mode, estimate=f.estimate, quick=f.quick)
  row = {"topology": f.topology, "slices": f.num_slices} | row
  print("\n".join(lines(row)), flush=True)
  if f.json:
    pathlib.Path(f.json).write_text(json.dumps(row, indent=2) + "\n")
  if not row["fits"]:
    raise SystemExit(1)


def only_compile() -> None:
  """Keeps jax off this machine's devices and libtpu from looking for a TPU."""
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")  # Any; else it warns.
  os.environ.setdefault("TPU_LOG_DIR", "disabled")
  os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
  jax.config.update("jax_platforms", "cpu")


if __name__ == "__main__":
  only_compile()
  CONFIG = cli.config_flag()
  flags.DEFINE_string("topology", None, "Kind and shape of one slice: v5p:4x4x4.")
  flags.DEFINE_integer("num_slices", 1, "Slices; parameters are copied to each.")
  flags.DEFINE_enum("mode", "train", MODES, "The program to compile.")
  flags.DEFINE_string("json", None, "Write the report to this file.")
  flags.DEFINE_bool("estimate", True, "Compile for the estimates of time, too.")
  flags.DEFINE_bool("quick", False, "Let the compiler optimise less.")
  cli.run(main)
