"""A trained model in a notebook: `fluid.load(workdir).sample(prompts) -> images`."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fluid import config, models, remote, sampling, shipped, text, tokenizers
from fluid.console import progress
from fluid.durable import exported, parameters, paths
from fluid.parallel import sharding

CHOSEN = "sample.json"  # Beside the checkpoints: what a sweep found best.


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A checkpoint with all that turns prompts into images.

  Attributes:
    config: of the run.
    net, params: the model; `params` are the weights asked for.
    step: updates done.
    weights: 'ema' or 'raw'.
    tokenizer, vocabulary: of the run.
    mesh: devices that hold the parameters (None: the default device).
  """

  config: config.Run
  net: models.Net
  params: Any
  step: int
  weights: str
  tokenizer: tokenizers.Tokenizer
  vocabulary: Any
  mesh: jax.sharding.Mesh | None = None

  def sample(
    self,
    prompts: str | Sequence[str],
    *,
    key=None,
    first: int = 0,
    track=progress.silent,
    **options,
  ) -> np.ndarray:
    """Draws one image a prompt.

    Args:
      prompts: texts (or one); repeat a text to draw it again.
      key: typed PRNG key or seed (None: seed 0); the i-th image depends on it, i and
        the i-th prompt alone.
      track: (batches, name, how many) -> the same batches, see progress.track.
      first: number of the first of these, where they are part of more.
      **options: fields of fluid.config.Sample, e.g. guidance=2.0, temperature=0.9; the
        batch is by default no larger than it has to be.

    Returns:
      uint8 [N, H, W, 3].

    Raises:
      ConfigError: words outside the vocabulary, a prompt too long, an unknown option.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if key is None or isinstance(key, int):
      key = jax.random.key(key or 0)
    sampler = sampling.Sampler(
      self.net, self.tokenizer, self.vocabulary, self.config.sample, track=track
    )
    few = sampling.few(len(prompts), self.config.sample.batch)
    options = {"batch": few} | options
    with jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext():
      return sampler(self.params, prompts, key=key, first=first, **options)


def load(
  workdir, weights: str = "ema", step: int | None = None, *, mesh=None
) -> Loaded:
  """Reads a run's checkpoint.

  Args:
    workdir: folder of the run, also 'configs/checkpoints/...' of those that come with
      the code, and gs://... of one in a bucket.
    weights: 'ema' or 'raw'.
    step: a saved step (None: the newest).
    mesh: devices to lay the parameters out over (None: all on the default device).

  Raises:
    ConfigError: no run, no such checkpoint, or a tokenizer or vocabulary missing.
  """
  workdir = shipped.find(str(workdir))
  folder = remote.local(workdir)
  run, described = chosen(read_config(workdir, folder), folder), read_model(folder)
  source = folder if exported.there(folder) else workdir  # It is here already.
  if mesh is None:  # Says what is missing before anything large is read.
    params, found = parameters.restore(source, weights, step)
  tokenizer = tokenizers.load(run.tokenizer.path, described.get("tokenizer_sha256", ""))
  tokenizers.check_size(tokenizer, run.data.image_size, run.tokenizer.path)
  vocabulary = text.load(run.text, folder, run.data.cache)
  net = models.Net.of(
    run, tokens=tokenizer.spec, vocab=vocabulary.size, tokenizer=lambda: tokenizer
  )
  if mesh is not None:
    with jax.set_mesh(mesh):
      like = jax.eval_shape(net.init, jax.eval_shape(lambda: jax.random.key(0)))
    like = sharding.concrete(like, mesh)
    params, found = parameters.restore(source, weights, step, like=like)
  return Loaded(run, net, params, found, weights, tokenizer, vocabulary, mesh)


def read_config(
  workdir, folder: pathlib.Path | None = None, *, near: bool = True
) -> config.Run:
  """The config a run was started with; ConfigError where there is no run.

  Args:
    folder: the files of `workdir`, where they are on this host already.
    near: of a tokenizer and caches in buckets it names copies on this host.
  """
  folder = folder or remote.local(workdir)
  path = folder / "config.json"
  if not path.is_file():
    raise config.ConfigError(
      f"no run in {workdir}: {os.path.join(workdir, path.name)} does not exist; name "
      "the --workdir of a training"
    )
  run = config.from_file(path)
  old = read_model(folder).get("workdir", "")
  url = str(workdir) if remote.is_url(workdir) else ""
  run = paths.moved(run, old, str(folder), url)
  return paths.near(run) if near else run


def chosen(run: config.Run, workdir) -> config.Run:
  """The run with the sampling options that a sweep of fluid.evaluate found best."""
  path = pathlib.Path(workdir) / CHOSEN
  if not path.is_file():
    return run
  try:
    found = json.loads(path.read_text())["sample"]
    return dataclasses.replace(run, sample=run.sample.replace(**found))
  except (ValueError, KeyError, TypeError) as e:
    raise config.ConfigError(
      f"{path} is damaged ({config.one_line(e)}): remove it, or sweep again"
    ) from e


def read_model(workdir) -> dict[str, Any]:
  """What a run says of itself in model.json; empty where it has not yet."""
  path = pathlib.Path(workdir) / "model.json"
  try:
    return json.loads(path.read_text()) if path.exists() else {}
  except json.JSONDecodeError as e:
    raise config.ConfigError(f"{path} is damaged ({e}); restore it") from e
