"""The checkpoints that come with the code: what their cards say of them is so."""

import pathlib
import re
import shutil

import pytest

import fluid
from fluid import evaluate

ROOT = pathlib.Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs" / "checkpoints").glob("*/*"))


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
  """A copy, as evaluations write beside the weights; tokenizers lie beside them."""
  out = tmp_path_factory.mktemp("shipped") / "configs"
  for part in ("checkpoints", "tokenizers"):
    ignore = shutil.ignore_patterns("eval", "samples", "metrics.jsonl")
    shutil.copytree(ROOT / "configs" / part, out / part, ignore=ignore)
  return out


def test_there_are_the_four_cells_and_they_are_small():
  assert [p.name for p in SHIPPED] == [
    f"{t}-{o}" for t in ("continuous", "discrete") for o in ("random", "raster")
  ]
  size = sum((p / "weights.safetensors").stat().st_size for p in SHIPPED)
  assert size < 20e6


@pytest.mark.slow
@pytest.mark.parametrize("cell", [p.name for p in SHIPPED])
def test_the_loss_is_that_of_the_card(configs, cell):
  folder = next((configs / "checkpoints").glob(f"*/{cell}"))
  said = re.search(r"\| val/loss \| ([\d.]+) \|", (folder / "README.md").read_text())
  found = evaluate.evaluate(folder, names=["loss"])
  assert found["val/loss"] == pytest.approx(float(said[1]), rel=1e-4)
  images = fluid.load(folder).sample(["a red circle"], batch=1)
  assert images.shape == (1, 32, 32, 3)
