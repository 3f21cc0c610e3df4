"""VQ model: discrete tokens, one codebook entry per latent.

B batch, H W image, h w latent grid, N = B h w latents, V vocabulary, C codebook width.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fluid.config import rules
from fluid.tokenizers import autoencoder, base

# A code that wins fewer than this share of its fair share of latents is dead.
DEAD = 0.05


def nearest(z, codebook):
  """Ids of the nearest codes in Euclidean distance: [N, C], [V, C] -> [N] int32.

  |z - e|^2 = |z|^2 - 2 z.e + |e|^2, the first term equal for all codes; in full float32
  also where matmuls default to less, since near ties decide the tokens.
  """
  z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
  dots = jnp.einsum("nc,vc->nv", z, codebook, precision="highest")
  return jnp.argmin(jnp.square(codebook).sum(-1) - 2 * dots, -1).astype(jnp.int32)


def straight_through(z, quantized):
  """`quantized` in value, `z` in gradient."""
  return z + jax.lax.stop_gradient(quantized - z)


def update_codebook(state, z, ids, key, decay: float):
  """Moving averages of usage and sums; dead codes move onto latents of this batch.

  Args:
    state: {'count' [V], 'sum' [V, C]}; zero counts mark a codebook not yet begun, so
      the first call places every code.
    z: latents [N, C].
    ids: their codes [N].
    key: picks the latents that revive dead codes.
    decay: of the averages.

  Returns:
    (state, codebook [V, C], number of codes that were revived).
  """
  vocab = state["count"].shape[0]
  onehot = jax.nn.one_hot(ids, vocab, dtype=jnp.float32)
  count = decay * state["count"] + (1 - decay) * onehot.sum(0)
  total = decay * state["sum"] + (1 - decay) * jnp.einsum("nv,nc->vc", onehot, z)
  fair = z.shape[0] / vocab
  dead = count < DEAD * fair
  # Without replacement where there are enough latents: no two codes start equal.
  draw = jax.random.choice(key, z.shape[0], (vocab,), replace=z.shape[0] < vocab)
  # Revived codes start well above the threshold, or they would die again at once.
  count = jnp.where(dead, fair / 2, count)
  total = jnp.where(dead[:, None], z[draw] * (fair / 2), total)
  return {"count": count, "sum": total}, total / count[:, None], dead.sum()


@dataclasses.dataclass(frozen=True)
class VQConfig(autoencoder.AutoencoderConfig):
  """A codebook entry for each latent.

  Attributes:
    vocab, cosine: codebook entries; look them up by cosine, on the unit sphere.
    commitment, codebook_decay: weight of the pull of latents to their codes, and of
      the past in the moving averages that make the codes.
  """

  kind = "vq"

  vocab: int = 512
  cosine: bool = False
  commitment: float = 0.25
  codebook_decay: float = 0.97

  def check(self, name):
    super().check(name)
    rules.positive(self, name, "vocab")

  def make(self, image_size, variables=None):
    """See base.TokenizerConfig."""
    return VQ(self, image_size, variables)


class VQ(base.Tokenizer):
  """variables: params, and codebook [V, C]."""

  def __init__(self, config: VQConfig, image_size: int, variables=None):
    super().__init__(config, image_size, variables)
    self.grid = config.grid(image_size)
    self.module = config.module()

  @property
  def spec(self) -> base.TokenSpec:
    side = self.grid
    return base.TokenSpec(
      "discrete", side * side, (side, side), vocab=self.config.vocab
    )

  def init(self, key) -> dict:
    image = jnp.zeros((1, self.image_size, self.image_size, 3))
    shape = (self.config.vocab, self.config.channels)
    return {
      "params": self.module.init(key, image)["params"],
      "codebook": jax.random.normal(jax.random.fold_in(key, 1), shape),
    }

  def latents(self, params, images):
    """[B, H, W, 3] -> [B, h, w, C], of unit length if config.cosine."""
    return self._unit(
      self.module.apply({"params": params}, images, method=self.module.encode)
    )

  def _unit(self, x):
    if not self.config.cosine:
      return x
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + 1e-12)

  def encode_with(self, variables, images):
    z = self.latents(variables["params"], images)
    ids = nearest(z.reshape(-1, z.shape[-1]), self._unit(variables["codebook"]))
    return ids.reshape(z.shape[0], -1)

  def decode_with(self, variables, tokens):
    z = self._unit(variables["codebook"])[tokens]
    z = z.reshape(tokens.shape[0], self.grid, self.grid, -1)
    return self.module.apply(
      {"params": variables["params"]}, z, method=self.module.decode
    )

  def training_state(self, variables):
    """Moving averages behind the codebook; zero counts: to be placed by data."""
    codebook = variables["codebook"]
    return {
      "codebook": codebook,
      "average": {"count": 0 * codebook[:, 0], "sum": 0 * codebook},
    }

  def loss(self, params, state, images, key):
    """-> (loss, (state, metrics)); images [B, H, W, 3] in [-1, 1]."""
    z = self.latents(params, images)
    flat = jax.lax.stop_gradient(z.reshape(-1, z.shape[-1]))
    ids = nearest(flat, self._unit(state["codebook"]))
    average, codebook, revived = update_codebook(
      state["average"], flat, ids, key, self.config.codebook_decay
    )
    ids = nearest(flat, self._unit(codebook))
    quantized = self._unit(codebook)[ids].reshape(z.shape)
    commit = jnp.square(z - quantized).mean()
    mixed = straight_through(z, quantized)
    recon = self.module.apply({"params": params}, mixed, method=self.module.decode)
    rec = autoencoder.reconstruction_loss(recon, images, self.config)
    used = jnp.zeros(self.config.vocab).at[ids].add(1.0) / ids.size
    metrics = {
      "recon": rec,
      "commitment": commit,
      "mse": jnp.square(recon - images).mean(),
      "revived": revived,
      "perplexity": jnp.exp(jax.scipy.special.entr(used).sum()),
    }
    state = {"codebook": codebook, "average": average}
    return rec + self.config.commitment * commit, (state, metrics)

  def finish(self, params, state, images: np.ndarray, batch: int) -> dict:
    return {"params": params, "codebook": state["codebook"]}


def codebook_use(ids: np.ndarray, vocab: int) -> dict[str, float]:
  """{'codebook_used': share of the codes that occur, 'perplexity': exp entropy}."""
  share = np.bincount(ids.ravel(), minlength=vocab) / ids.size
  entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
  return {
    "codebook_used": float((share > 0).mean()),
    "perplexity": float(np.exp(entropy)),
  }
