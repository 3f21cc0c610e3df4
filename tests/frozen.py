"""Tiny frozen encoders on disk, for tests: the fixture's T5, and a BERT of noise."""

import json
import pathlib
import shutil

import numpy as np
import safetensors.numpy

from fluid.text.minilm import Bert, MiniLMConfig
from fluid.text.t5 import T5Config

WORDS = "[PAD] [UNK] [CLS] [SEP] a red blue circle square star above ##s ! . of the"


def t5(fixtures: pathlib.Path, folder: pathlib.Path, kind="single", **fields):
  """A folder as published ones are -> the config of the fixture's encoder."""
  target = folder / f"t5-{kind}"
  if not target.exists():
    shutil.copytree(fixtures / "t5" / kind, target)
    shutil.copyfile(fixtures / "t5/spiece.model", target / "spiece.model")
  return T5Config(
    **{"path": str(target), "width": 48, "length": 16, "dtype": "float32"} | fields
  )


def bert(folder: pathlib.Path, **fields):
  """A BERT of two layers with random weights -> its config."""
  target = folder / "bert"
  words = WORDS.split()
  network = Bert(
    width=16, layers=2, heads=4, hidden=32, vocab=len(words) + 2, positions=24
  )
  if not target.exists():
    target.mkdir(parents=True)
    content = {
      "model_type": "bert",
      "hidden_act": "gelu",
      "hidden_size": network.width,
      "num_hidden_layers": network.layers,
      "num_attention_heads": network.heads,
      "intermediate_size": network.hidden,
      "vocab_size": network.vocab,
      "max_position_embeddings": network.positions,
      "layer_norm_eps": network.epsilon,
    }
    (target / "config.json").write_text(json.dumps(content))
    (target / "vocab.txt").write_text("\n".join(words) + "\n")
    random = np.random.default_rng(0)
    weights = {
      name: (random.normal(size=row.stored()) * 0.3).astype(np.float32)
      for row in network.rows().values()
      for name in row.names({})
    }
    weights["pooler.dense.weight"] = np.zeros((16, 16), np.float32)
    weights["embeddings.position_ids"] = np.arange(24)[None]
    safetensors.numpy.save_file(weights, target / "model.safetensors")
  return MiniLMConfig(
    **{"path": str(target), "width": 16, "length": 10, "dtype": "float32"} | fields
  )
