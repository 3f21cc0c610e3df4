"""Which module imports which: no circles, and nothing imports upwards.

`graph`, `circles` and `upward` read files and import none of them: a package is checked
by its name and its layers.
"""

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; those in one tuple do not know each other.
ANALYSIS = (
  ("analysis.curves", "analysis.runs", "analysis.published"),
  "analysis.planning",
  "analysis.report",
  "analysis.command",
  "analysis",
  "analysis.report.__main__",
)


FLUID = (
  ("fluid.errors", "fluid.rng", "fluid.shipped", "fluid.trees"),
  "fluid.remote",
  "fluid.files",
  ("fluid.convert.pickles", "fluid.convert.weights"),
  ("fluid.convert.torch_zip", "fluid.convert.torch_legacy", "fluid.convert.graph_def"),
  ("fluid.convert.containers", "fluid.convert.names"),
  "fluid.config",
  "fluid.console",
  "fluid.parallel",
  "fluid.data",
  "fluid.text",
  "fluid.tokenizers",
  "fluid.models",
  "fluid.training",
  "fluid.durable",
  "fluid.sampling",
  "fluid.flops",
  "fluid.evals",
  ("fluid.api", "fluid.prepare", "fluid.train", "fluid.data.browse"),
  ("fluid.evaluate", "fluid.sample", "fluid.convert"),
  "fluid",
)
LAUNCH = (
  ("launch.chips", "launch.errors", "launch.hardware", "launch.hlo", "launch.progress"),
  ("launch.points", "launch.recommended", "launch.spec"),
  "launch.code",
  "launch.plan",
  ("launch.cost", "launch.engines", "launch.entries"),
  ("launch.order", "launch.remote"),
  ("launch.aot_compile", "launch.topologies", "launch.sweep", "launch.view"),
  ("launch.logs", "launch.retry", "launch.status", "launch.stop"),
  "launch",
)


def graph(package: str, root: Path = ROOT) -> dict[str, set[str]]:
  """Module -> the modules of the package that it imports.

  All import statements count, also those in functions, under `if TYPE_CHECKING` and
  under `if __name__ == "__main__"`. `from a import b` is an import of a.b where that is
  a module, and else of a, whose __init__ has a b. That Python runs the __init__ of
  every folder on the way is not counted: it is nothing that the importer asks for.
  """
  files = {}
  for path in (root / package).rglob("*.py"):
    parts = path.relative_to(root).with_suffix("").parts
    files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  out: dict[str, set[str]] = {}
  for module, path in files.items():
    here = module if path.stem == "__init__" else module.rpartition(".")[0]
    found = (_longest(name, files) for name in _imported(path, here))
    out[module] = {name for name in found if name} - {module}
  return out


def _imported(path: Path, here: str) -> Iterator[str]:
  """Dotted names of all that a file in folder `here` imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = here.split(".")[: len(here.split(".")) - node.level + 1]
      parts = [*(base if node.level else []), *([node.module] if node.module else [])]
      yield from (".".join([*parts, alias.name]) for alias in node.names)


def _longest(name: str, known) -> str:
  """The longest beginning of a dotted name that is known, or ''."""
  while name and name not in known:
    name = name.rpartition(".")[0]
  return name


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
  """Sets of modules each of which leads to all others (its strong components)."""

  def reach(module: str) -> set[str]:
    seen: set[str] = set()
    ahead = [module]
    while ahead:
      new = graph[ahead.pop()] - seen
      seen |= new
      ahead += new
    return seen

  reached = {module: reach(module) for module in graph}
  found = {
    frozenset(n for n in seen if module in reached[n])
    for module, seen in reached.items()
    if module in seen
  }
  return sorted(sorted(circle) for circle in found)


def upward(
  graph: dict[str, set[str]], layers: Sequence[str | tuple[str, ...]]
) -> list[str]:
  """Imports that leave their layer, and not to one below: 'a imports b'.

  Args:
    graph: of `graph`.
    layers: modules and folders from the ground up, or tuples of those that do not
      know each other. A module is in the layer of the longest name that it begins with.
  """
  groups = [(layer,) if isinstance(layer, str) else layer for layer in layers]
  height = {name: i for i, group in enumerate(groups) for name in group}
  out = []
  for module, names in graph.items():
    mine = _longest(module, height)
    if not mine:
      out.append(f"{module} is in no layer")
    for name in names:
      other = _longest(name, height)
      if mine and other and other != mine and height[other] >= height[mine]:
        out.append(f"{module} imports {name}")
  return sorted(out)


PACKAGES = {"analysis": ANALYSIS, "fluid": FLUID, "launch": LAUNCH}


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_no_circle_and_no_import_upwards(package):
  found = graph(package)
  assert circles(found) == []
  assert upward(found, PACKAGES[package]) == []


def test_imports_are_found_wherever_they_hide(tmp_path):
  files = {
    "p/__init__.py": "from p.a import x",
    "p/a/__init__.py": "x = 1",
    "p/a/one.py": "import os, numpy.linalg\ndef f():\n  import p.a.two",
    "p/a/two.py": "if __name__ == '__main__':\n  from p.b import three",
    "p/b/three.py": "from ..a.one import f\nfrom . import four\nfrom p import b",
    "p/b/four.py": "import p.b.four.name as n\nfrom p.a import x",
    "p/five.py": "",
  }
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
  found = graph("p", tmp_path)
  assert found == {
    "p": {"p.a"},
    "p.a": set(),
    "p.a.one": {"p.a.two"},
    "p.a.two": {"p.b.three"},
    "p.b.three": {"p.a.one", "p.b.four", "p"},
    "p.b.four": {"p.a"},
    "p.five": set(),
  }
  assert circles(found) == [["p.a.one", "p.a.two", "p.b.three"]]
  assert upward(found, ("p.a", "p.b", "p")) == [
    "p.a.two imports p.b.three", "p.b.three imports p",
  ]  # fmt: skip
  assert upward(found, (("p.a", "p.b"), "p.five"))[:2] == [
    "p is in no layer", "p.a.two imports p.b.three",
  ]  # fmt: skip
  assert upward(found, ("p",)) == []
