"""Attention: one function, and under it the kernel that suits the platform.

B batch, L queries, T keys, H heads, K head width.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fluid.parallel import sharding

KERNELS = ("auto", "xla", "splash", "cudnn")
_BLOCK = 128  # Splash works on blocks of a lane's width.


def choose(kernel: str, platform: str, width: int, dtype: str) -> str:
  """The kernel that 'auto' stands for: splash on TPU, cuDNN on GPU, else XLA's.

  cuDNN takes half precision and head widths up to 128 in steps of 8.
  """
  if kernel != "auto":
    return kernel
  if platform in ("gpu", "cuda", "rocm"):
    fits = dtype == "bfloat16" and width <= 128 and width % 8 == 0
    return "cudnn" if fits and platform != "rocm" else "xla"
  return "splash" if platform == "tpu" else "xla"


def attention(
  q, k, v, *, mask=None, causal=False, kernel="xla", drop=None
) -> jax.Array:
  """softmax(q k' / sqrt(K)) v with the softmax in float32.

  Args:
    q: [B, L, H, K].
    k, v: [B, T, H, K].
    mask: [B or 1, T], the keys that may be attended (None: all). Every row has one.
    causal: query i sees the keys up to i (L = T); or sizes of blocks, which see
      themselves and those before.
    kernel: 'xla', or 'splash' or 'cudnn', which never write the [L, T] scores to
      memory. Splash leaves what is shorter than a block of its own to XLA, such as
      the few queries of a decoding step.
    drop: (keys [B], share) of attention weights that are dropped; by XLA alone.

  Returns:
    [B, L, H, K].
  """
  if drop is not None:
    return _per_device(_dropped, q, k, v, mask, causal, drop)
  if kernel == "splash" and min(q.shape[1], k.shape[1]) >= _BLOCK:
    return _per_device(_splash, q, k, v, mask, causal)
  if kernel == "cudnn" and q.shape[1] > 1:
    return _per_device(_cudnn, q, k, v, mask, causal)
  if sharding.explicit():
    return _per_device(_xla, q, k, v, mask, causal)
  return _xla(q, k, v, mask, causal)  # The compiler shards it.


def attend_cached(q, k, v, mask) -> jax.Array:
  """Attention of few queries q [B, M, H, K] to a cache k, v [B, H, S, K].

  Softmax in float32; mask [B|1, M|1, S], True to attend. -> [B, M, H, K].
  """
  scores = jnp.einsum("bqhk,bhsk->bhqs", q, k, preferred_element_type=jnp.float32)
  scores = jnp.where(mask[:, None], scores * q.shape[-1] ** -0.5, -1e30)
  share = jax.nn.softmax(scores).astype(v.dtype)
  y = jnp.einsum("bhqs,bhsk->bqhk", share, v, preferred_element_type=jnp.float32)
  return y.astype(q.dtype)


def _per_device(kernel, q, k, v, mask, causal, drop=None):
  """Runs a kernel on each device's examples and heads: it knows of no mesh."""
  heads = ("batch", None, "heads", None)
  args, axes = {"q": q, "k": k, "v": v}, {"q": heads, "k": heads, "v": heads}
  more = {}
  if mask is not None:
    args["mask"], axes["mask"] = jnp.broadcast_to(mask, k.shape[:2]), ("batch", None)
  if drop is not None:
    args["keys"], axes["keys"] = jax.random.key_data(drop[0]), ("batch", None)
    args["head"], axes["head"] = _spread(jnp.arange(q.shape[2]), "heads"), ("heads",)
    more = {"rate": drop[1]}

  def run(*values):
    given = {"mask": None} | dict(zip(args, values))
    return kernel(causal=causal, **given, **more)

  if not jax.sharding.get_abstract_mesh().empty:
    run = sharding.per_device(run, tuple(axes.values()), heads)
  return run(*args.values())


def _spread(x, *axes):
  where = sharding.spec(*axes)
  return x if where is None else jax.reshard(x, where)


def block_mask(sizes: tuple[int, ...]) -> np.ndarray:
  """[L, L], True where a query sees a key: that of its own block or one before."""
  of = np.repeat(np.arange(len(sizes)), sizes)
  return of[:, None] >= of


def _xla(q, k, v, mask, causal, implementation="xla"):
  mask = None if mask is None else mask[:, None, None]
  if not isinstance(causal, bool):
    blocks = block_mask(causal)[None, None]
    mask, causal = blocks if mask is None else blocks & mask, False
  if mask is not None and implementation == "cudnn":
    mask = jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
  return jax.nn.dot_product_attention(
    q, k, v, mask=mask, is_causal=causal, implementation=implementation
  )


def _dropped(q, k, v, mask, causal, keys, head, rate):
  scores = jnp.einsum("bqhk,bshk->bhqs", q, k, preferred_element_type=jnp.float32)
  seen = jnp.ones((1, 1, *scores.shape[2:]), bool)
  if causal is not False:
    sizes = (1,) * k.shape[1] if causal is True else causal
    seen = seen & block_mask(sizes)
  if mask is not None:
    seen = seen & mask[:, None, None]
  share = jax.nn.softmax(jnp.where(seen, scores * q.shape[-1] ** -0.5, -1e30))
  fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
  keys = fold(jax.random.wrap_key_data(keys), head)  # Of an example and a head: [B, H].
  keep = jax.vmap(
    jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, scores.shape[2:]))
  )(keys)
  share = jnp.where(keep, share / (1 - rate), 0).astype(v.dtype)
  y = jnp.einsum("bhqs,bshk->bqhk", share, v, preferred_element_type=jnp.float32)
  return y.astype(q.dtype)


