"""Gaussian diffusion of single tokens: schedule, losses, reverse process.

Model-free: every function takes the network's output. Follows Nichol and Dhariwal
(arXiv 2102.09672) as used by MAR: cosine schedule, noise prediction, variance learned
as an interpolation between its two bounds, ancestral sampling on respaced steps. Two
solvers of the probability flow ODE need fewer steps: DDIM (Song et al., arXiv
2010.02502) and the second-order multistep DPM-Solver++ (Lu et al., arXiv 2211.01095).

C token channels; x, noise and eps [..., C]; t [...], integer steps of this schedule.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fluid.parallel.sharding import explicit, spec


def cosine_betas(steps: int) -> np.ndarray:
  """Betas [steps] of the cosine schedule, capped at 0.999, float64."""
  bar = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
  return np.array(
    [min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999) for i in range(steps)]
  )


def respaced_steps(steps: int, n: int) -> np.ndarray:
  """`n` of `steps` training steps, evenly spread, first and last included."""
  stride = 1.0 if n == 1 else (steps - 1) / (n - 1)
  return np.round(np.cumsum([0.0] + [stride] * (n - 1))).astype(int)


def trailing_steps(steps: int, n: int) -> np.ndarray:
  """`n` of `steps` training steps, evenly spread, each the end of an equal span.

  The last of a solver's steps goes from the first of these to data: unlike
  `respaced_steps`, none is spent where nearly no noise is left.
  """
  return np.round(np.arange(1, n + 1) * steps / n).astype(int) - 1


_SHARES = 1 << 16  # Of probability; every step has some.


@dataclasses.dataclass(frozen=True)
class Diffusion:
  """A noise schedule; `used` names the training steps a respaced schedule keeps.

  Attributes:
    steps: length of the training schedule.
    used: ascending training steps of this schedule (empty: all).
  """

  steps: int = 1000
  used: tuple[int, ...] = ()

  def respace(self, n: int, solver: str = "ancestral") -> "Diffusion":
    """The schedule of `n` reverse steps (1 <= n <= steps), spaced as `solver` wants."""
    if not 1 <= n <= self.steps:
      raise ValueError(f"diffusion steps must be in [1, {self.steps}], not {n}")
    spaced = respaced_steps if solver == "ancestral" else trailing_steps
    return dataclasses.replace(self, used=tuple(int(i) for i in spaced(self.steps, n)))

  @functools.cached_property
  def tables(self) -> dict[str, np.ndarray]:
    """Float32 tables over this schedule's steps, computed in float64."""
    bar = np.cumprod(1 - cosine_betas(self.steps))
    used = np.array(self.used) if self.used else np.arange(self.steps)
    bar = bar[used]
    prev = np.append(1.0, bar[:-1])
    beta = 1 - bar / prev
    variance = beta * (1 - prev) / (1 - bar)
    # At the first step the posterior is a point: its log is replaced by the next one's.
    log_variance = np.log(
      np.append(variance[1:2], variance[1:]) if len(used) > 1 else beta
    )
    tables = dict(
      timestep=used,
      sqrt_bar=np.sqrt(bar),
      sqrt_one_minus_bar=np.sqrt(1 - bar),
      sqrt_recip_bar=np.sqrt(1 / bar),
      sqrt_recip_bar_minus_one=np.sqrt(1 / bar - 1),
      mean_x0=beta * np.sqrt(prev) / (1 - bar),
      mean_xt=(1 - prev) * np.sqrt(1 - beta) / (1 - bar),
      log_variance=log_variance,
      log_beta=np.log(beta),
    )
    return {k: v.astype(np.float32) for k, v in tables.items()}

  def __len__(self) -> int:
    return len(self.used) or self.steps

  def at(self, name: str, t: jax.Array) -> jax.Array:
    """Table entry at t [...] -> [..., 1], to broadcast over channels."""
    return _lookup(self.tables[name], t)[..., None]

  def noised(self, x0, t, noise):
    """q(x_t | x_0)."""
    return self.at("sqrt_bar", t) * x0 + self.at("sqrt_one_minus_bar", t) * noise

  def implied(self, eps, x_t, t, clip=0.0):
    """The x_0 that a prediction of the noise implies.

    A positive `clip` bounds it to [-clip, clip]: near pure noise it is eps times 1e4,
    and a small error of a young network would throw the chain far off.
    """
    x0 = (
      self.at("sqrt_recip_bar", t) * x_t - self.at("sqrt_recip_bar_minus_one", t) * eps
    )
    return jnp.clip(x0, -clip, clip) if clip else x0

  def posterior(self, output, x_t, t, clip=0.0):
    """Network output [..., 2C] = (eps, variance fraction) -> mean, log variance."""
    eps, fraction = jnp.split(output, 2, -1)
    x0 = self.implied(eps, x_t, t, clip)
    mean = self.at("mean_x0", t) * x0 + self.at("mean_xt", t) * x_t
    return mean, self._log_variance(fraction, t)

  def _log_variance(self, fraction, t):
    low, high = self.at("log_variance", t), self.at("log_beta", t)
    fraction = (fraction + 1) / 2  # The network's [-1, 1] spans the two bounds.
    return fraction * high + (1 - fraction) * low

  def losses(self, output, x0, t, noise):
    """Mean squared error on eps and variational bound, each [...], averaged over C.

    `output` is that for noised(x0, t, noise). The bound (bits per channel) reaches the
    variance only: its eps is held constant.
    """
    error, gap, log_var = self._gap(output, t, noise)
    mse = jnp.square(error).mean(-1)
    nll = -_discretized_log_likelihood(x0, gap, 0.5 * log_var)
    kl = self._divergence(gap, log_var, t)
    vb = jnp.where(t == 0, nll.mean(-1), kl.mean(-1)) / math.log(2)
    return mse, vb

  @functools.cached_property
  def _quantiles(self) -> np.ndarray:
    """Steps at evenly spaced shares of probability, which is even in log-SNR.

    The first step, to data, has no finite span of it: an eighth is its share.
    """
    bar, rest = (
      self.tables[f"sqrt_{k}"].astype(float) for k in ("bar", "one_minus_bar")
    )
    spans = -np.diff(2 * np.log(bar / rest))
    chances = np.append(1 / 8, 7 / 8 * spans / spans.sum())
    shares = (np.arange(_SHARES) + 0.5) / _SHARES
    return np.searchsorted(np.cumsum(chances[:-1]), shares, side="right")

  def even_in_snr(self, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Numbers u [...] of [0, 1) -> steps, even in log-SNR, and their probabilities."""
    chances = np.bincount(self._quantiles, minlength=len(self)) / _SHARES
    t = _lookup(self._quantiles, (u * _SHARES).astype(jnp.int32))
    return t, _lookup(chances.astype(np.float32), t)

  def bound(self, output, x0, t, noise):
    """A term of a bound on -log p(x_0), nats [...], summed over C.

    The sum over all t and `prior`, in expectation over the noise, bounds the density of
    x_0: differential nats, which may be negative, and mean nothing across tokenizers.
    At t = 0 the density itself stands for the bins of `losses`, which are of pixels.
    """
    _, gap, log_var = self._gap(output, t, noise)
    nll = 0.5 * (log_var + jnp.square(gap) * jnp.exp(-log_var) + math.log(2 * math.pi))
    kl = self._divergence(gap, log_var, t)
    return jnp.where((t == 0)[..., None], nll, kl).sum(-1)

  def prior(self, x0):
    """KL of q(x_T | x_0) from a standard normal, nats [...], summed over C."""
    alpha, sigma = (self.tables[f"sqrt_{k}"][-1] for k in ("bar", "one_minus_bar"))
    square = jnp.square(alpha * x0) + sigma**2
    return 0.5 * (square - 1 - 2 * math.log(sigma)).sum(-1)

  def _gap(self, output, t, noise):
    """Error of eps, true less predicted mean of the posterior, predicted log variance.

    At t = 0 the true mean is x_0 itself. The means' own difference would be rounding
    for the most part: where little noise is left they agree to three digits, and the
    bound divides by a standard deviation as small.
    """
    eps, fraction = jnp.split(output, 2, -1)
    error = noise - eps
    gap = -self.at("mean_x0", t) * self.at("sqrt_recip_bar_minus_one", t)
    gap = gap * jax.lax.stop_gradient(error)
    return error, gap, self._log_variance(fraction, t)

  def _divergence(self, gap, log_var, t):
    """KL of the true posterior from the predicted one, nats [..., C]."""
    true_log_var = self.at("log_variance", t)
    return 0.5 * (
      log_var
      - true_log_var
      + jnp.exp(true_log_var - log_var)
      + jnp.square(gap) * jnp.exp(-log_var)
      - 1
    )

  def step(self, output, x_t, t, noise, temperature=1.0, clip=0.0):
    """One ancestral step x_t -> x_{t-1}; `temperature` scales the noise added."""
    mean, log_var = self.posterior(output, x_t, t, clip)
    added = jnp.exp(0.5 * log_var) * noise * temperature
    return mean + jnp.where((t > 0)[..., None], added, 0)

  @functools.cached_property
  def ode_tables(self) -> dict[str, np.ndarray]:
    """Float32 coefficients of one solver step from each step of this schedule.

    x <- keep x + move (x_0 + curve (x_0 - x_0 of the step before)). `curve` is for the
    second order; the first step has no past and the last, to data, no finite length.
    """
    bar = np.cumprod(1 - cosine_betas(self.steps))
    bar = bar[np.array(self.used)] if self.used else bar
    alpha, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    next_alpha, next_sigma = np.append(1.0, alpha[:-1]), np.append(0.0, sigma[:-1])
    keep = next_sigma / sigma
    curve = np.zeros_like(bar)
    length = -np.diff(np.log(alpha / sigma))  # In half log-SNR, from i + 1 to i.
    curve[1:-1] = length[:-1] / (2 * length[1:])
    tables = dict(keep=keep, move=next_alpha - keep * alpha, curve=curve)
    return {k: v.astype(np.float32) for k, v in tables.items()}

  def sample(self, network, x, noise, temperature=1.0, clip=0.0, *, solver="ancestral"):
    """Runs the whole reverse process.

    Args:
      network: (x_t [..., C], i) -> [..., 2C]; i is a scalar step of this schedule, its
        training step is tables['timestep'][i].
      x: first noise [..., C].
      noise: i -> noise of that step, like x.
      temperature: scales the noise added in each step; of the solvers that add none,
        the first noise.
      clip: bound on the implied x_0 (0: none), see `implied`.
      solver: 'ancestral', 'ddim' or 'dpmpp'; the last two are deterministic given x.
    """
    if solver != "ancestral":
      return self._solve(network, x * temperature, clip, second_order=solver == "dpmpp")

    def body(x, i):
      t = jnp.full(x.shape[:-1], i)
      return self.step(network(x, i), x, t, noise(i), temperature, clip), None

    return jax.lax.scan(body, x, jnp.arange(len(self) - 1, -1, -1))[0]

  def _solve(self, network, x, clip, *, second_order: bool):
    tables = {k: jnp.asarray(v) for k, v in self.ode_tables.items()}

    def body(carry, i):
      x, before = carry
      keep, move, curve = (tables[k][i] for k in ("keep", "move", "curve"))
      eps = jnp.split(network(x, i), 2, -1)[0]
      x0 = self.implied(eps, x, jnp.full(x.shape[:-1], i), clip)
      target = x0 + curve * (x0 - before) if second_order else x0
      return (keep * x + move * target, x0), None

    steps = jnp.arange(len(self) - 1, -1, -1)
    return jax.lax.scan(body, (x, x), steps)[0][0]


def _lookup(table: np.ndarray, index: jax.Array) -> jax.Array:
  """Entries of a table at [B, ...], or at a scalar."""
  sharding = spec("batch", *[None] * (index.ndim - 1)) if index.ndim else None
  return jnp.asarray(table).at[index].get(out_sharding=sharding)


def _discretized_log_likelihood(x, gap, log_std):
  """Log-likelihood of x under a Gaussian of mean x - gap, in 256 bins of [-1, 1].

  The reference keeps this term of pixel diffusion at t = 0 for latents as well, and its
  0.5 (1 + tanh(a)), a cumulative density, is sigmoid(2 a). Where both ends of a bin lie
  above the mean they are mirrored: 1 - 1e-8 is 1 in float32, and the difference of two
  such numbers would be rounding that other meshes round otherwise.
  """
  curve = lambda u: 2 * math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)
  scale = jnp.exp(-log_std)
  upper = curve((gap + 1 / 255) * scale)
  lower = curve((gap - 1 / 255) * scale)
  high, low = (jnp.where(gap > 0, a, b) for a, b in ((-lower, upper), (-upper, lower)))
  log = lambda p: jnp.log(jnp.maximum(p, 1e-12))
  cdf = jax.nn.sigmoid
  middle = log(cdf(high) - cdf(low))
  first, last = log(cdf(upper)), log(cdf(-lower))
  return jnp.where(x < -0.999, first, jnp.where(x > 0.999, last, middle))


def timestep_features(t: jax.Array, steps: int, width: int = 256) -> jax.Array:
  """Sinusoids of training steps t [...] of so many -> [..., width].

  Cosines first, as in DiT.
  Looked up: to compute them was 6 to 12 % of a toy step.
  """
  half = width // 2
  rates = np.exp(
    np.float32(-math.log(10_000) / half) * np.arange(half, dtype=np.float32)
  )
  angles = np.arange(steps, dtype=np.float32)[:, None] * rates
  table = jnp.asarray(np.concatenate([np.cos(angles), np.sin(angles)], -1))
  where = jax.P(*jax.typeof(t).sharding.spec, None) if explicit() else None
  return table.at[t.astype(int)].get(out_sharding=where)
