"""The study at laptop scale: `configs/toy.py:tokens=discrete,order=raster,size=s`.

32 px, 4x4 tokens for both kinds, trained in minutes on two cores. Everything but the
numbers is what configs/fluid.py uses.
"""

import itertools
from collections.abc import Iterable, Iterator

import ml_collections

from configs import arguments, sizes
from configs import fluid as paper
from fluid import config

TOKENIZERS = {
  # 8x8 latents of 4 channels, grouped 2x2: 16 tokens of 16 channels, as the paper.
  "continuous": config.Tokenizer(
    kind="vae",
    stem=4,
    width=64,
    multipliers=(1,),
    channels=4,
    patch=2,
    kl_weight=0.1,
    steps=1000,
    batch=16,
    lr=5e-3,
  ),
  "discrete": config.Tokenizer(
    kind="vq",
    stem=4,
    width=64,
    multipliers=(1, 2),
    channels=16,
    vocab=1024,
    patch=1,
    steps=3000,
    batch=16,
    lr=3e-3,
  ),
}
SAMPLING = {
  ("continuous", "random"): (3.0, 0.95),
  ("continuous", "raster"): (3.0, 0.95),
  ("discrete", "random"): (3.0, 1.0),
  ("discrete", "raster"): (3.0, 1.0),
}
# Solver and diffusion steps: the fastest as good as 100 ancestral ones, by what runs of
# the toy study gave (docs/performance.md).
SOLVERS = {"random": ("ancestral", 25), "raster": ("dpmpp", 12)}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Arguments: tokens, order, size (a toy size), data (shapes or emoji)."""
  a = arguments.parse(
    arg,
    tokens=tuple(paper.HEADS),
    order=("random", "raster"),
    size=tuple(sizes.TOY),
    data=("shapes", "emoji"),
  )
  layers, width, heads = sizes.TOY[a.size]
  guidance, temperature = SAMPLING[a.tokens, a.order]
  solver, diffusion_steps = SOLVERS[a.order]
  shapes = a.data == "shapes"
  run = config.Run(
    model=config.Model(
      head=paper.HEADS[a.tokens],
      order=a.order,
      # Rounded up to whole tokens, cosine masks hide all 16 in 23 % of examples.
      mask="uniform",
      size=a.size,
      layers=layers,
      width=width,
      heads=heads,
      aligner_layers=1,
      head_layers=3,
      head_batch_mul=4,
      dtype="float32",
      remat="none",
    ),
    text=config.Text(
      length=16 if shapes else 24, width=64, vocab_size=256 if shapes else 1024
    ),
    data=config.Data(
      source=a.data,
      image_size=32,
      num_train=64_000 if shapes else 0,
      num_val=1024 if shapes else 0,
    ),
    tokenizer=TOKENIZERS[a.tokens],
    optim=config.Optim(
      lr=2e-3, warmup=200, schedule="wsd", decay_fraction=0.3, clip=1.0, ema=0.99
    ),
    sample=config.Sample(
      guidance=guidance,
      temperature=temperature,
      steps=16,
      solver=solver,
      diffusion_steps=diffusion_steps,
      clip=4.0,
      batch=128,
    ),
    evals={"loss": {"examples": 1024}}
    | (
      # One draw of 384 images serves all three.
      {
        "geneval": {"every": 0, "n": 32, "k": 2},
        "images": {"every": 0, "prompts": "geneval"},
        "distribution": {"every": 0, "prompts": "geneval", "examples": 384},
      }
      if shapes
      else {"images": {"every": 0}, "distribution": {"every": 0, "examples": 182}}
    ),
    steps=6000,
    batch=32,
    log_every=100,
    eval_every=1500,
    checkpoint_every=1500,
    keep=1,
  )
  return paper.to_config_dict(run)


def cells(
  sizes: Iterable[str], overrides: dict | None = None, **arguments
) -> Iterator[dict]:
  """The four cells at each size, as a sweep yields them; `arguments` of get_config.

  All cells of a size come together: early rows of the table are comparable.
  """
  for size, tokens, order in itertools.product(
    sizes, ("continuous", "discrete"), ("random", "raster")
  ):
    args = dict(arguments, tokens=tokens, order=order, size=size)
    yield dict(
      name=f"{tokens}-{order}-{size}",
      config="configs/toy.py:" + ",".join(f"{k}={v}" for k, v in args.items()),
      overrides=overrides or {},
    )
