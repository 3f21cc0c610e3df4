"""The commands of the README, end to end, on a study that is over in minutes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT

SWEEP = """
# Sampling options of a head and of an order are there where that is.
OWN = {
  "continuous": {"sample.diffusion_steps": 3}, "discrete": {},
  "random": {"sample.steps": 3}, "raster": {},
}


def sweep():
  for tokens, order in (("continuous", "random"), ("discrete", "raster")):
    yield dict(
      name=f"{tokens}-{order}-xs",
      config=f"configs/toy.py:tokens={tokens},order={order},size=xs",
      overrides={
        "tokenizer.steps": 4, "data.num_train": 128, "data.num_val": 64,
        "steps": 4, "batch": 16, "eval_every": 2, "checkpoint_every": 2,
        "log_every": 1, "optim.warmup": 2, "sample.batch": 12,
        "evals.loss.examples": 32, "evals.geneval.n": 2, "evals.geneval.k": 1,
        "evals.distribution.examples": 12, **OWN[tokens], **OWN[order],
      },
    )
"""


def call(*args):
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return subprocess.run(
    [sys.executable, "-m", *map(str, args)],
    cwd=ROOT,
    env=env,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp("study")
  sweep = folder / "sweep.py"
  sweep.write_text(SWEEP)
  args = (
    "launch.sweep",
    "--config",
    sweep,
    "--workdir",
    folder / "w",
    "--on",
    "local",
    "--plain",
    "--report",
  )
  out = call(*args)
  assert out.returncode == 0, out.stdout[-3000:]
  return folder / "w", args


@pytest.mark.slow
def test_sweep_trains_evaluates_and_reports(study):
  workdir, args = study
  for run in ("continuous-random-xs", "discrete-raster-xs"):
    folder = workdir / "runs" / run
    lines = [json.loads(s) for s in (folder / "metrics.jsonl").read_text().splitlines()]
    last = {k: v for line in lines for k, v in line.items() if line["step"] == 4}
    assert {"val/loss", "geneval/overall", "kid", "fd"} <= set(last)
    assert (folder / "samples" / "step_00000004.png").exists()
  page = (workdir / "report" / "index.html").read_text()
  assert "continuous-random" in page and "data:image/png;base64" in page
  again = call(*args)
  assert again.returncode == 0 and "finished (before)" in again.stdout


@pytest.mark.slow
def test_sample_and_evaluate_any_checkpoint(study, tmp_path):
  run = study[0] / "runs" / "continuous-random-xs"
  prompt = "a red circle left of a blue square"
  out = call(
    "fluid.sample",
    "--workdir",
    run,
    "--prompt",
    prompt,
    "--n",
    2,
    "--out",
    tmp_path / "a",
  )
  assert out.returncode == 0, out.stdout[-3000:]
  image = np.asarray(Image.open(tmp_path / "a" / "00000_01.png"))
  assert image.shape == (32, 32, 3)
  out = call("fluid.evaluate", "--workdir", run, "--evals", "loss", "--weights", "raw")
  assert out.returncode == 0, out.stdout[-3000:]
  assert list((run / "eval").glob("*raw*.json"))

  import fluid

  images = fluid.load(run).sample([prompt, prompt], key=0)
  np.testing.assert_array_equal(images[1], image)


@pytest.mark.slow
@pytest.mark.parametrize(
  "prompt,message",
  [
    ("a photo of a zebra", "zebra"),
    ("a red circle " * 12, "tokens"),
  ],
)
def test_a_bad_prompt_is_one_line(study, tmp_path, prompt, message):
  out = call(
    "fluid.sample",
    "--workdir",
    study[0] / "runs" / "discrete-raster-xs",
    "--prompt",
    prompt,
    "--out",
    tmp_path,
  )
  assert out.returncode == 2
  last = out.stdout.strip().splitlines()[-1]
  assert last.startswith("error:") and message in last
  assert "Traceback" not in out.stdout


@pytest.mark.slow
def test_a_missing_checkpoint_is_one_line(tmp_path):
  out = call(
    "fluid.sample", "--workdir", tmp_path, "--prompt", "a circle", "--out", tmp_path
  )
  assert out.returncode == 2 and "Traceback" not in out.stdout
  assert "no run in" in out.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_sweep_folder_can_be_renamed(study):
  """config.json names tokenizer and cache; both are found beside the moved run."""
  import fluid

  elsewhere = study[0].rename(study[0].with_name("elsewhere"))
  try:
    loaded = fluid.load(elsewhere / "runs" / "discrete-raster-xs")
    assert loaded.config.tokenizer.path.startswith(str(elsewhere))
    assert loaded.config.data.cache.startswith(str(elsewhere))
  finally:
    elsewhere.rename(study[0])
