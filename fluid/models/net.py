"""Net: a model as pure functions; Linen does not leave this package."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from fluid import config, tokenizers, trees
from fluid.data import records
from fluid.models import rows
from fluid.models.conditions import Cond
from fluid.models.orders import Order
from fluid.models.plan import Plan
from fluid.parallel import sharding
from fluid.tokenizers.base import TokenSpec


class _Module(nn.Module):
  """Head, trunk and condition under one roof; see Net for what each method does.

  The parameters of trunk and condition lie at the top, so that what is trained with
  one of either has the names that the published models' own families have.
  """

  model: config.Model
  spec: TokenSpec
  text: Any
  vocab: int
  scales: Any = None

  def setup(self):
    m = self.model
    self.head = m.head.module(m, self.spec)
    self._trunk = m.trunk.module(m, self.spec)
    self._condition = m.condition.module(m, self.text, self.vocab)
    nn.share_scope(self, self._trunk)
    nn.share_scope(self, self._condition)

  def losses(self, tokens, text, text_mask, keys, train: bool, step, nats=False):
    k_order, k_head, k_drop = jax.vmap(lambda k: jax.random.split(k, 3))(keys).T
    rate = self.model.condition.drop if train else 0.0
    drop = jax.vmap(lambda k: jax.random.uniform(k) < rate)(k_drop)
    cond = self._condition(text, text_mask, drop)
    passes = self.model.order.passes if train else 1
    dropped = jax.vmap(jax.random.fold_in, (0, None))(keys, 3) if train else None
    plan, z = self.trained(tokens, cond, k_order, passes, step, dropped)
    target = plan.of_targets(rows.repeat(tokens, passes))
    own = rows.keys(k_head, passes)
    found = self.head.loss(z, target, own, train)
    if nats:  # Of a head without probabilities, a bound.
      known = hasattr(self.head, "nats")
      found["nats"] = self.head.nats(z, target, own) if known else found["loss"]
    return rows.join({**found, "mask": plan.predicted}, passes)

  def trained(self, tokens, cond, keys, passes: int, step, dropped=None):
    """The plans of so many passes an example, [B passes] rows, and their outputs.

    `dropped` are keys of dropout [B], `keys` of the order.
    """
    plan = self.model.order.plan(rows.keys(keys, passes), step, self.spec)
    x = rows.repeat(self.embed(tokens), passes)
    if dropped is not None:
      dropped = rows.keys(dropped, passes)
    return plan, self._trunk(x, plan, cond, keys=dropped)[0]

  def condition(self, text, text_mask, drop):
    return self._condition(text, text_mask, drop)

  def embed(self, tokens):
    if self.scales is not None and tokens.ndim == 2:  # Else they are latents already.
      tokens = self.scales.inputs(tokens)
    return self.head.embed(tokens)

  def start(self, cond, length):
    return self._trunk.start(cond, length)

  def run(self, tokens, plan, cond, kept, at):
    return self._trunk(self.embed(tokens), plan, cond, kept, at)

  def draw(self, z, keys, z_uncond, guidance, temperature, draw):
    return self.head.sample(
      z, keys, z_uncond=z_uncond, guidance=guidance, temperature=temperature, draw=draw
    )


@dataclasses.dataclass(frozen=True)
class Net:
  """A model without its parameters; frozen and hashable, so it can be static in jit.

  Attributes:
    model: its parts.
    tokens: token space; its kind is the head's.
    text, vocab: text encoder, and how many ids (or classes) it has.
    scales: what turns tokens of several scales into inputs, the fixed part of their
      tokenizer (latents.Latents); None where tokens are of one grid.
  """

  model: config.Model
  tokens: TokenSpec
  text: Any
  vocab: int
  scales: Any = None

  @classmethod
  def of(
    cls,
    run: config.Run,
    *,
    tokens: TokenSpec | None = None,
    vocab: int = 0,
    tokenizer: Callable[[], Any] | None = None,
    platform: str = "",
  ) -> "Net":
    """The model of a run.

    Args:
      run: tokens and vocabulary are those of its cache; where it names none, what its
        tokenizer section gives, and the largest vocabulary that it allows.
      tokens, vocab: if they are known from elsewhere.
      tokenizer: gives that of the run, which models of several scales ask for, to whom
        needs it for more (None: it is read here).
      platform: what it will run on ('tpu', 'gpu', 'cpu'; default: this machine's),
        which decides the attention kernel of 'auto'.

    Raises:
      ConfigError: the cache is missing or unfinished, or the parts do not fit.
    """
    if tokens is None and run.data.cache:
      metadata = records.read_metadata(run.data.cache)
      if "tokens" not in metadata:
        raise config.ConfigError(
          f"{run.data.cache} is unfinished; run python -m fluid.prepare again"
        )
      tokens = TokenSpec.from_dict(metadata["tokens"])
      vocab = metadata["text"]["vocab_size"]
    if tokens is None:
      tokens = run.tokenizer.make(run.data.image_size).spec
    scales = None
    if tokens.scales:
      made = tokenizer() if tokenizer else tokenizers.of(run)
      scales = (made or run.tokenizer.make(run.data.image_size)).to_latents()
    return build(
      run.model,
      tokens,
      run.text,
      vocab or run.text.vocab_size,
      platform=platform,
      scales=scales,
    )

  @property
  def module(self) -> nn.Module:
    return _Module(self.model, self.tokens, self.text, self.vocab, self.scales)

  @property
  def order(self) -> Order:
    return self.model.order

  def apply(self, params, method: str, *args) -> Any:
    """Calls a method of the module with `params`."""
    return self.module.apply({"params": params}, *args, method=method)

  def example(self, batch: int) -> dict[str, jax.Array]:
    """A batch of zeros with the right shapes and types."""
    t, n = self.tokens, self.tokens.length
    tokens = (
      jnp.zeros((batch, n), jnp.int32)
      if t.kind == "discrete"
      else jnp.zeros((batch, n, t.channels), jnp.float32)
    )
    text = jnp.zeros((batch, self.text.length), jnp.int32)
    if width := self.text.feature_width:
      text = jnp.zeros((*text.shape, width), jnp.bfloat16)
    return {
      "tokens": tokens,
      "text": text,
      "text_mask": jnp.ones((batch, self.text.length), bool),
      "id": jnp.zeros((batch,), jnp.int32),
      "mask": jnp.ones((batch,), bool),
    }

  def init(self, key: jax.Array) -> dict:
    """Float32 parameters; under an explicit mesh they are created sharded."""
    mesh = jax.sharding.get_abstract_mesh()
    # A small batch that the mesh divides; only shapes matter here.
    batch = 1 if mesh.empty else sharding.batch_parts(mesh)
    b, keys = sharding.by_rows((self.example(batch), jax.random.split(key, batch)))
    params = self.module.init(
      key, b["tokens"], b["text"], b["text_mask"], keys, True, 0, method="losses"
    )["params"]
    return self.model.trunk.initial(params)

  def loss(
    self,
    params,
    batch: dict,
    keys: jax.Array,
    *,
    train: bool,
    step=None,
    nats: bool = False,
  ) -> dict[str, jax.Array]:
    """Unreduced losses of a batch.

    Args:
      params: from `init`.
      batch: tokens [B, L] int32 or [B, L, C] float32, text [B, T] int32 (or frozen
        features [B, T, E]), text_mask [B, T] bool.
      keys: one key an example [B], so that masks, steps and noise do not depend on how
        examples are batched.
      train: drop conditions for guidance.
      step: of the training, for orders that change with it (None: evaluation).
      nats: also what coding a token takes, or a bound of it.

    Returns:
      'loss' [B, S] float32, 'mask' [B, S] (outputs that count), and of the diffusion
      head 'mse', 'vb', 't' [B, S, R], of the categorical head 'accuracy' [B, S]. In
      training, S are the outputs of all passes of the order over an example.
    """
    args = batch["tokens"], batch["text"], batch["text_mask"]
    return self.apply(params, "losses", *args, keys, train, step, nats)

  def condition(self, params, text, text_mask, drop) -> Cond:
    """Ids or features [B, T(, E)], mask [B, T], drop [B] -> what the trunk reads."""
    return self.apply(params, "condition", text, text_mask, drop)

  def embed(self, params, tokens) -> jax.Array:
    """[B, L(, C)] -> [B, L, D]."""
    return self.apply(params, "embed", tokens)

  def start(self, params, cond: Cond, length: int = 0) -> Any:
    """What passes of one condition share; see fluid.models.trunks."""
    return self.apply(params, "start", cond, length)

  def run(self, params, tokens, plan: Plan, cond: Cond, kept=None, at=None):
    """Tokens [B, L(, C)] -> trunk outputs [B, S or M, D], kept."""
    return self.apply(params, "run", tokens, plan, cond, kept, at)

  def draw(self, params, z, keys, *, z_uncond=None, guidance=1.0, temperature, draw):
    """Tokens for trunk outputs, and their log-probabilities; see fluid.models.heads.

    z [B, M, D], keys [B, M] -> [B, M(, C)], [B, M]; `guidance` of this step.
    """
    return self.apply(params, "draw", z, keys, z_uncond, guidance, temperature, draw)

  def rule(self, name: str) -> tuple[bool, str]:
    """Whether a parameter decays, and the component it counts to.

    Raises:
      ValueError: it fits no row of its parts' PARAMETERS, or more than one.
    """
    m = self.model
    rows = [r for p in (m.head, m.trunk, m.condition) for r in p.PARAMETERS]
    hits = [r[1:] for r in rows if re.fullmatch(r[0], name)]
    if len(hits) != 1:
      raise ValueError(f"parameter '{name}' fits {len(hits)} rows of PARAMETERS, not 1")
    decays, component = hits[0]
    return decays or bool(re.fullmatch(m.trunk.DECAYS, name)), component

  def matrix(self, name: str) -> tuple | None:
    """Axes of inputs and outputs of a matrix in a block; None for other parameters."""
    m = self.model
    rows = [r for p in (m.trunk, m.condition) for r in p.MATRICES]
    return next((r[1:] for r in rows if re.fullmatch(r[0], name)), None)

  def often(self, name: str) -> bool:
    """Whether a parameter is read many times for each token that is drawn."""
    return bool(re.fullmatch(self.model.head.OFTEN, name))

  def decays(self, params) -> Any:
    """Tree of bools: does weight decay apply to this parameter?"""
    names = trees.paths(params)
    return jax.tree.unflatten(
      jax.tree.structure(params), [self.rule(n)[0] for n in names]
    )


def build(
  model: config.Model,
  tokens: TokenSpec,
  text: config.Part,
  vocab: int,
  *,
  platform: str = "",
  scales: Any = None,
) -> Net:
  """The model for a token space and a text encoder; see Net.

  Raises:
    ConfigError: the parts do not fit each other.
  """
  if model.head.tokens != tokens.kind:
    raise config.ConfigError(
      f"model.head '{model.head.kind}' needs {model.head.tokens} tokens, but the "
      f"tokenizer gives {tokens.kind} ones"
    )
  if text.kind not in model.condition.texts:
    raise config.ConfigError(
      f"model.condition '{model.condition.kind}' needs config key 'text.kind' "
      f"{' or '.join(model.condition.texts)}, not '{text.kind}'"
    )
  if model.order.pattern not in model.trunk.follows:
    raise config.ConfigError(
      f"model.trunk '{model.trunk.kind}' follows orders of pattern "
      f"{' or '.join(model.trunk.follows)}, but model.order '{model.order.kind}' is "
      f"'{model.order.pattern}'"
    )
  if model.trunk.reads not in model.condition.gives:
    raise config.ConfigError(
      f"model.trunk '{model.trunk.kind}' needs the {model.trunk.reads} of a condition; "
      f"model.condition '{model.condition.kind}' has {model.condition.gives[0]} alone"
    )
  scaled = {
    f"model.head '{model.head.kind}'": model.head.scaled,
    f"model.order '{model.order.kind}'": model.order.pattern == "scales",
  }
  for part, needs in scaled.items():
    if needs != bool(tokens.scales):
      found = "of several scales" if tokens.scales else "of one grid"
      raise config.ConfigError(
        f"{part} does not fit the tokenizer, whose tokens are {found}"
      )
  trunk = model.trunk.on(platform or jax.default_backend(), model.dtype)
  return Net(dataclasses.replace(model, trunk=trunk), tokens, text, vocab, scales)
