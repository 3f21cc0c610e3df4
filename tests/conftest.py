"""Eight simulated devices for every test, and the reference numbers where they are."""

import functools
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("GLIBC_TUNABLES", "")  # Commands start once: fluid.console.pages.
# Tests compile much and compute little.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

from tests import compiled, toy_parts  # noqa: E402, F401

ROOT = pathlib.Path(__file__).parents[1]
compiled.keep()


@pytest.fixture(autouse=True)
def mappings():
  yield
  compiled.forget()


def pytest_collection_modifyitems(items):
  """The longest files first, so that no process is left alone with them at the end."""
  items.sort(key=lambda item: "e2e" not in item.path.parts)


@pytest.fixture(scope="session")
def fixtures():
  """Folder of reference numbers; a clone without it skips, saying so."""
  path = pathlib.Path(os.environ.get("FLUID_FIXTURES", ROOT / "../shared/fixtures"))
  if not path.is_dir():
    pytest.skip(f"no reference numbers at {path} (set FLUID_FIXTURES)")
  return path


@pytest.fixture(scope="session")
def converted(fixtures, tmp_path_factory):
  """name -> a published model of the fixtures, see tests.published."""
  from tests import published

  @functools.cache
  def get(name):
    return published.convert(name, fixtures / name, tmp_path_factory.mktemp(name))

  return get
