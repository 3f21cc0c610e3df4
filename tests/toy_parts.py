"""A toy of every kind of part, with its row in the registry.

conftest imports this before tests are collected: what runs over the registries runs
over these as well, and so says whether a new part is one file and one row.

B batch, L tokens, S slots, M new slots, D width, C token channels.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fluid import config, evals, tokenizers, trees
from fluid.evals.base import Evaluation
from fluid.models import CONDITIONS, HEADS, ORDERS, TRUNKS, Cond, Plan, layers
from fluid.models.conditions.base import Condition
from fluid.models.heads.base import Head
from fluid.models.orders.base import Order, stage
from fluid.models.plan import rows
from fluid.models.trunks.base import Trunk
from fluid.parallel.sharding import spec as pspec
from fluid.tokenizers import base


@dataclasses.dataclass(frozen=True)
class RegressionDraw(config.Draw):
  """Attributes: spread, standard deviation of what is drawn."""

  spread: float = 0.5


@dataclasses.dataclass(frozen=True)
class Regression(Head):
  """Continuous tokens with a Gaussian of fixed width around a linear guess."""

  kind = "regression"
  tokens = "continuous"
  Draw = RegressionDraw
  PARAMETERS = (
    (r"head/(tokens|guess)/w", True, "head"),
    (r"head/(tokens|guess)/b", False, "head"),
  )

  def module(self, model, spec):
    return _RegressionHead(model, spec)


class _RegressionHead(nn.Module):
  model: config.Model
  spec: base.TokenSpec

  def setup(self):
    d, c = self.model.trunk.width, self.spec.channels
    self.tokens = layers.Linear((c,), (d,), (None, "embed"))
    self.guess = layers.Linear((d,), (c,), ("embed", None))

  def embed(self, tokens):
    return self.tokens(tokens.astype(self.model.dtype))

  def loss(self, z, target, keys, train):
    return {"loss": jnp.square(self.guess(z) - target).mean(-1).astype(jnp.float32)}

  def sample(self, z, keys, *, z_uncond=None, guidance=1.0, temperature=1.0, draw=None):
    x = self.guess(z)
    if z_uncond is not None:
      uncond = self.guess(z_uncond)
      x = uncond + guidance * (x - uncond)
    shape = (self.spec.channels,)
    noise = jax.vmap(jax.vmap(lambda k: jax.random.normal(k, shape)))(keys)
    return x + temperature * (draw or RegressionDraw()).spread * noise, None


@dataclasses.dataclass(frozen=True)
class Backwards(Order):
  """Next token from the last to the first."""

  kind = "backwards"

  def plan(self, keys, step, spec):
    n = spec.length
    turned = np.arange(n)[::-1]
    return Plan(
      read=np.append(-1, turned[:-1]),
      positions=turned,
      targets=turned,
      predicted=jnp.ones((len(keys), n), bool),
      causal=True,
    )

  def sample(self, net, options):
    n, tokens = net.length, []
    carry = net.start(past=True), net.blank()[:, :1]
    stages = [stage(options, i / n) for i in range(n)]
    for now, slots in itertools.groupby(range(n), stages.__getitem__):

      def body(carry, i, now=now):
        kept, before = carry
        at, known = jnp.full((1,), n - 1 - i), jnp.full((1, 1), i > 0)
        plan = Plan(np.arange(1), at, at, known=known, causal=True, first=i)
        z, kept = net.run(before, plan, kept)
        place = jnp.full((len(net.keys), 1), n - 1 - i)
        new, _ = net.draw(z, place, now, known=i / n, decoded=(i + 1) / n)
        return (kept, new), new[:, 0]

      carry, new = jax.lax.scan(body, carry, jnp.array([*slots]))
      tokens.append(new)
    return jnp.moveaxis(jnp.concatenate(tokens)[::-1], 0, 1)


@dataclasses.dataclass(frozen=True)
class Averages(Trunk):
  """Every slot knows itself, the mean of what it sees, and the condition's mean."""

  kind = "averages"
  PARAMETERS = (
    (r"(own|seen|about)/w", True, "core"),
    (r"(own|seen|about)/b", False, "core"),
    (r"(start|places|goals)/w", False, "embeddings"),
  )

  heads: int = 2

  def module(self, model, spec):
    return _AveragesTrunk(self, spec)


