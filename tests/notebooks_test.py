"""The notebooks run top to bottom, as in Colab, on what is committed."""

from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "analysis/notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  # Somewhere below the repository, as Colab's cell would find a clone.
  (tmp_path / "fluid").symlink_to(ROOT)
  client = nbclient.NotebookClient(
    notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
  )
  client.execute()
  outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
  images = [o for o in outputs if "image/png" in o.get("data", {})]
  assert len(images) >= 1, "a notebook shows figures"
  assert not [o for o in outputs if o.output_type == "error"]


def test_there_are_three():
  assert [p.stem for p in NOTEBOOKS] == [
    "explore_samples", "fit_scaling_curves", "reproduce_figures",
  ]  # fmt: skip


def test_what_colab_installs_is_what_is_tested():
  lines = (ROOT / "analysis/requirements.txt").read_text().splitlines()[1:]
  tested = (ROOT / "requirements.txt").read_text().splitlines()
  assert lines and set(lines) <= set(tested)
