"""GenEval of images that a model draws."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fluid import config
from fluid.config import rules
from fluid.data import make_source
from fluid.evals import geneval
from fluid.evals.base import Evaluation
from fluid.evals.detectors import DETECTORS, finder
from fluid.evals.samples import check_prompts, draw, geneval_lines, reconstruct
from fluid.evals.sets import open_set


@dataclasses.dataclass(frozen=True)
class GenEvalConfig(Evaluation):
  """Share of images that show what their prompt says, per tag and overall.

  Attributes:
    prompts: 'shapes', 'official' (the 553 of GenEval, fluid.evals.prompts), or a file
      of GenEval's metadata lines.
    n: prompts a tag (of 'shapes').
    k: images a prompt; published numbers have 4.
    heldout: prompts a tag with colour-shape pairs not seen in training (of 'shapes').
    detector: entry of fluid.evals.detectors.DETECTORS, or 'none': images are drawn and
      laid out for the reference evaluator, and not judged.
    colors: feature network that names colours which the detector leaves open.
    detections: a file with the objects of all images (geneval.read_detections), in
      place of a detector; colours that it leaves open are named by `colors`.
    results: what the reference evaluator wrote of the layout, in place of judging: no
      image is drawn.
    known: a folder in the layout whose images show what their prompts say. A detector
      that does not find it in 80 % of them is refused: a wrong setting of one has given
      published scores near 0. Without one the shapes detector looks at real images.
    seed: of the noise.
    sample: overrides of config.sample.
    layout: write prompts, images and what was detected to WORKDIR/geneval, for the
      reference evaluator.
  """

  kind = "geneval"

  prompts: str = "shapes"
  n: int = 16
  k: int = 2
  heldout: int = 0
  detector: str = "shapes"
  colors: str = "CLIP-L14"
  detections: str = ""
  results: str = ""
  known: str = ""
  seed: int = 0
  sample: dict[str, Any] = dataclasses.field(default_factory=dict)
  layout: bool = False

  def check(self, name):
    rules.positive(self, name, "n", "k")
    rules.choice(f"{name}detector", self.detector, (*DETECTORS, "none"))
    if self.prompts in ("val", "geneval", "classes", "pinned"):
      raise config.ConfigError(
        f"config key '{name}prompts' is '{self.prompts}', which says of no image what "
        "it must show; choose 'shapes', 'official' or a file of GenEval's metadata"
      )
    if self.detector == "none" and not (self.layout or self.detections):
      raise config.ConfigError(
        f"config key '{name}detector' is 'none': set '{name}layout' to write the "
        f"images, or '{name}detections' to what was found in them"
      )

  def said(self):
    """See Evaluation; of those who may judge, who did."""
    if self.results:
      return {"results": self.results}
    left = {"known", "layout", "results"}
    if self.prompts != "shapes":
      left |= {"n"}
    left |= {"detector"} if self.detections else {"detections"}
    if not self.detections and self.detector == "shapes":
      left |= {"colors"}
    return {k: v for k, v in super().said().items() if k not in left}

  def make(self, net, context):
    """See Evaluation."""
    return GenEval(net, context, self)


KNOWN = 0.8  # Of images with a known answer, what a detector must find.


class GenEval:
  """See GenEvalConfig."""

  def __init__(self, net, context, cfg: GenEvalConfig):
    self.net, self.context, self.cfg = net, context, cfg
    lines = geneval_lines(context, cfg)
    self.groups, self.lines = [g for g, _ in lines], [line for _, line in lines]
    self.results = geneval.read_results(cfg.results) if cfg.results else None
    self.detect = self.classify = None
    if self.results is not None:
      return
    check_prompts(context, [line["prompt"] for line in self.lines])
    if cfg.detections or cfg.detector != "none":
      options = {k: getattr(cfg, k) for k in ("detector", "detections", "colors")}
      size = context.run.data.image_size
      self.detect, self.classify = finder(self.lines, size, **options)
    # Of a file one knows of these images alone what is in them.
    self.others = self.detect is not None and not cfg.detections
    if self.others:
      self._check_detector()

  def run(
    self, params, step: int, weights: str = "ema"
  ) -> Iterator[tuple[str, float | str]]:
    """Yields geneval/{tag}, geneval/overall and its interval; the same of heldout.

    And {tag}_n, the images that a score is of. Two marks to read them by:
    geneval/chance, the overall score of the same images under each other's prompts,
    and, where the source's examples carry GenEval metadata, geneval/tokenizer, that of
    decode(encode(real image)): the ceiling of these tokens.
    """
    if self.results is not None:
      yield from _scores("geneval", self.results)
      return
    cfg, texts = self.cfg, [line["prompt"] for line in self.lines]
    images, timing = draw(
      self.net,
      self.context,
      params,
      step,
      texts,
      seed=cfg.seed,
      **cfg.sample,
    )
    found = None if self.detect is None else self._found(images, self.lines)
    if cfg.layout and jax.process_index() == 0:
      out = self.context.workdir / "geneval" / f"step_{step:08d}-{weights}"
      shaped = images[:].reshape(-1, cfg.k, *images[0].shape)
      geneval.write_layout(out, self.lines[:: cfg.k], shaped)
      if found is not None:
        geneval.write_detections(out / "detections.jsonl", found)
    if found is not None:
      results: dict[str, list] = {}
      for group, row in zip(self.groups, geneval.judged(found, self.lines)):
        results.setdefault(group, []).append(row)
      for group, rows in results.items():
        yield from _scores(group, rows)
      yield "geneval/chance", geneval.chance(found, self.lines)
    if self.others and (ceiling := self._ceiling()) is not None:
      yield "geneval/tokenizer", ceiling
    yield from timing.items()

  def _found(self, images, lines):
    track = self.context.track
    return geneval.detect(self.detect, images, lines, self.classify, track)

  def _check_detector(self) -> None:
    """Raises ConfigError where the detector fails on images of known answers."""
    if self.cfg.known:
      known = open_set(self.cfg.known)
      lines = known.lines
      if not lines or known.images is None:
        raise config.ConfigError(
          f"{self.cfg.known} has no metadata.jsonl of GenEval beside its images"
        )
      side = self.context.run.data.image_size
      shapes = {image.shape[:2] for image in known.images} - {(side, side)}
      if shapes:
        raise config.ConfigError(
          f"{self.cfg.known} has images of {shapes.pop()} pixels, but those of this "
          f"run have {side}: scale them"
        )
      images = np.stack(list(known.images))
    elif self.cfg.detector == "shapes":
      real = self._real(24)
      images = np.stack([e["image"] for e in real])
      lines = [e["meta"] for e in real]
    else:
      return
    if not lines or "include" not in lines[0]:
      return
    value = geneval.overall(self._found(images, lines), lines)
    if value < KNOWN:
      raise config.ConfigError(
        f"detector '{self.cfg.detector}' finds {value:.2f} of what {len(lines)} images "
        f"of known answers show, less than {KNOWN}: its scores would mean nothing; "
        "look at its weights and at the size of the images"
      )

  def _real(self, examples: int) -> list[dict]:
    source = make_source(self.context.run.data, "val")
    return [source[i] for i in range(min(examples, len(source)))]

  def _ceiling(self, examples: int = 256) -> float | None:
    try:
      if "include" not in self._real(1)[0].get("meta", {}):
        return None
    except config.ConfigError:  # A model given away has images of nobody.
      return None
    real = self._real(examples)
    images = reconstruct(self.context.tokenizer, np.stack([e["image"] for e in real]))
    lines = [e["meta"] for e in real]
    return geneval.overall(self._found(images, lines), lines)


def _scores(group: str, rows: Sequence[dict]) -> Iterator[tuple[str, float]]:
  for name, value in geneval.summarize(rows).items():
    yield f"{group}/{name}", value
  yield f"{group}/overall_n", len(rows)
  for tag in dict.fromkeys(row["tag"] for row in rows):
    yield f"{group}/{tag}_n", sum(row["tag"] == tag for row in rows)