class _AveragesTrunk(nn.Module):
  cfg: Averages
  spec: base.TokenSpec

  def setup(self):
    n, d = self.spec.length, self.cfg.width
    self.start_ = layers.Table((d,), (None,), name="start")
    self.places = layers.Table((n, d), (None, None))
    self.goals = layers.Table((n, d), (None, None))
    linear = lambda: layers.Linear((d,), (d,), (None, "embed"))
    self.own, self.seen, self.about = linear(), linear(), linear()

  def start(self, cond, length=0):
    mean = self.about(_mean(cond))
    return {"about": mean[None], "sum": jnp.zeros_like(mean)[None]}

  def __call__(self, x, plan, cond, kept=None, at=None, keys=None):
    x = plan.show(x, self.start_())
    x = x + rows(self.places(), plan.targets, x.dtype)
    about = self.about(_mean(cond)) if kept is None else kept["about"][0]
    before = 0 if kept is None else kept["sum"][0][:, None]
    sums = before + jnp.cumsum(x, 1)
    if plan.causal:
      mean = sums / (plan.first + 1 + jnp.arange(x.shape[1]))[:, None]
    else:
      mean = jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)
    if at is not None:
      x, mean = (jnp.take_along_axis(a, at[..., None], 1) for a in (x, mean))
    targets = plan.targets if at is None else jnp.asarray(plan.targets)[at]
    z = jnp.tanh(self.own(x) + self.seen(mean) + about[:, None])
    z = z + rows(self.goals(), targets, z.dtype)
    if kept is not None:
      kept = kept | {"sum": sums[:, -1][None]}
    return z, kept


def _mean(cond: Cond):
  weight = cond.mask[..., None].astype(cond.tokens.dtype)
  return (cond.tokens * weight).sum(1) / weight.sum(1)


@dataclasses.dataclass(frozen=True)
class Bag(Condition):
  """A text as the mean of its words' embeddings."""

  kind = "bag"
  texts = ("learned",)
  PARAMETERS = ((r"(words|nothing)/w", False, "embeddings"),)

  def module(self, model, text, vocab):
    return _BagCondition(model, vocab)


class _BagCondition(nn.Module):
  model: config.Model
  vocab: int

  def setup(self):
    d = self.model.trunk.width
    self.words = layers.Table((self.vocab, d), (None, None))
    self.nothing = layers.Table((d,), (None,))

  def __call__(self, ids, mask, drop):
    tokens = self.words().at[ids].get(out_sharding=pspec("batch", None, None))
    mean = _mean(Cond(tokens, mask))
    mean = jnp.where(drop[:, None], self.nothing(), mean).astype(self.model.dtype)
    return Cond(mean[:, None], jnp.ones_like(mask[:, :1]), mean)


@dataclasses.dataclass(frozen=True)
class BlocksConfig(base.TokenizerConfig):
  """Continuous tokens: the mean colour of each block of pixels, scaled.

  Attributes:
    side: of a block in pixels.
  """

  kind = "blocks"

  side: int = 4

  def make(self, image_size, variables=None):
    if image_size % self.side:
      raise config.ConfigError(f"config key 'data.image_size' ({image_size}) is odd")
    return Blocks(self, image_size, variables)


class Blocks(base.Tokenizer):
  """variables: params {gain [3]}."""

  @property
  def spec(self):
    n = self.image_size // self.config.side
    return base.TokenSpec("continuous", n * n, (n, n), channels=3)

  def init(self, key):
    return {"params": {"gain": jnp.ones(3)}}

  def encode_with(self, variables, images):
    s = self.config.side
    n = self.image_size // s
    x = images.reshape(len(images), n, s, n, s, 3).mean((2, 4))
    return x.reshape(len(images), n * n, 3) * variables["params"]["gain"]

  def moments_with(self, variables, images):
    mean = self.encode_with(variables, images)
    return mean, jnp.zeros_like(mean)

  def decode_with(self, variables, tokens):
    n, s = self.image_size // self.config.side, self.config.side
    x = (tokens / variables["params"]["gain"]).reshape(-1, n, n, 3)
    return jnp.clip(x.repeat(s, 1).repeat(s, 2), -1, 1)

  def training_state(self, variables):
    return {}

  def loss(self, params, state, images, key):
    recon = self.decode_with(
      {"params": params}, self.encode_with({"params": params}, images)
    )
    loss = jnp.square(recon - images).mean()
    return loss, (state, {"recon": loss, "mse": loss})

  def finish(self, params, state, images, batch):
    return {"params": params}


@dataclasses.dataclass(frozen=True)
class SizeConfig(Evaluation):
  """Norm of all parameters."""

  kind = "size"

  def make(self, net, context):
    return Size()


class Size:
  """See SizeConfig."""

  def run(self, params, step, weights="ema"):
    leaves = trees.paths(params).values()
    yield "size", float(np.sqrt(sum(float(jnp.square(a).sum()) for a in leaves)))


HEADS["regression"] = Regression
ORDERS["backwards"] = "tests.toy_parts:Backwards"
TRUNKS["averages"] = Averages
CONDITIONS["bag"] = Bag
tokenizers.TOKENIZERS["blocks"] = BlocksConfig
evals.EVALS["size"] = SizeConfig
