"""Cells of published tables: commands name what is there, the page has them."""

import dataclasses
import pathlib
import shlex

import pytest

from configs.reproduce import tables
from fluid import models
from fluid.convert import models as convert
from fluid.convert.models import FAMILIES as MODELS
from fluid.convert.tokenizers import FAMILIES as TOKENIZERS
from fluid.evals.protocols import PROTOCOLS
from fluid.models.published import RUNS
from fluid.text.classes import Classes

PAGE = pathlib.Path(__file__).parents[1] / "docs/reproduce-cells.md"


@pytest.mark.parametrize("cell", tables.CELLS, ids=lambda c: c.weights)
def test_commands_of_a_cell_fit_together(cell):
  kind, _ = cell.tokenizer
  run = MODELS[cell.model].change(dict(cell.changes)).config
  assert TOKENIZERS[kind].config == run.tokenizer
  spec = run.tokenizer.make(run.data.image_size).spec
  assert spec == models.Net.of(run).tokens
  assert cell.protocol in PROTOCOLS
  page = PAGE.read_text()
  commands = [cell.convert_tokenizer(), cell.convert(), cell.evaluate()]
  assert all(command in page for command in commands)
  first = shlex.split(cell.evaluate())
  assert first[:3] == ["python", "-m", "fluid.evaluate"]


@pytest.mark.parametrize("cell", tables.TOKENIZERS, ids=lambda c: c.weights)
def test_a_tokenizer_is_judged_beside_a_model_that_fits_its_tokens(cell):
  """What is converted has the parameters of the model's own tokens."""
  kind, _ = cell.tokenizer
  own = MODELS[cell.model].config
  run = dataclasses.replace(own, tokenizer=TOKENIZERS[kind].config)
  assert convert.abstract(run, {}) == convert.abstract(own, {})
  assert TOKENIZERS[kind].options["image_size"] == run.data.image_size
  (part,) = PROTOCOLS[cell.protocol].evals.values()
  assert part.metrics == ("fid",) and part.kind == "reconstruction"
  page = PAGE.read_text()
  commands = [cell.convert_tokenizer(), cell.convert(), cell.evaluate()]
  assert all(command in page for command in commands)


def test_the_commands_of_the_page_can_be_run_from_its_top_to_its_end():
  """Folders are written once, before they are read, and sizes of images agree."""
  sizes: dict[str, int] = {}
  for line in PAGE.read_text().splitlines():
    if line.startswith("python -m fluid.convert "):
      kind, _, folder, *given = shlex.split(line)[3:]
      said = dict(change.split("=") for change in given)
      assert folder not in sizes
      if kind in TOKENIZERS:
        own, name = TOKENIZERS[kind].options["image_size"], "image_size"
      else:
        own, name = RUNS[kind]().data.image_size, "data.image_size"
      sizes[folder] = int(said.get(name, own))
      if kind in MODELS:
        assert sizes[said["tokenizer.path"]] == sizes[folder]
    if line.startswith("python -m fluid.evaluate --workdir models/"):
      assert shlex.split(line)[4] in sizes


def test_the_page_is_that_of_the_tables_and_has_every_family():
  lines = PAGE.read_text().splitlines()
  known = tables.markdown(hours=lambda cell: 0.0).splitlines()
  plain = lambda line: line.rsplit("|", 3)[0] if line.count("|") == 7 else line
  assert [plain(line) for line in lines] == [plain(line) for line in known]
  family = lambda name: name.split("_")[0]
  assert {family(c.model) for c in tables.CELLS} == {family(name) for name in RUNS}


def test_a_floor_of_hours_grows_with_the_model_and_the_images():
  small, large = (c for c in tables.CELLS if c.model in ("rar_b", "rar_xxl"))
  assert 0 < small.hours() < large.hours()
  assert large.hours(100_000) == pytest.approx(2 * large.hours())


def test_classes_of_imagenet_are_asked_for_by_name(tmp_path):
  """Places that everyone knows, in the published order."""
  (tmp_path / "classes.txt").write_text(convert.names_of(1000))
  classes = Classes(tmp_path / "classes.txt")
  known = {
    "tench": 0,
    "golden retriever": 207,
    "giant panda": 388,
    "toilet tissue": 999,
  }
  assert classes.encode([*known, "207"])[0][:, 0].tolist() == [*known.values(), 207]
  assert classes.size == len(set(classes.names)) == 1000
  assert convert.names_of(3) == "0\n1\n2\n"
