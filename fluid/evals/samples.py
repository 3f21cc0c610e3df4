"""Images drawn for evaluators, which share them.

GenEval prompts are balanced over tags, and so are the images of the shapes set: where
`distribution` is told to use the same prompts, no image is drawn twice.

Legend: N images, P prompts, K images of each.
"""

import contextlib
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from fluid import config, rng, sampling
from fluid.config import identity
from fluid.data import BadExample, make_source, shapes
from fluid.durable import integrity
from fluid.evals import geneval, parts, prompts
from fluid.evals.parts import InParts
from fluid.sampling import Sampler, to_uint8, turned
from fluid.tokenizers import in_batches, multiscale, store

TOKENIZER_BATCH = 64


class _Lenient:
  """A vocabulary that takes any caption of a data set, as the cached texts do."""

  def __init__(self, vocabulary):
    self.encode = functools.partial(vocabulary.encode, on_unknown="keep", on_long="cut")
    if hasattr(vocabulary, "features"):
      self.features = vocabulary.features


def check_prompts(context, asked: Sequence[str]) -> None:
  """Raises PromptError now, not after hours, for prompts that the model cannot take."""
  if context.vocabulary is not None:
    _Lenient(context.vocabulary).encode(list(asked), context.run.text.length)


class _Resized:
  """A tokenizer whose images have another side, scaled before they are clipped.

  By torch's bicubic, as in LlamaGen's evaluation.
  """

  def __init__(self, tokenizer, size: int):
    self._tokenizer = tokenizer
    self._matrix = multiscale.bicubic(tokenizer.image_size, size)

  def decode(self, tokens):
    return multiscale.resize(self._tokenizer.unclipped(tokens), self._matrix)


