"""What a run is made of: frozen dataclasses with their defaults.

Parts of the model, the tokenizer, the text encoder, the data source and the evaluators
bring sections of their own (fluid.config.part).
"""

import dataclasses
import math
import re
from typing import Any

from fluid.config import rules
from fluid.config.part import (
  Draw,
  added,
  free,
  named,
  place,
  said,
  section,
  signed,
)
from fluid.errors import ConfigError

VERSION = 2  # Of the layout; fluid.config.upgrade reads older ones.


@dataclasses.dataclass(frozen=True)
class Model:
  """A point of head x order x trunk x condition, at one size.

  Attributes:
    size: the name of this size in configs/sizes.py; for tables only.
    dtype: of activations; parameters, softmax, norms and losses stay float32.
    head: token space at both ends (fluid.models.heads).
    order: what is seen, what is predicted, in what sequence (fluid.models.orders).
    trunk: how inputs and condition become outputs (fluid.models.trunks).
    condition: text or class (fluid.models.conditions).
  """

  size: str = ""
  dtype: str = "bfloat16"
  head: Any = section("head", "diffusion")
  order: Any = section("order", "random")
  trunk: Any = section("trunk", "fluid")
  condition: Any = section("condition", "text")

  def check(self, name: str) -> None:
    rules.choice(f"{name}dtype", self.dtype, ("bfloat16", "float32"))

  @property
  def cell(self) -> str:
    """'<tokens>-<order>', as tables name it."""
    return f"{self.head.tokens}-{self.order.kind}"

  def sample(self, **options) -> "Sample":
    """How this model draws; `options` of `Sample` and of its head and order."""
    return Sample(head=self.head.Draw(), order=self.order.Draw()).replace(**options)

  def check_sample(self, sample: "Sample", name: str) -> None:
    """Raises ConfigError for options that this model cannot follow."""
    for options in (sample, sample.order, sample.head):
      rules.numbers(options, name)
    sample.check(name)
    self.order.check_draw(sample.order, name)
    self.head.check_draw(sample.head, name)
    if sample.guidance != 1 and not self.condition.null:
      raise ConfigError(
        f"config key '{name}guidance' is {sample.guidance}, but this model has no null "
        "class; set it to 1"
      )
    if getattr(sample.order, "choice", "") == "confidence" and not self.head.scores:
      raise ConfigError(
        f"config key '{name}choice' is 'confidence', but model.head '{self.head.kind}' "
        "knows no probability of its tokens; choose 'random'"
      )


@dataclasses.dataclass(frozen=True)
class Filter:
  """Which examples fluid.prepare keeps; 0 sets no bound.

  What is left out keeps its place in the records, is counted under its reason, and is
  never drawn.

  Attributes:
    min_side: pixels of the shorter side, before an image is cut and resized.
    min_aspect, max_aspect: width / height, likewise.
    min_words, max_words: of a caption; of several, those outside are left out.
    score: key of the source's meta whose number has to be `min_score` ('' for none).
    min_score: or more.
  """

  min_side: int = added(0)
  min_aspect: float = added(0.0)
  max_aspect: float = added(0.0)
  min_words: int = added(0)
  max_words: int = added(0)
  score: str = added("")
  min_score: float = added(0.0, "signed")

  def check(self, name: str) -> None:
    for what in ("aspect", "words"):
      low, high = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
      if high and low > high:
        raise ConfigError(
          f"config key '{name}min_{what}' ({low}) is above '{name}max_{what}' ({high})"
        )
    if self.min_score and not self.score:
      raise ConfigError(
        f"config key '{name}min_score' is {self.min_score}, but '{name}score' names no "
        "key of the source's meta"
      )