def _padded(q, k, v, mask, causal, multiple):
  """The arguments with L and T multiples; what is added is seen by no real query."""
  more, keys = -q.shape[1] % multiple, -k.shape[1] % multiple
  if not more and not keys:
    return q, k, v, mask, causal
  if causal is False and mask is None:
    mask = jnp.ones(k.shape[:2], bool)
  longer = lambda x, by: jnp.pad(x, [(0, 0), (0, by)] + [(0, 0)] * (x.ndim - 2))
  q, k, v = longer(q, more), longer(k, keys), longer(v, keys)
  mask = None if mask is None else longer(mask, keys)
  # Of causal attention the new keys come last.
  return q, k, v, mask, causal if isinstance(causal, bool) else (*causal, more)


def _splash(q, k, v, mask, causal, *, interpret=False):
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
  )
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
  )

  length = q.shape[1]
  q, k, v, mask, causal = _padded(q, k, v, mask, causal, _BLOCK)
  n, t, heads, width = q.shape[1], k.shape[1], q.shape[2], q.shape[3]
  if isinstance(causal, bool):
    allowed = masks.CausalMask((n, t)) if causal else masks.FullMask((n, t))
  else:
    allowed = masks.NumpyMask(block_mask(causal))
  # One block a head where it fits the chip's vector memory; 512 is known to.
  a, b = (next(s for s in (512, 384, 256, _BLOCK) if x % s == 0) for x in (n, t))
  run = splash.make_splash_mha(
    masks.MultiHeadMask([allowed] * heads),
    block_sizes=splash.BlockSizes(
      block_q=a,
      block_kv=b,
      block_kv_compute=b,
      block_q_dkv=a,
      block_kv_dkv=b,
      block_kv_dkv_compute=b,
      block_q_dq=a,
      block_kv_dq=b,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )

  def one(q, k, v, mask):
    ids = None
    if mask is not None:
      ids = splash.SegmentIds(jnp.ones((n,), jnp.int32), mask.astype(jnp.int32))
    heads_first = (a.swapaxes(0, 1) for a in (q * width**-0.5, k, v))
    return run(*heads_first, segment_ids=ids).swapaxes(0, 1)

  return jax.vmap(one)(q, k, v, mask)[:, :length]


def _cudnn(q, k, v, mask, causal):
  # A mask becomes a bias there, of the scores' own L and T, both even.
  length = q.shape[1]
  if mask is not None or not isinstance(causal, bool):
    q, k, v, mask, causal = _padded(q, k, v, mask, causal, 2)
  return _xla(q, k, v, mask, causal, implementation="cudnn")[:, :length]
