"""Published families at laptop scale: `configs/toy_published.py:family=mar,size=s`.

On shapes, by class (the GenEval tag of an image), with the toy study's tokenizers and
recipe.
"""

import dataclasses

import ml_collections

from configs import arguments, sizes, toy
from configs.fluid import to_config_dict
from fluid import config
from fluid.models import heads
from fluid.models.conditions.label import ClassConfig
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
from fluid.tokenizers.multiscale import VARVQConfig

FAMILIES = ("mar", "llamagen", "maskgit", "rar", "var")
# VAR's tokens are those of four scales; `python -m fluid.tokenizers.train` makes it.
SCALED = VARVQConfig(
  stem=4,
  width=48,
  multipliers=(1, 1),
  blocks=1,
  attention="mid",
  channels=16,
  vocab=1024,
  scales=(1, 2, 3, 4),
  groups=8,
  l2_weight=16.0,
  steps=12_000,
  batch=16,
  lr=5e-3,
)
UNTIED = heads.CategoricalConfig(tie_embeddings=False)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Arguments: family, size (a toy size)."""
  a = arguments.parse(arg, family=FAMILIES, size=tuple(sizes.TOY))
  tokens = "continuous" if a.family == "mar" else "discrete"
  base = f"tokens={tokens},order=random,condition=class,size={a.size}"
  run = config.from_config_dict(toy.get_config(base))
  trunk = run.model.trunk
  shape = dict(
    width=trunk.width,
    heads=trunk.heads,
    layers=trunk.layers,
    remat="none",
    scan=False,
  )
  order, draw, condition = run.model.order, {}, ClassConfig()
  if a.family == "mar":
    # Sixteen tokens: half of them are read where MAR reads 30 %.
    order = Random(mask="truncated_normal", mask_min=0.5, masks=order.masks)
    model = dict(trunk=MARConfig(**shape, decoder_layers=trunk.layers, buffer=4))
  elif a.family == "llamagen":
    head = dataclasses.replace(UNTIED, bias=False)
    model = dict(head=head, trunk=LlamaGenConfig(**shape, multiple=16))
    order = Raster()
  elif a.family == "maskgit":
    condition = ClassConfig(null=False, drop=0.0)
    head = heads.CategoricalConfig(label_smoothing=0.1)
    order = Random(mask="cosine", mask_min=0.5, masks=order.masks)
    draw = dict(guidance=1.0, choice="confidence", steps=8)
    model = dict(head=head, trunk=MaskGITConfig(**shape))
  elif a.family == "var":
    order, draw = Scales(), dict(guidance=3.0)
    model = dict(head=ScalesConfig(), trunk=VARConfig(**shape))
    run = dataclasses.replace(run, tokenizer=SCALED)
  else:
    order = Permuted(until=run.steps // 2, raster_from=3 * run.steps // 4)
    draw = dict(guidance_schedule="cosine", guidance_power=2.5)
    model = dict(head=UNTIED, trunk=RARConfig(**shape))
  new = dataclasses.replace(run.model, order=order, condition=condition, **model)
  known = new.sample().flat()
  kept = {k: v for k, v in run.sample.flat().items() if k in known}
  run = dataclasses.replace(
    run,
    model=new,
    sample=new.sample(**kept | draw),
    batch=run.batch if order.pattern == "masked" else toy.BATCH["raster"],
  )
  return to_config_dict(run)