@dataclasses.dataclass(frozen=True)
class Data:
  """Where examples come from.

  Attributes:
    source: entry of fluid.data.SOURCES.
    image_size: pixels per side.
    num_train, num_val: examples taken of each split (0: all there are).
    cache: folder of cached tokens that fluid.prepare writes and fluid.train reads.
    seed: of the source (what the images are) and of the order they are drawn in.
    workers: grain worker processes; 0 reads in threads of this process.
    max_bad: share of examples that may be damaged (records, images, captions) and are
      skipped; one more stops the work, naming file and key.
    captions: kept of an image that has several (0: all). Training draws one of them
      anew in each epoch, evaluations take the first.
    flips: prepare encodes the mirror images of split train as well, and training draws
      one of the two in each epoch. Where a caption says left or right there is none.
    dedupe: of images that are equal in every pixel once they are cut and resized, the
      first of a split is drawn, the others are not.
    filter: which examples are kept.
    mixture: folders of caches that training draws from, in the place of `cache`, which
      still has the split val ((): from that). Each runs through epochs of its own.
    weights: of these in turn: their shares of every batch, but for rounding.
  """

  source: Any = section("source", "shapes")
  image_size: int = 32
  num_train: int = 0
  num_val: int = 0
  cache: str = place()
  seed: int = 0
  workers: int = free(0)
  max_bad: float = free(0.01)
  captions: int = added(1, "said")
  flips: bool = added(False, "said")
  dedupe: bool = added(False, "said")
  filter: Filter = said(Filter())
  mixture: tuple[str, ...] = place(())
  weights: tuple[float, ...] = added((), "drawn")

  def check(self, name: str) -> None:
    rules.positive(self, name, "image_size")
    rules.share(f"{name}max_bad", self.max_bad)
    fit = len(self.weights) == len(self.mixture)
    if not fit or not all(0 < w < math.inf for w in self.weights):
      raise ConfigError(
        f"config key '{name}weights' is {self.weights}; it must hold a number above 0 "
        f"for each folder of '{name}mixture', which is {self.mixture}"
      )