def draw(
  net,
  context,
  params,
  step: int,
  prompts: Sequence[str],
  *,
  seed: int = 0,
  image_size: int = 0,
  **overrides,
) -> tuple[np.ndarray | InParts, dict[str, float]]:
  """One image a prompt, uint8 [N, H, W, 3]; the last ones drawn are kept for others.

  With `image_size` they are scaled to that. Many are kept in files as well, see
  `in_files`: an image depends on its number and prompt, not on what was drawn with it.

  Returns:
    The images, and sample/seconds_per_image and sample/images of the drawing (without
    compilation; empty where the images were there already).
  """
  cfg = context.run.sample.replace(**overrides)
  size = image_size or context.run.data.image_size
  request = (step, tuple(prompts), seed, size, cfg)
  for asked, drawn_with, images in context.drawn:
    if asked == request and drawn_with is params:
      return images, {}
  context.drawn[:] = [d for d in context.drawn if d[0][0] == step]
  vocabulary = _Lenient(context.vocabulary)
  tokenizer = _Resized(context.tokenizer, size) if image_size else context.tokenizer
  sampler = Sampler(net, tokenizer, vocabulary, cfg, track=context.track)
  key = rng.stream(seed, "samples")
  program = turned(cfg)[0]
  seconds, rows = 0.0, 0
  with jax.set_mesh(context.mesh):
    batch = sampling.rows(cfg.batch)

  def take(first: int, stop: int) -> np.ndarray:
    nonlocal seconds, rows
    asked = list(prompts[first:stop])
    with jax.set_mesh(context.mesh):
      if program not in context.compiled:  # One batch: the clock shall not see XLA.
        sampler(params, asked[:1], key=key)
        context.compiled.add(program)
      start = time.perf_counter()
      images = sampler(params, asked, key=key, first=first)
    seconds += time.perf_counter() - start
    # The last batch is filled up: its rows took their time as well.
    rows += -(-len(asked) // batch) * batch
    return images

  def made_from():
    # The arrays themselves: another checkpoint may have the same step and folder.
    weights = integrity.checksums(params)
    options = {k: v for k, v in cfg.flat().items() if k != "batch"}
    of = {"weights": weights, "text": identity.of_text(context.run), "seed": seed}
    of |= {
      "image_size": size,
      "model": config.to_dict(context.run.model),
      "sample": options,
    }
    return of | {"prompts": list(prompts), "tokenizer": tokenizer_sha256(context.run)}

  found = in_files(context, len(prompts), take, made_from)
  context.drawn.append((request, params, found))
  timing: dict[str, float] = {"sample/images": len(found)}
  if rows:
    timing["sample/seconds_per_image"] = seconds / rows
  return found, timing


def in_files(
  context, total: int, make, made_from: Callable[[], dict[str, Any]]
) -> np.ndarray | InParts:
  """Images that take long to make: more than 4 parts are in WORKDIR/eval/images.

  Work that ended early goes on at the first part that is not there.

  Args:
    total: images.
    make: first, stop -> uint8 [stop - first, H, W, 3].
    made_from: all that they depend on, JSON-able; asked for where files are needed.
  """
  part = parts.PART
  if total <= 4 * part:
    return make(0, total)
  folder = context.workdir / "eval" / "images" / identity.digest(made_from())
  starts = range(0, total, part)
  found = [
    parts.kept(
      folder / f"{i // part:05d}.npy",
      functools.partial(make, i, min(i + part, total)),
      read=functools.partial(np.load, mmap_mode="r"),
      write=np.save,
    )
    for i in context.track(starts, "images", len(starts))
  ]
  return InParts(total, lambda first, stop: found[first // part], folder.name)


def tokenizer_sha256(run: config.Run) -> str:
  """Of the weights of a run's tokenizer."""
  return store.read_config(run.tokenizer.path)["weights_sha256"]


def reconstruct(tokenizer, images: np.ndarray) -> np.ndarray:
  """decode(encode(x)) of uint8 images [N, H, W, 3]: the best its tokens can say."""
  again = lambda x: tokenizer.decode(tokenizer.encode(x))
  return to_uint8(
    in_batches(again, images.astype(np.float32) / 127.5 - 1, TOKENIZER_BATCH)
  )


def pinned(total: int, n: int) -> list[int]:
  """n of so many examples, the same ones wherever a protocol asks for them."""
  return np.random.default_rng(0).permutation(total)[:n].tolist()


def taken(run: config.Run, total: int) -> Sequence[int]:
  """The order in which evaluations take the examples of a split.

  Sets of classes lie class by class, so that the first of them are of few classes.
  """
  return pinned(total, total) if run.text.kind == "classes" else range(total)


def metadata(
  context, which: str, *, n: int = 0, first: int = 0, heldout: bool = False
) -> list[dict]:
  """Lines of metadata, each with a 'prompt'.

  Args:
    which: 'val': captions first..first+n of the data source, in the order of `taken`;
      'geneval': the prompts of config.evals.geneval; 'shapes': n a tag; 'official':
      GenEval's own; 'classes': n, as many of each class; 'pinned': n captions of the
      validation split, see `pinned`; else a file of GenEval's metadata.
    heldout: of 'shapes': colour-shape pairs that training does not show.
  """
  if which == "val":
    source = make_source(context.run.data, "val")
    index = taken(context.run, len(source))
    return _prompts(context, source, index[first:], n)
  if which == "geneval":
    if "geneval" not in context.run.evals:
      raise config.ConfigError(
        "prompts 'geneval' are those of config key 'evals.geneval', which is not there"
      )
    return [line for _, line in geneval_lines(context, context.run.evals["geneval"])]
  if which == "shapes":
    return shapes.geneval_prompts(n, heldout=heldout)
  if which == "official":
    return list(prompts.geneval())
  if which == "classes":
    if context.run.text.kind != "classes":
      raise config.ConfigError(
        f"prompts 'classes' are for models of classes, and this one's text is "
        f"'{context.run.text.kind}'"
      )
    # Mixed: scores of parts of a set take any part for a sample of all. By name: where
    # folders are called '1' to '102', a number is the name of another class.
    names = context.vocabulary.names
    return [{"prompt": names[i % len(names)]} for i in range(n)]
  if which == "pinned":
    source = make_source(context.run.data, "val")
    return _prompts(context, source, pinned(len(source), len(source)), n)
  if not pathlib.Path(which).is_file():
    raise config.ConfigError(
      f"no prompts '{which}': name 'shapes', 'official' or a file of GenEval's metadata"
    )
  return geneval.read_metadata(which)


def _prompts(context, source, index: Iterable[int], n: int) -> list[dict]:
  """The first n of these examples that say something; prepare counts the others."""

  def said():
    for i in index:
      with contextlib.suppress(BadExample):
        if (prompt := context.run.text.prompt(source, i)).strip():
          yield {"prompt": prompt}

  return list(itertools.islice(said(), n))


def geneval_lines(context, cfg) -> list[tuple[str, dict]]:
  """Group and line of metadata of each image that a GenEvalConfig asks for."""
  lines = [("geneval", line) for line in metadata(context, cfg.prompts, n=cfg.n)]
  if cfg.heldout:
    unseen = metadata(context, "shapes", n=cfg.heldout, heldout=True)
    lines += [("geneval_heldout", line) for line in unseen]
  return [pair for pair in lines for _ in range(cfg.k)]
