"""Images drawn for evaluators, which share them, and GenEval of these.

GenEval prompts are balanced over tags, and so are the images of the shapes set: where
`distribution` is told to use the same prompts, no image is drawn twice.

Legend: N images, P prompts, K images of each.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fluid import config, rng
from fluid.config import rules
from fluid.data import make_source, shapes
from fluid.evals import geneval
from fluid.evals.base import Evaluation
from fluid.evals.detectors import DETECTORS
from fluid.sampling import Sampler, to_uint8
from fluid.tokenizers import in_batches

TOKENIZER_BATCH = 64


class _Lenient:
  """A vocabulary that takes any caption of a data set, as the cached texts do."""

  def __init__(self, vocabulary):
    self.encode = functools.partial(vocabulary.encode, on_unknown="keep", on_long="cut")
    if hasattr(vocabulary, "features"):
      self.features = vocabulary.features


def check_prompts(context, prompts: Sequence[str]) -> None:
  """Raises PromptError now, not after hours, for prompts that the model cannot take."""
  if context.vocabulary is not None:
    _Lenient(context.vocabulary).encode(list(prompts), context.run.text.length)


def draw(
  net, context, params, step: int, prompts: Sequence[str], *, seed: int = 0, **overrides
) -> tuple[np.ndarray, dict[str, float]]:
  """One image a prompt, uint8 [N, H, W, 3]; the last ones drawn are kept for others.

  Returns:
    The images, and sample/seconds_per_image and sample/images of the drawing (without
    compilation; empty where the images were there already).
  """
  cfg = context.run.sample.replace(**overrides)
  request = (step, tuple(prompts), seed, cfg)
  for asked, weights, images in context.drawn:
    if asked == request and weights is params:
      return images, {}
  context.drawn[:] = [d for d in context.drawn if d[0][0] == step]
  vocabulary = _Lenient(context.vocabulary)
  sampler = Sampler(net, context.tokenizer, vocabulary, cfg, track=context.track)
  key = rng.stream(seed, "samples")
  with jax.set_mesh(context.mesh):
    if cfg not in context.compiled:  # One batch: the clock shall not see XLA compile.
      sampler(params, list(prompts[:1]), key=key)
      context.compiled.add(cfg)
    start = time.perf_counter()
    images = sampler(params, list(prompts), key=key)
  seconds = time.perf_counter() - start
  context.drawn.append((request, params, images))
  # The last batch is filled up: its rows took their time as well.
  rows = -(-len(prompts) // cfg.batch) * cfg.batch
  return images, {
    "sample/seconds_per_image": seconds / rows,
    "sample/images": len(images),
  }


def reconstruct(tokenizer, images: np.ndarray) -> np.ndarray:
  """decode(encode(x)) of uint8 images [N, H, W, 3]: the best its tokens can say."""
  again = lambda x: tokenizer.decode(tokenizer.encode(x))
  return to_uint8(
    in_batches(again, images.astype(np.float32) / 127.5 - 1, TOKENIZER_BATCH)
  )


def metadata(
  context, which: str, *, n: int = 0, first: int = 0, heldout: bool = False
) -> list[dict]:
  """Lines of metadata, each with a 'prompt'.

  Args:
    which: 'val': captions first..first+n of the data source; 'geneval': the prompts of
      config.evals.geneval; 'shapes': n a tag; else a file of GenEval's metadata.
    heldout: of 'shapes': colour-shape pairs that training does not show.
  """
  if which == "val":
    source = make_source(context.run.data, "val")
    stop = min(first + n, len(source))
    text = context.run.text
    return [{"prompt": text.prompt(source, i)} for i in range(first, stop)]
  if which == "geneval":
    if "geneval" not in context.run.evals:
      raise config.ConfigError(
        "prompts 'geneval' are those of config key 'evals.geneval', which is not there"
      )
    return context.run.evals["geneval"].make(None, context).lines
  if which == "shapes":
    return shapes.geneval_prompts(n, heldout=heldout)
  path = pathlib.Path(which)
  if not path.is_file():
    raise config.ConfigError(
      f"no prompts '{which}': name 'shapes' or a file of GenEval metadata lines"
    )
  return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


@dataclasses.dataclass(frozen=True)
class GenEvalConfig(Evaluation):
  """Share of images that show what their prompt says, per tag and overall.

  Attributes:
    prompts: 'shapes', or a file of GenEval's metadata lines.
    n: prompts a tag (of 'shapes').
    k: images a prompt.
    heldout: prompts a tag with colour-shape pairs not seen in training (of 'shapes').
    detector: entry of fluid.evals.detectors.DETECTORS.
    seed: of the noise.
    sample: overrides of config.sample.
    layout: write prompts and images to WORKDIR/geneval for the reference evaluator.
  """

  kind = "geneval"

  prompts: str = "shapes"
  n: int = 16
  k: int = 2
  heldout: int = 0
  detector: str = "shapes"
  seed: int = 0
  sample: dict[str, Any] = dataclasses.field(default_factory=dict)
  layout: bool = False

  def check(self, name):
    rules.choice(f"{name}detector", self.detector, DETECTORS)

  def make(self, net, context):
    """See Evaluation."""
    return GenEval(net, context, **self.arguments())


class GenEval:
  """See GenEvalConfig."""

  def __init__(
    self, net, context, *, prompts, n, k, heldout, detector, seed, sample, layout
  ):
    self.net, self.context, self.seed, self.sample = net, context, seed, sample
    self.detect = DETECTORS[detector](context.run.data.image_size)
    self.layout, self.k = layout, k
    lines = [("geneval", line) for line in metadata(context, prompts, n=n)]
    if heldout:
      unseen = metadata(context, "shapes", n=heldout, heldout=True)
      lines += [("geneval_heldout", line) for line in unseen]
    self.groups = [group for group, _ in lines for _ in range(k)]
    self.lines = [line for _, line in lines for _ in range(k)]
    check_prompts(context, [line["prompt"] for line in self.lines])

  def run(
    self, params, step: int, weights: str = "ema"
  ) -> Iterator[tuple[str, float | str]]:
    """Yields geneval/{tag}, geneval/overall and its interval; the same of heldout.

    Two marks to read them by: geneval/chance, the overall score of the same images
    under each other's prompts, and, where the source's examples carry GenEval metadata,
    geneval/tokenizer, that of decode(encode(real image)): the ceiling of these tokens.
    """
    texts = [line["prompt"] for line in self.lines]
    images, timing = draw(
      self.net, self.context, params, step, texts, seed=self.seed, **self.sample
    )
    results: dict[str, list] = {}
    found = self.detect(images)
    for group, line, objects in zip(self.groups, self.lines, found):
      correct, _ = geneval.score(objects, line)
      row = {"tag": line["tag"], "prompt": line["prompt"], "correct": correct}
      results.setdefault(group, []).append(row)
    for group, rows in results.items():
      for name, value in geneval.summarize(rows).items():
        yield f"{group}/{name}", value
    yield "geneval/chance", geneval.chance(found, self.lines)
    if (ceiling := self._ceiling()) is not None:
      yield "geneval/tokenizer", ceiling
    if self.layout and jax.process_index() == 0:
      out = self.context.workdir / "geneval" / f"step_{step:08d}-{weights}"
      shaped = images.reshape(-1, self.k, *images.shape[1:])
      geneval.write_layout(out, self.lines[:: self.k], shaped)
    yield from timing.items()

  def _ceiling(self, examples: int = 256) -> float | None:
    source = make_source(self.context.run.data, "val")
    real = [source[i] for i in range(min(examples, len(source)))]
    if "include" not in real[0].get("meta", {}):
      return None
    images = reconstruct(self.context.tokenizer, np.stack([e["image"] for e in real]))
    return geneval.overall(self.detect(images), [e["meta"] for e in real])