@dataclasses.dataclass(frozen=True)
class Optim:
  """AdamW and its schedule (defaults: paper-facts, partly unconfirmed).

  Attributes:
    lr: peak rate.
    lr_width: the trunk's width that lr is for: at others it is lr x (lr_width / width)
      ** lr_power (0: lr at all widths, as the paper).
    lr_power: of that rule; 1 is what maximal update parametrisation gives matrices.
    muon: peak rate of Muon, which takes the matrices of the blocks from AdamW (0: AdamW
      for all). Its updates have one spectral norm at all widths, so that it needs no
      rule of width; it follows the schedule.
    schedule: after the linear warm-up, 'constant', 'cosine' or 'wsd'
      (constant, then linear to zero over the last `decay_fraction` of the steps).
    max_skipped: steps whose loss or gradient is not finite that a run may skip (the
      state stays as it was); 0 stops at the first.
  """

  lr: float = 1e-4
  lr_width: int = 0
  lr_power: float = 1.0
  muon: float = 0.0
  schedule: str = "constant"
  warmup: int = 65_000
  decay_fraction: float = 0.2
  b1: float = 0.9
  b2: float = 0.95
  weight_decay: float = 0.02
  clip: float = 3.0
  ema: float = 0.9999
  max_skipped: int = free(0)

  def at(self, width: int) -> "Optim":
    """With the rate that a trunk of this width gets."""
    if not self.lr_width:
      return self
    rate = self.lr * (self.lr_width / width) ** self.lr_power
    return dataclasses.replace(self, lr=rate, lr_width=0)

  def check(self, name: str) -> None:
    rules.choice(f"{name}schedule", self.schedule, ("constant", "cosine", "wsd"))
    for field in ("b1", "b2", "ema", "decay_fraction"):
      open_end = field != "decay_fraction"
      rules.share(f"{name}{field}", getattr(self, field), open_end=open_end)


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Device mesh; at most one axis may be -1 (what is left of the devices).

  Attributes:
    data: copies of the parameters; each takes its share of the batch.
    fsdp: shards of parameters, optimizer and EMA; each takes its share of the batch.
    model: shards of heads, MLP and vocabulary (tensor parallelism).
    slice: TPU slices (or hosts without a fast link between them). Parameters are
      copied to each, so that only gradients cross the slow links.
  """

  data: int = signed(-1)
  fsdp: int = signed(1)
  model: int = signed(1)
  slice: int = signed(1)

  def check(self, name: str) -> None:
    for field, size in vars(self).items():
      if size != -1:
        rules.positive(self, name, field)


@dataclasses.dataclass(frozen=True)
class Sample:
  """How images are drawn; options of the model's head and order stand beside these.

  Attributes:
    guidance: w of u + w (c - u); 1 switches guidance off.
    guidance_schedule: how w - 1 grows with the share of tokens decoded: 'linear' (MAR),
      'cosine' (RAR: half of 1 - cos(pi share ** guidance_power)) or 'constant'.
    guidance_power: of that rule.
    guidance_from, guidance_to: shares of decoded tokens between which guidance acts;
      outside, the unconditional pass is saved (raster: in the head only).
    temperature: of the logits (categorical) or of the noise added (diffusion).
    batch: prompts per compiled call.
    head, order: their own options; in files and flags they are fields like the others.
  """

  guidance: float = 3.0
  guidance_schedule: str = "linear"
  guidance_power: float = 1.0
  guidance_from: float = 0.0
  guidance_to: float = 1.0
  temperature: float = 1.0
  batch: int = 64
  head: Draw = Draw()
  order: Draw = Draw()

  def check(self, name: str) -> None:
    schedules = ("linear", "cosine", "constant")
    rules.choice(f"{name}guidance_schedule", self.guidance_schedule, schedules)
    rules.positive(self, name, "batch")
    if not 0 <= self.guidance_from <= self.guidance_to <= 1:
      raise ConfigError(
        f"config keys '{name}guidance_from' and '{name}guidance_to' must be ordered "
        f"and in [0, 1], not {self.guidance_from} and {self.guidance_to}"
      )

  def flat(self) -> dict[str, Any]:
    """Every option by its name."""
    own = {k: v for k, v in vars(self).items() if k not in ("head", "order")}
    return own | vars(self.order) | vars(self.head)

  def replace(self, **options) -> "Sample":
    """With some options changed; ConfigError for one that this model does not know."""
    known = self.flat()
    for option in options:
      if option not in known:
        raise ConfigError(
          f"unknown sampling option '{option}'; this model knows {', '.join(known)}"
        )
    parts = {}
    for owner in ("head", "order"):
      draw = getattr(self, owner)
      own = {k: options.pop(k) for k in vars(draw) if k in options}
      parts[owner] = dataclasses.replace(draw, **own)
    return dataclasses.replace(self, **options, **parts)


@dataclasses.dataclass(frozen=True)
class Init:
  """Parameters a new run starts from, instead of random ones.

  Attributes:
    workdir: of the run that has them ('' for none).
    step: a saved step (-1: the newest).
    weights: 'ema' or 'raw'.
    match: regular expression; parameters whose whole name it fits are taken ('trunk/.*'
      puts a new head on an old trunk), the others are drawn.
  """

  workdir: str = place()
  step: int = signed(-1)
  weights: str = "ema"
  match: str = ".*"

  def check(self, name: str) -> None:
    rules.choice(f"{name}weights", self.weights, ("ema", "raw"))
    try:
      re.compile(self.match)
    except re.error as e:
      raise ConfigError(
        f"config key '{name}match' is no regular expression: {e}"
      ) from e


@dataclasses.dataclass(frozen=True)
class Run:
  """A whole run.

  Attributes:
    version: of the layout of these sections.
    text: entry of fluid.text.ENCODERS: what turns a prompt into the condition's input.
    tokenizer: entry of fluid.tokenizers.TOKENIZERS.
    evals: names to entries of fluid.evals.EVALS and their arguments.
    accum: microbatches a step's batch is split into.
    log_every, eval_every, checkpoint_every: in steps; 0 switches off (evaluation and
      checkpoint still happen once, after the last step).
    keep: newest checkpoints kept.
    profile_steps: 'first:last' steps to trace into workdir/profile ('' for none).
    tensorboard: write event files through clu (imports tensorflow).
  """

  version: int = VERSION
  model: Model = dataclasses.field(default_factory=Model)
  text: Any = section("text", "learned")
  data: Data = dataclasses.field(default_factory=Data)
  tokenizer: Any = section("tokenizer", "vae")
  optim: Optim = Optim()
  mesh: Mesh = free(Mesh())
  sample: Sample = free(None)
  init: Init = free(Init())
  evals: dict[str, Any] = named("eval")
  seed: int = 0
  steps: int = free(1_000_000)
  batch: int = 2048
  accum: int = free(1)
  log_every: int = free(100)
  eval_every: int = free(10_000)
  checkpoint_every: int = free(1_000)
  keep: int = free(3)
  profile_steps: str = free("")
  tensorboard: bool = free(False)

  def __post_init__(self):
    if self.sample is None:  # Its options are those of this model's head and order.
      object.__setattr__(self, "sample", self.model.sample())

  def check(self, name: str) -> None:
    rules.positive(self, name, "steps", "batch", "accum", "keep")
    rules.multiple(f"{name}batch", self.batch, "accum", self.accum)
    self.model.check_sample(self.sample, f"{name}sample.")
    if self.version != VERSION:
      raise ConfigError(
        f"config key '{name}version' is {self.version}; this code reads {VERSION}"
      )


def replaced(config: Any, changes: dict[str, Any]) -> Any:
  """A dataclass with values changed by dotted names: {'model.trunk.width': 64}."""

  def change(node, path, value):
    first, _, rest = path.partition(".")
    if rest:
      value = change(getattr(node, first), rest, value)
    return dataclasses.replace(node, **{first: value})

  for path, value in changes.items():
    config = change(config, path, value)
  return config
