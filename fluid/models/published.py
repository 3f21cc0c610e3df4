"""Published models: each family's sizes, parts, tokenizer and way of drawing.

`RUNS[name]()` is a config.Run without its recipe of training, which configs/reproduce
adds. Sizes and sampling options are those of the authors' repositories for ImageNet at
256 pixels, unless the name says otherwise.
"""

import dataclasses
import functools
from collections.abc import Callable

from fluid import config
from fluid.models.conditions.caption import CaptionConfig
from fluid.models.conditions.label import ClassConfig
from fluid.models.heads import CategoricalConfig, DiffusionConfig
from fluid.models.heads.scales import ScalesConfig
from fluid.models.orders.permuted import Permuted
from fluid.models.orders.random import Random
from fluid.models.orders.raster import Raster
from fluid.models.orders.scales import Scales
from fluid.models.trunks.llamagen import LlamaGenConfig
from fluid.models.trunks.mar import MARConfig
from fluid.models.trunks.maskgit import MaskGITConfig
from fluid.models.trunks.rar import RARConfig
from fluid.models.trunks.var import VARConfig
from fluid.text.classes import ClassesConfig
from fluid.text.t5 import T5Config
from fluid.tokenizers import maskgit as maskgit_tokenizer
from fluid.tokenizers import multiscale
from fluid.tokenizers import published as tokenizers

# Width, layers of encoder and decoder, heads; layers and width of the head; guidance.
MAR = {
  "b": (768, 12, 12, 6, 1024, 2.9),
  "l": (1024, 16, 16, 8, 1280, 3.0),
  "h": (1280, 20, 16, 12, 1536, 3.2),
}
# Layers, heads, width; guidance.
LLAMAGEN = {
  "b": (12, 12, 768, 2.0),
  "l": (24, 16, 1024, 2.0),
  "xl": (36, 20, 1280, 1.75),
  "xxl": (48, 24, 1536, 1.75),
  "xxxl": (48, 40, 2560, 1.65),
  "1b": (22, 32, 2048, 1.75),
  "3b": (24, 32, 3200, 1.65),
  "7b": (32, 32, 4096, 1.65),
}
# Width, layers, width of the MLP; guidance, its power, temperature.
RAR = {
  "b": (768, 24, 3072, 16.0, 2.75, 1.0),
  "l": (1024, 24, 4096, 15.5, 2.5, 1.02),
  "xl": (1280, 32, 5120, 6.9, 1.5, 1.02),
  "xxl": (1408, 40, 6144, 8.0, 1.2, 1.02),
}
VAR = (16, 20, 24, 30)  # Depths.
BATCH = 32  # Of what is drawn or judged at once, until a recipe says otherwise.


def _run(model: config.Model, tokenizer, image_size: int, text=None, **sample):
  imagenet = dict(crop="adm", num_classes=1000)  # As ADM cuts images.
  kind, options = ("folder", {"crop": "adm"}) if text else ("imagenet", imagenet)
  source = config.resolve("source", kind)(**options)
  data = config.Data(source=source, image_size=image_size)
  return config.Run(
    model=model,
    text=text or ClassesConfig(),
    data=data,
    tokenizer=tokenizer,
    sample=model.sample(batch=BATCH, **sample),
    batch=BATCH,
  )


def mar(size: str) -> config.Run:
  """Li et al. 2024 (arXiv 2406.11838): 256 steps of 100 denoising ones."""
  width, layers, heads, head_layers, head_width, guidance = MAR[size]
  model = config.Model(
    size=f"mar_{size}",
    head=DiffusionConfig(layers=head_layers, width=head_width),
    order=Random(mask="truncated_normal", mask_min=0.7),
    trunk=MARConfig(width=width, heads=heads, layers=layers, decoder_layers=layers),
    condition=ClassConfig(),
  )
  return _run(model, tokenizers.KL16Config(), 256, guidance=guidance, steps=256)


