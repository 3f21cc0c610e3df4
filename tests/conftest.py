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
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_num_cpu_devices", 8)

pytest.register_assert_rewrite("tests.sources")

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


@pytest.fixture
def uncached():
  """jax without a compilation cache, as where none is configured."""
  name, before = "jax_compilation_cache_dir", jax.config.jax_compilation_cache_dir
  jax.config.update(name, None)
  compilation_cache.reset_cache()
  jax.clear_caches()
  yield
  jax.config.update(name, before)
  compilation_cache.reset_cache()


STUDY = """
from ml_collections import ConfigDict
from fluid import config as c

def get_config(arg=''):
  head, order = arg.split(',')
  part = lambda family, kind: c.resolve(family, kind)()
  model = c.Model(head=part('head', head), order=part('order', order), size='s')
  tokenizer = part('tokenizer', 'vq' if head == 'categorical' else 'vae')
  run = c.Run(model=model, tokenizer=tokenizer, steps=4, batch=2)
  return ConfigDict(c.to_dict(run))
"""


@pytest.fixture
def study(tmp_path):
  """A sweep of two discrete runs and a continuous one."""
  (tmp_path / "toy.py").write_text(STUDY)
  points = [
    ("dr1", "categorical,random", {}),
    ("dr2", "categorical,random", {"optim.lr": 0.5}),
    ("cr1", "diffusion,random", {"model.trunk.layers": 3}),
  ]
  body = "\n".join(
    f"  yield dict(name={n!r}, config='{tmp_path}/toy.py:{a}', overrides={o!r})"
    for n, a, o in points
  )
  (tmp_path / "study.py").write_text(f"def sweep():\n{body}\n")
  return tmp_path / "study.py"


@pytest.fixture
def machine(study, tmp_path, monkeypatch):
  """That sweep on stand-ins of schedulers, see tests.machines."""
  from tests import machines, schedulers

  yield machines.install(study, tmp_path, monkeypatch)
  schedulers.stop_all(tmp_path / "state")


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
  """gs://bucket on this machine, see tests.buckets."""
  from tests import buckets

  with buckets.served(tmp_path_factory.mktemp("copies")) as said:
    yield said


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run with random weights, to be evaluated, see tests.random_run."""
  from tests import random_run

  return random_run.judged(tmp_path_factory.mktemp("run"))
