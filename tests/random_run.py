"""A run with random weights, to be evaluated, and features of images that are quick."""

import jax
import numpy as np

from fluid import config, models, prepare, text
from fluid.durable import checkpoint
from fluid.evals import distribution, images, loss
from fluid.evals.geneval import evaluator
from fluid.files import write_json
from fluid.parallel import sharding
from fluid.text.learned import LearnedConfig
from fluid.tokenizers import store
from fluid.tokenizers.vq import VQConfig
from fluid.training import state as state_lib
from tests import tiny


class FakeFeatures:
  """Mean colour of an image and of its upper half: quick, and tells sets apart."""

  name, digest, outputs, params = "Fake", "0", {"pool": 6}, ()

  def preprocess(self, images):
    return images.astype(np.float32) / 255

  def apply(self, params, x):
    halves = x.mean((1, 2)), x[:, :8].mean((1, 2))
    return {"pool": jax.numpy.concatenate(halves, -1)}


def written(root, text_encoder, evaluators, source=None, **changes):
  """A run at step 2 with random weights: 16 px, 16 tokens; its workdir."""
  source = {} if source is None else {"source": source}
  cfg = tiny.run(
    order="random",
    changes=changes,
    text=text_encoder,
    data=config.Data(
      image_size=16, num_train=256, num_val=24, cache=str(root / "data"), **source
    ),
    tokenizer=VQConfig(
      stem=4,
      width=8,
      multipliers=(1,),
      vocab=16,
      path=str(root / "tokenizer"),
    ),
    sample=tiny.model(order="random").sample(steps=2, batch=8),
    evals=evaluators,
  )
  tokenizer = cfg.tokenizer.make(16)
  variables = jax.tree.map(np.asarray, jax.jit(tokenizer.init)(jax.random.key(0)))
  tokenizer = cfg.tokenizer.make(16, variables)
  store.save(cfg.tokenizer.path, tokenizer, {})
  prepare.prepare(cfg, batch=16, log=lambda line: None)
  vocabulary = text.load(cfg.text, cfg.data.cache)
  net = models.build(cfg.model, tokenizer.spec, cfg.text, vocabulary.size)
  mesh = sharding.make_mesh(cfg.mesh)
  state = state_lib.init_state(net, cfg, mesh)
  saved = checkpoint.Checkpoints(root / "w")
  saved.save(state.replace(step=state.step + 2), {}, 2)
  saved.close()
  write_json(root / "w" / "config.json", config.to_dict(cfg))
  return root / "w"


def judged(root):
  """The run of the fixture `workdir`, with evaluators of each kind."""
  evaluators = {
    "loss": loss.LossConfig(),
    "images": images.ImagesConfig(prompts="geneval", n=4),
    "geneval": evaluator.GenEvalConfig(n=1, k=2, heldout=1, layout=True),
    "distribution": distribution.DistributionConfig(
      prompts="geneval", examples=12, features="Fake", every=0
    ),
    "reconstruction": distribution.ReconstructionConfig(features="Fake", every=0),
  }
  words = LearnedConfig(length=24, vocab_size=120)
  return written(root, words, evaluators)
