"""A run small enough for tests: config, net, batch and a cache of random tokens."""

import dataclasses

import numpy as np

from fluid import config, models
from fluid.data import packing, records
from fluid.text.learned import LearnedConfig
from fluid.tokenizers.base import TokenSpec
from fluid.tokenizers.vae import VAEConfig

LENGTH, TEXT, VOCAB, WORDS, CHANNELS = 16, 6, 32, 40, 4
SPECS = {
  "categorical": TokenSpec("discrete", LENGTH, (4, 4), vocab=VOCAB),
  "diffusion": TokenSpec("continuous", LENGTH, (4, 4), channels=CHANNELS),
}


def model(head="categorical", order="raster", **changes) -> config.Model:
  """Float32, one layer, width 16; `changes` by names such as trunk__layers=2."""
  part = lambda family, kind, **kw: config.resolve(family, kind)(**kw)
  heads = {"diffusion": {"layers": 1, "batch_mul": 2}}
  out = config.Model(
    dtype="float32",
    head=part("head", head, **heads.get(head, {})),
    order=part("order", order),
    trunk=part("trunk", "fluid", layers=1, width=16, heads=4, remat="none"),
    condition=part("condition", "text", layers=0, width=8),
  )
  return config.replaced(out, {k.replace("__", "."): v for k, v in changes.items()})


def run(head="categorical", order="raster", *, changes=None, **kwargs) -> config.Run:
  """A small run; `changes` are those of `model`, the rest overrides."""
  return config.Run(
    **{
      "model": model(head, order, **(changes or {})),
      "text": LearnedConfig(length=TEXT),
      "data": config.Data(image_size=16),
      "tokenizer": VAEConfig(width=8, multipliers=(1, 1)),
      "optim": config.Optim(lr=1e-2, warmup=2, ema=0.9),
      "batch": 8,
      "steps": 6,
      "log_every": 1,
      "eval_every": 0,
      "checkpoint_every": 3,
    }
    | kwargs
  )


def net(cfg: config.Run) -> models.Net:
  return models.build(cfg.model, SPECS[cfg.model.head.kind], cfg.text, WORDS)


def batch(cfg: config.Run, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Rows of random tokens; the last one is padding."""
  rng = np.random.default_rng(seed)
  spec = SPECS[cfg.model.head.kind]
  if spec.kind == "discrete":
    tokens = rng.integers(0, VOCAB, (rows, LENGTH)).astype(np.int32)
  else:
    tokens = rng.normal(size=(rows, LENGTH, CHANNELS)).astype(np.float32)
  return {
    "tokens": tokens,
    "text": rng.integers(0, WORDS, (rows, TEXT)).astype(np.int32),
    "text_mask": np.arange(TEXT) < rng.integers(1, TEXT, (rows, 1)),
    "id": np.arange(100, 100 + rows, dtype=np.int32),
    "mask": np.arange(rows) < rows - 1,
  }


def cache(path, head="categorical", rows=32):
  """Writes a complete cache of random tokens; returns its path as a string."""
  path.mkdir(parents=True)
  spec, rng = SPECS[head], np.random.default_rng(0)
  splits = {}
  for number, split in enumerate(("train", "val")):
    packed = []
    for i in range(rows):
      example = {"id": number * 1000 + i, "caption": "a", "meta": {}}
      example["text_ids"] = rng.integers(1, WORDS, TEXT).tolist()
      if spec.kind == "discrete":
        tokens = rng.integers(0, VOCAB, LENGTH).astype(np.uint16)
        packed.append(packing.pack(example | {"tokens": tokens}))
      else:
        mean = rng.normal(size=(LENGTH, CHANNELS)).astype(np.float16)
        packed.append(packing.pack(example | {"mean": mean, "std": np.abs(mean) / 9}))
    file = records.shard_path(path, split, 0)
    records.write_shard(file, packed)
    shard = {"name": file.name, "records": rows, "bytes": file.stat().st_size}
    splits[split] = {"count": rows, "shards": [shard]}
  text = {"kind": "learned", "vocab_size": WORDS, "length": TEXT}
  records.write_metadata(
    path, {"tokens": spec.to_dict(), "text": text, "splits": splits}
  )
  return str(path)


def with_cache(cfg: config.Run, path) -> config.Run:
  return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, cache=str(path)))
