"""The study at laptop scale: `configs/toy.py:tokens=discrete,order=raster,size=s`.

32 px, 4x4 tokens for both kinds, trained in minutes on two cores; real drawings
(`data=iconify`) at 64 px, 8x8 tokens, in hours. Everything but the numbers is what
configs/fluid.py uses.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import ml_collections

from configs import arguments, sizes
from configs import data as data_sets
from configs import fluid as paper
from fluid import config
from fluid.data.shapes import ShapesConfig
from fluid.evals.distribution import DistributionConfig
from fluid.evals.geneval.evaluator import GenEvalConfig
from fluid.evals.images import ImagesConfig
from fluid.evals.loss import LikelihoodConfig, LossConfig
from fluid.models import heads
from fluid.models.conditions.label import ClassConfig
from fluid.models.conditions.text import TextConfig
from fluid.models.orders.random import Random
from fluid.models.orders.raster import Raster
from fluid.models.trunks.fluid import FluidConfig
from fluid.text.classes import ClassesConfig
from fluid.text.learned import LearnedConfig
from fluid.text.minilm import MiniLMConfig
from fluid.tokenizers.vae import VAEConfig
from fluid.tokenizers.vq import VQConfig

TOKENIZERS = {
  # 8x8 latents of 4 channels, grouped 2x2: 16 tokens of 16 channels, as the paper.
  "continuous": VAEConfig(
    stem=4,
    width=64,
    multipliers=(1,),
    channels=4,
    patch=2,
    kl_weight=0.1,
    steps=1500,
    batch=16,
    lr=5e-3,
  ),
  "discrete": VQConfig(
    stem=4,
    width=48,
    multipliers=(1, 1),
    attention="mid",
    channels=16,
    vocab=1024,
    codebook_decay=0.99,
    # Absolute error alone leaves small objects out; the square asks for their colours.
    l2_weight=16.0,
    steps=12_000,
    batch=16,
    lr=5e-3,
  ),
}
# The same make 8x8 tokens of 64 px. Real drawings take the VAE longer than shapes do.
LARGE = TOKENIZERS | {
  "continuous": dataclasses.replace(TOKENIZERS["continuous"], steps=6000)
}
# Trained by `python -m fluid.tokenizers.train --config=configs/toy.py:tokens=continuous
# --config.data.num_train=64000 --config.tokenizer.path=PATH`, likewise discrete.
TRAINED = {
  "continuous": "configs/tokenizers/shapes32-vae",
  "discrete": "configs/tokenizers/shapes32-vq",
}
SAMPLING = {
  ("continuous", "random"): (5.0, 0.95),
  ("continuous", "raster"): (3.0, 0.95),
  ("discrete", "random"): (3.0, 1.0),
  ("discrete", "raster"): (3.0, 1.0),
}
# Rounded up to whole tokens, cosine masks hide all 16 in 23 % of examples. Random order
# learns from masks as from images (docs/study.md): as many rows a step as raster has.
ORDERS = {"random": Random(mask="uniform", masks=4), "raster": Raster()}
BATCH = {"random": 32, "raster": 128}
HEADS = {
  # More draws a token teach more a step and no more in a time: half of MAR's.
  "continuous": heads.DiffusionConfig(layers=3, batch_mul=2),
  "discrete": heads.CategoricalConfig(),
}
# How orders and heads draw. Solver and diffusion steps: the fastest as good as 100
# ancestral ones, by what runs of the toy study gave (docs/performance.md).
STEPS = {"random": {"steps": 16}, "raster": {}}
SOLVERS = {"random": ("ancestral", 25), "raster": ("dpmpp", 12)}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Arguments: tokens, order, size (a toy size), data, condition (text or class), text.

  data is shapes, emoji or a name of configs/data.py; text=minilm takes features of a
  frozen encoder (requirements-minilm.txt).
  """
  a = arguments.parse(
    arg,
    tokens=tuple(HEADS),
    order=tuple(ORDERS),
    size=tuple(sizes.TOY),
    data="shapes",
    condition=("text", "class"),
    text=("learned", "minilm"),
  )
  layers, width, num_heads = sizes.TOY[a.size]
  guidance, temperature = SAMPLING[a.tokens, a.order]
  shapes, by_text = a.data == "shapes", a.condition == "text"
  large = a.data == "iconify"
  draw = dict(STEPS[a.order])
  if large and draw:
    draw["steps"] *= 2  # Of four times the tokens.
  if a.tokens == "continuous":
    solver, diffusion_steps = SOLVERS[a.order]
    draw |= {"solver": solver, "diffusion_steps": diffusion_steps, "clip": 4.0}
  model = config.Model(
    size=a.size,
    dtype="float32",
    head=HEADS[a.tokens],
    order=ORDERS[a.order],
    # Few layers are faster one by one than as a loop, which stacks what it keeps.
    trunk=FluidConfig(
      layers=layers, width=width, heads=num_heads, remat="none", scan=False
    ),
    condition=TextConfig(layers=1, width=64) if by_text else ClassConfig(),
  )
  evals: dict = {"loss": LossConfig(examples=1024)}
  evals["likelihood"] = LikelihoodConfig(every=0, examples=1024, draws=4)
  if shapes and by_text:  # One draw of 384 images serves all three.
    evals["geneval"] = GenEvalConfig(every=0, n=32, k=2)
    evals["images"] = ImagesConfig(every=0, prompts="geneval")
    evals["distribution"] = DistributionConfig(every=0, prompts="geneval", examples=384)
  else:
    evals["images"] = ImagesConfig(every=0)
    examples = 182 if a.data == "emoji" else 384  # Half of emoji's validation.
    evals["distribution"] = DistributionConfig(every=0, examples=examples)
  run = config.Run(
    model=model,
    text=_text(a.text, shapes) if by_text else ClassesConfig(),
    data=config.Data(
      # Backgrounds and textures are most of the nats, and no caption tells of them:
      # models of this size would spend their training on these.
      source=ShapesConfig(detail=0.0) if shapes else data_sets.source(a.data),
      image_size=64 if large else 32,
      num_train=160_000 if shapes else 0,
      num_val=1024 if shapes else 0,
    ),
    tokenizer=(LARGE if large else TOKENIZERS)[a.tokens],
    optim=config.Optim(
      lr=2e-3,
      lr_width=64,
      lr_power=0.5,
      muon=5e-3,
      warmup=200,
      schedule="wsd",
      decay_fraction=0.3,
      clip=1.0,
      ema=0.999,
    ),
    sample=model.sample(guidance=guidance, temperature=temperature, batch=128, **draw),
    evals=evals,
    steps=10_000,
    batch=BATCH[a.order],
    accum=4,  # A microbatch stays in a core's cache: 0.8 of the time.
    log_every=100,
    eval_every=2500,
    checkpoint_every=2500,
    keep=1,
  )
  return paper.to_config_dict(run)


