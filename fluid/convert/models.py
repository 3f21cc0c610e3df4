"""Published models: what is written of them.

What is written is what `python -m fluid.export` writes of a run: fluid.sample and
fluid.evaluate take it, and `init.workdir` starts a training from it.
"""

import dataclasses
import importlib.resources
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from fluid import api, files, flops, text, tokenizers
from fluid import config as config_lib
from fluid.convert.family import Family
from fluid.convert.spellings import SPELLINGS
from fluid.durable import exported, parameters, paths
from fluid.durable.workdir import commit
from fluid.errors import ConfigError
from fluid.models import Net
from fluid.models.published import RUNS
from fluid.text.classes import ClassesConfig


@dataclasses.dataclass(frozen=True)
class ModelFamily(Family):
  """`config` is a Run; `change` takes its dotted keys, and paths of other parts."""

  @property
  def name(self):
    """See Family."""
    return self.config.model.size

  def change(self, changes: Mapping[str, Any]) -> "ModelFamily":
    """With other values: 'model.trunk.width', 'tokenizer.path', 'text.vocab_size'."""
    tree = config_lib.to_dict(self.config)
    for key, value in changes.items():
      *sections, name = key.split(".")
      node = tree
      for section in sections:
        node = node.get(section) if isinstance(node, dict) else None
      if not isinstance(node, dict) or name not in node:
        raise ConfigError(f"unknown key '{key}'; keys are those of config.json")
      node[name] = value
    run = config_lib.from_config_dict(tree)
    if path := run.tokenizer.path:
      found = tokenizers.load(path)
      tokenizers.check_size(found, run.data.image_size, path)
      tokenizer = dataclasses.replace(found.config, path=path)
      run = dataclasses.replace(run, tokenizer=tokenizer)
    return dataclasses.replace(self, config=run)


def abstract(run, options) -> Any:
  """Shapes of a run's parameters."""
  del options
  return jax.eval_shape(Net.of(run).init, jax.random.key(0))


def save(path: str, run, options, params: Any) -> None:
  """Writes the folder of a run with these parameters, and no checkpoints."""
  del options
  run = paths.made_absolute(run)
  folder, net = pathlib.Path(path), Net.of(run)
  folder.mkdir(parents=True, exist_ok=True)
  sha256 = exported.write(folder, params, weights="ema", step=0)
  described = {
    "cell": run.model.cell,
    "tokens": run.model.head.tokens,
    "order": run.model.order.kind,
    "size": run.model.size,
    **flops.describe(net, run),
    "token_spec": net.tokens.to_dict(),
    "vocab": net.vocab,
    "step": 0,
    "weights": "ema",
    "weights_sha256": sha256,
    "workdir": "",
    **commit(),
  }
  if tokenizer := run.tokenizer.path:
    described["tokenizer_sha256"] = tokenizers.store.read_config(tokenizer)[
      "weights_sha256"
    ]
    relative = os.path.relpath(tokenizer, folder)
    run = config_lib.replaced(run, {"tokenizer.path": relative})
  if run.text.path:
    run.text.install(folder)
    shipped = run.text.shipped(folder)
    run = config_lib.replaced(run, {"text.path": shipped})
  elif isinstance(run.text, ClassesConfig):
    files.write_text(folder / run.text.FILE, names_of(run.text.vocab_size))
  files.write_json(folder / "model.json", described)
  files.write_json(folder / "config.json", config_lib.to_dict(run))


def names_of(classes: int) -> str:
  """A line a class: ImageNet's names, or numbers where it is another set."""
  names = importlib.resources.files(text).joinpath("imagenet.txt").read_text("utf-8")
  if len(names.splitlines()) == classes:
    return names
  return "".join(f"{i}\n" for i in range(classes))


def read(path: str) -> tuple[Any, Any, int]:
  """The run of a folder, its averaged weights and their step."""
  return api.read_config(path), *parameters.restore(path)


FAMILIES: dict[str, ModelFamily] = {
  name: ModelFamily(
    run(), "run", (SPELLINGS[name.split("_")[0]],), abstract, save, read
  )
  for name, run in RUNS.items()
}
