"""Ahead-of-time reports: the traffic of programs that are known, a compile for TPU."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from launch import hlo

ROWS, WIDTH, LAYERS = 16, 8, 5


def compiled_text(fn, *args, specs):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  put = lambda a, s: jax.device_put(a, jax.NamedSharding(mesh, s))
  args = [put(a, s) for a, s in zip(args, specs)]
  return jax.jit(fn).lower(*args).compile().as_text()


def test_an_all_reduce():
  text = compiled_text(
    lambda x, w: x @ w, jnp.ones((ROWS, 64)), jnp.ones((64, WIDTH)),
    specs=(P(None, "x"), P("x")),
  )  # fmt: skip
  (traffic,) = [hlo.collectives(text)["all-reduce"]]
  size = ROWS * WIDTH * 4
  assert traffic == hlo.Traffic(1, size, 2 * size * 7 / 8)


def test_a_scanned_body_counts_once_per_layer():
  def f(x, ws):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]

  text = compiled_text(
    f, jnp.ones((ROWS, WIDTH)), jnp.ones((LAYERS, WIDTH, WIDTH)),
    specs=(P("x"), P(None, "x")),
  )  # fmt: skip
  traffic = hlo.collectives(text)
  assert traffic["all-gather"].count in (1, LAYERS)  # XLA may hoist it out of the loop.
  assert traffic["all-gather"].bytes == LAYERS * WIDTH * WIDTH * 4


def test_bytes_and_groups_of_the_forms_that_tpu_programs_take():
  line = (
    "%a = (f32[4]{0}, bf16[1,16,64]{2,1,0:T(8,128)(2,1)S(1)}) all-gather-start(%p), "
    "replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}, dimensions={0}"
  )
  text = "ENTRY %main (p: f32[4]) -> f32[4] {\n  " + line + "\n}\n"
  size = 16 * 64 * 2
  assert hlo.collectives(text) == {"all-gather": hlo.Traffic(1, size, size * 7 / 8)}
  # XLA combines small collectives into one with a tuple of results.
  two = text.replace("(f32[4]{0}, bf16", "(f32[2]{0}, bf16").replace("-start", "")
  summed = two.replace("all-gather", "all-reduce")
  assert hlo.collectives(summed)["all-reduce"].bytes == size + 8
  scattered = (
    text.replace("f32[4]{0}, ", "")
    .replace("all-gather-start", "reduce-scatter")
    .replace("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", "[2,4]<=[8]")
  )
  assert hlo.collectives(scattered)["reduce-scatter"].link_bytes == 3 * size


def aot(*args, config="configs/toy.py:size=xs"):
  command = [sys.executable, "-m", "launch.aot_compile", "--topology=v5e:2x2"]
  command += [f"--config={config}", "--config.mesh.fsdp=2", *args]
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return subprocess.run(command, env=env, capture_output=True, text=True)


needs_libtpu = pytest.mark.skipif(
  not importlib.util.find_spec("libtpu"), reason="libtpu is not installed"
)


@needs_libtpu
def test_a_small_config_compiles_for_a_topology(tmp_path):
  file = tmp_path / "report.json"
  done = aot(f"--json={file}", "--config.steps=10")
  assert done.returncode == 0, done.stderr
  row = json.loads(file.read_text())
  assert row["fits"] and row["devices"] == 4 and row["mesh"] == {"data": 2, "fsdp": 2}
  assert 0 < row["memory"]["total"] < row["memory"]["limit"]
  assert row["estimate"]["layer_seconds"] > 0
  assert 0 < row["estimate"]["roofline_mfu"] < 1


@needs_libtpu
@pytest.mark.parametrize(
  "mode, config, args, words",
  [
    ("decode", "configs/toy.py:size=xs", (), "vae, decode:"),
    (
      "text",
      "configs/fluid.py:text=t5",
      ("--config.text.width=512", "--config.mesh.data=2"),
      "t5, text: 35.3M",
    ),
  ],
)
def test_what_runs_beside_the_net_compiles_too(mode, config, args, words):
  given = (f"--mode={mode}", "--config.sample.batch=8", *args)
  done = aot("--quick", *given, config=config)
  assert done.returncode == 0, done.stderr
  assert words in done.stdout and "GiB a device" in done.stdout


@needs_libtpu
def test_what_does_not_fit_is_said_and_fails():
  done = aot("--quick", "--estimate=false", f"--config.batch={2**22}")
  assert done.returncode == 1
  assert "DOES NOT FIT in 16 GiB" in done.stdout