def cells(
  sizes: Iterable[str],
  overrides: dict | None = None,
  of_order: dict[str, dict] | None = None,
  suffix: str = "",
  file: str = "configs/toy.py",
  **arguments,
) -> Iterator[dict]:
  """The four cells at each size, as a sweep yields them; `arguments` of get_config.

  All cells of a size come together: early rows of the table are comparable. On shapes
  with the tokenizers that come with the code (TRAINED).

  Args:
    overrides: of all runs.
    of_order: order -> overrides of its runs, beside those.
    suffix: of the runs' names.
    file: config file, with the arguments of this one.
  """
  ours = arguments.get("data", "shapes") == "shapes"
  for size, tokens, order in itertools.product(
    sizes, ("continuous", "discrete"), ("random", "raster")
  ):
    args = dict(arguments, tokens=tokens, order=order, size=size)
    yield dict(
      name=f"{tokens}-{order}-{size}{suffix}",
      config=f"{file}:" + ",".join(f"{k}={v}" for k, v in args.items()),
      overrides=({"tokenizer.path": TRAINED[tokens]} if ours else {})
      | (overrides or {})
      | (of_order or {}).get(order, {}),
    )


def _text(kind: str, shapes: bool):
  if kind == "minilm":  # Two ends, and some words in pieces.
    return MiniLMConfig(length=24)
  return LearnedConfig(length=16 if shapes else 24, vocab_size=256 if shapes else 1024)