def llamagen(size: str, image_size: int = 256) -> config.Run:
  """Sun et al. 2024 (arXiv 2406.06525), class-conditional."""
  layers, heads, width, guidance = LLAMAGEN[size]
  model = config.Model(
    size=f"llamagen_{size}",
    head=CategoricalConfig(tie_embeddings=False, bias=False),
    order=Raster(),
    trunk=LlamaGenConfig(width=width, heads=heads, layers=layers),
    condition=ClassConfig(),
  )
  sample = dict(guidance=guidance, guidance_schedule="constant")
  return _run(model, tokenizers.LlamaGenVQConfig(), image_size, **sample)


def llamagen_t2i(image_size: int) -> config.Run:
  """Its text-conditional XL, with 120 features of flan-T5-XL."""
  model = dataclasses.replace(
    llamagen("xl").model, size="llamagen_t2i", condition=CaptionConfig()
  )
  text = T5Config(length=120, width=2048)
  sample = dict(guidance=7.5, guidance_schedule="constant", top_k=1000)
  return _run(model, tokenizers.LlamaGenVQConfig(), image_size, text, **sample)


def maskgit(image_size: int) -> config.Run:
  """Chang et al. 2022 (arXiv 2202.04200): 8 steps, 12 at 512 pixels."""
  model = config.Model(
    size="maskgit",
    dtype="float32",
    head=CategoricalConfig(label_smoothing=0.1),
    order=Random(mask="cosine", mask_min=0.5),
    trunk=MaskGITConfig(width=768, heads=16, layers=24),
    condition=ClassConfig(null=False, drop=0.0),
  )
  steps = 8 if image_size == 256 else 12
  sample = dict(guidance=1.0, steps=steps, choice="confidence")
  return _run(model, maskgit_tokenizer.MaskGITVQConfig(), image_size, **sample)


def rar(size: str) -> config.Run:
  """Yu et al. 2024 (arXiv 2411.00776)."""
  width, layers, hidden, guidance, power, temperature = RAR[size]
  model = config.Model(
    size=f"rar_{size}",
    head=CategoricalConfig(tie_embeddings=False),
    order=Permuted(),
    trunk=RARConfig(width=width, heads=16, layers=layers, hidden_width=hidden),
    condition=ClassConfig(),
  )
  sample = dict(guidance=guidance, guidance_schedule="cosine", guidance_power=power)
  sample |= dict(temperature=temperature)
  return _run(model, maskgit_tokenizer.MaskGITVQConfig(), 256, **sample)


def var(depth: int, image_size: int = 256) -> config.Run:
  """Tian et al. 2024 (arXiv 2404.02905); its `cfg` is one less than our guidance."""
  model = config.Model(
    size=f"var_d{depth}",
    head=ScalesConfig(),
    order=Scales(),
    trunk=VARConfig(
      width=64 * depth,
      heads=depth,
      layers=depth,
      shared_modulation=image_size == 512,
      path_dropout=0.1 * depth / 24,
    ),
    condition=ClassConfig(),
  )
  scales = multiscale.SCALES_512 if image_size == 512 else multiscale.SCALES_256
  sample = dict(guidance=2.5, top_k=900, top_p=0.96)
  return _run(model, multiscale.VARVQConfig(scales=scales), image_size, **sample)


def _sizes(family: str, make: Callable, sizes) -> dict[str, Callable[[], config.Run]]:
  return {f"{family}_{size}": functools.partial(make, size) for size in sizes}


RUNS: dict[str, Callable[[], config.Run]] = {
  **_sizes("mar", mar, MAR),
  **_sizes("llamagen", llamagen, LLAMAGEN),
  "llamagen_t2i": functools.partial(llamagen_t2i, 256),
  "llamagen_t2i_512": functools.partial(llamagen_t2i, 512),
  "maskgit": functools.partial(maskgit, 256),
  "maskgit_512": functools.partial(maskgit, 512),
  **_sizes("rar", rar, RAR),
  **{f"var_d{d}": functools.partial(var, d) for d in VAR},
  "var_d36_512": functools.partial(var, 36, 512),
}
