"""Trains config.tokenizer on the images of config.data.source, on all devices.

  python -m fluid.tokenizers.train --config=configs/toy.py:tokens=continuous

writes config.json, weights.safetensors, metrics.jsonl, recon.png and at last done.json
to config.tokenizer.path; a folder that is done is left as it is. SIGTERM saves what
training carries (as does every fifth minute) and ends with 75; the same command goes on
from there and comes to the same weights. Several processes (--coordinator, --processes,
--process, as of fluid.train) share each batch, which has to divide by their devices;
one process takes as many of its devices as divide it. The losses are those of
reconstruction only: without a perceptual or adversarial term, textures finer than the
latent come out smooth.

B batch, H W image.
"""

import io
import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from PIL import Image

from fluid import config as config_lib
from fluid import data, files, remote, rng, tokenizers
from fluid.config.identity import differences, digest, identity, of_tokenizer
from fluid.console import cli
from fluid.console.progress import clock
from fluid.parallel import distributed, sharding
from fluid.parallel.preemption import Preempted, Preemption
from fluid.tokenizers import store, vq

CACHE_BYTES = 512 * 2**20
SAVE_SECONDS = 300  # Between two saves of a training.
SAMPLE = 2048  # Images that latent scale and validation are measured on, at most.


class Images:
  """Random access to the uint8 images of a source [H, W, 3], kept where they fit."""

  def __init__(self, source, limit: int = 0):
    self.size = min(limit or len(source), len(source))
    self._read = data.Images(source, range(self.size))
    shape = np.shape(self._read[0])
    fits = self.size * int(np.prod(shape)) <= CACHE_BYTES
    self._kept = np.zeros((self.size, *shape), np.uint8) if fits else None
    self._seen = np.zeros(self.size, bool)

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> np.ndarray:
    if self._kept is None:
      return self._read[index]
    if not self._seen[index]:
      self._kept[index] = self._read[index]
      self._seen[index] = True
    return self._kept[index]

  def some(self, count: int) -> np.ndarray:
    """[N, H, W, 3] in [-1, 1], from all over it: its first may be of one class."""
    count = min(count, len(self))
    return to_float(np.stack([self[i * len(self) // count] for i in range(count)]))

  def batches(self, batch: int, seed: int, start: int = 0, rows: Any = slice(None)):
    """Endless shuffled uint8 batches [B, H, W, 3], read ahead by threads.

    Args:
      start: batches to leave out.
      rows: of each batch, where others read the rest.
    """
    order = grain.MapDataset.range(len(self)).shuffle(seed).repeat().batch(batch)
    order = order[start:] if start else order
    order = order.map(lambda which: np.stack([self[int(i)] for i in which[rows]]))
    return iter(order.to_iter_dataset(grain.ReadOptions(num_threads=2)))


def to_float(images):
  """uint8 -> float32 in [-1, 1]."""
  return images.astype(np.float32) / 127.5 - 1


def psnr(images: np.ndarray, recon: np.ndarray) -> float:
  """Mean over images of the peak signal-to-noise ratio in dB; [N, H, W, 3] each."""
  mse = np.square(images - recon).mean((1, 2, 3), dtype=np.float64)
  return float((10 * np.log10(4 / np.maximum(mse, 1e-10))).mean())


def mesh_of(batch: int) -> jax.sharding.Mesh | None:
  """Devices that share a batch, of all processes; None where it is one.

  Raises:
    ConfigError: there are several processes, and their devices do not divide it.
  """
  devices = jax.devices()
  if jax.process_count() == 1:
    devices = devices[: math.gcd(batch, len(devices))]
  if batch % len(devices):
    raise config_lib.ConfigError(
      f"config key 'tokenizer.batch' ({batch}) must be a multiple of {len(devices)}, "
      "the devices of all processes"
    )
  if len(devices) == 1:
    return None
  names = ("slice", "data", "fsdp", "model")
  grid = np.array(devices).reshape(1, -1, 1, 1)
  # The compiler splits convolutions; types that speak of shards would ask us to.
  return jax.sharding.Mesh(grid, names, axis_types=(AxisType.Auto,) * 4)


def _copies(tree: Any, mesh: jax.sharding.Mesh) -> Any:
  """Arrays of this process, equal on all -> the same on every device."""
  where = jax.NamedSharding(mesh, P())

  def spread(x):
    host = np.asarray(x)
    # A copy for each device: what is donated must not be shared.
    return jax.make_array_from_callback(host.shape, where, lambda i: np.array(host[i]))

  return jax.tree.map(spread, tree)


def make_step(
  tokenizer: tokenizers.Tokenizer,
  tx: optax.GradientTransformation,
  mesh: jax.sharding.Mesh | None = None,
):
  """-> step(carry, images uint8, key) -> (carry, metrics), jitted; see `fit`."""
  decay = tokenizer.config.ema

  def step(carry, images, key):
    params, ema, opt_state, state, count = carry
    (loss, (state, metrics)), grads = jax.value_and_grad(tokenizer.loss, has_aux=True)(
      params, state, to_float(images), jax.random.fold_in(key, count)
    )
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    # Early averages forget faster, or the random start would stay in them.
    d = jnp.minimum(decay, (1 + count) / (10 + count))
    ema = jax.tree.map(lambda e, p: d * e + (1 - d) * p, ema, params)
    return (params, ema, opt_state, state, count + 1), metrics | {"loss": loss}

  where = jax.NamedSharding(mesh, P()) if mesh else None
  return jax.jit(step, donate_argnums=0, out_shardings=where)


def fit(
  config: tokenizers.TokenizerConfig,
  image_size: int,
  batches,
  seed: int,
  report=None,
  restore=lambda carry: None,
  after=lambda step, carry: None,
  mesh: jax.sharding.Mesh | None = None,
):
  """Trains; -> (tokenizer without weights, params, training state).

  Args:
    batches: iterator of uint8 [B, H, W, 3], or what makes one: first step -> iterator.
    report: called as report(step, metrics) after each step; metrics are arrays that
      may not be ready yet.
    restore: what training carries at the start -> what it goes on from, or None.
    after: called with what it carries after each step.
    mesh: devices that share each batch; batches are of this process's rows.
  """
  tokenizer = config.make(image_size)
  # The other generator compiles many times faster where every layer draws its weights.
  bits = jax.random.bits(rng.stream(seed, "tokenizer/init"))
  variables = jax.jit(tokenizer.init)(jax.random.key(bits, impl="rbg"))
  warmup = min(config.warmup, config.steps // 2)
  schedule = optax.warmup_cosine_decay_schedule(0, config.lr, warmup, config.steps)
  tx = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=1e-4)
  )
  step = make_step(tokenizer, tx, mesh)
  params = variables["params"]
  state = tokenizer.training_state(variables)
  ema = jax.tree.map(jnp.copy, params)  # Donated beside params: not the same buffers.
  carry = (params, ema, tx.init(params), state, jnp.zeros((), jnp.int32))
  key = rng.stream(seed, "tokenizer/step")
  found = restore(carry)
  carry = carry if found is None else found
  start = int(carry[-1])
  batches = batches(start) if callable(batches) else batches
  if mesh:
    carry = _copies(carry, mesh)
  for i in range(start + 1, config.steps + 1):
    images = next(batches)
    if mesh:
      images = sharding.shard_batch({"image": images}, mesh, config.batch)["image"]
    carry, metrics = step(carry, images, key)
    if report:
      report(i, metrics)
    after(i, carry)
  _, ema, _, state, _ = carry
  if mesh:  # As of one device: what is done with it now is this process's own.
    ema, state = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), (ema, state))
  return tokenizer, ema, state


class Progress:
  """metrics.jsonl, and a line on the terminal with what is left; of process 0."""

  def __init__(self, path: str, steps: int, every: int):
    first = jax.process_index() == 0
    self.file = open(path, "a+", encoding="utf-8") if first else io.StringIO()
    self.steps, self.every, self.start, self.first = steps, every, time.time(), 0

  def begin(self, step: int) -> None:
    """Goes on after a step: drops lines beyond it."""
    self.file.seek(0)
    lines = [x for x in self.file if x.endswith("\n") and json.loads(x)["step"] <= step]
    self.file.truncate(0)
    self.file.writelines(lines)
    self.file.flush()
    self.start, self.first = time.time(), step

  def __call__(self, step: int, metrics: dict[str, Any]) -> None:
    if step % self.every and step != self.steps:
      return
    values = {k: float(v) for k, v in metrics.items()}
    if not np.isfinite(values["loss"]):
      raise cli.UserError(
        f"tokenizer loss is {values['loss']} at step {step}: lower tokenizer.lr"
      )
    self.write(step, {f"train/{k}": v for k, v in values.items()})
    rate = (step - self.first) / (time.time() - self.start)
    noise = 10 * np.log10(4 / max(values["mse"], 1e-10))
    extra = f"perplexity {values['perplexity']:.0f} " if "perplexity" in values else ""
    distributed.say(
      f"tokenizer {step}/{self.steps} loss {values['loss']:.4f} psnr {noise:.2f} "
      f"{extra}{rate:.1f} steps/s ETA {clock((self.steps - step) / rate)}"
    )

  def write(self, step: int, values: dict[str, Any]) -> None:
    line = {"step": step, "time": time.time()} | values
    self.file.write(json.dumps(line) + "\n")
    self.file.flush()


def evaluate(tokenizer: tokenizers.Tokenizer, images: np.ndarray):
  """-> (metrics, reconstructions [N, H, W, 3]) of images [N, H, W, 3] in [-1, 1]."""
  batch = min(tokenizer.config.batch, len(images))
  tokens = tokenizers.in_batches(tokenizer.encode, images, batch)
  recon = tokenizers.in_batches(tokenizer.decode, tokens, batch)
  metrics = {"val/psnr": psnr(images, recon), "val/images": len(images)}
  if tokenizer.spec.kind == "discrete":
    use = vq.codebook_use(tokens, tokenizer.spec.vocab)
    metrics |= {f"val/{k}": v for k, v in use.items()}
  else:
    mean, std = tokenizers.in_batches(tokenizer.moments, images, batch)
    metrics |= {
      "val/token_std": float(np.sqrt(mean.var() + np.square(std).mean())),
      "val/posterior_std": float(std.mean()),
    }
  return metrics, recon


def save_pairs(path: str, images: np.ndarray, recon: np.ndarray) -> None:
  """PNG of originals above their reconstructions; [N, H, W, 3] in [-1, 1] each."""
  grid = np.concatenate([np.concatenate(list(x), 1) for x in (images, recon)], 0)
  pixels = np.uint8(np.rint((np.clip(grid, -1, 1) + 1) * 127.5))
  zoom = max(1, 96 // images.shape[1])
  picture = Image.fromarray(pixels.repeat(zoom, 0).repeat(zoom, 1))
  with files.replacing(path) as scratch:
    picture.save(scratch, format="png")


def train(
  run: config_lib.Run, stop: Callable[[], bool] = lambda: False
) -> tokenizers.Tokenizer:
  """Trains and writes config.tokenizer.path, or loads it where that is done.

  A folder in a bucket is written on this host, and uploaded where training is saved.

  Args:
    stop: whether to save and leave, asked after each step; all processes get one
      answer.

  Raises:
    Preempted: it left; the same call goes on.
  """
  if not run.tokenizer.path:
    raise config_lib.ConfigError(
      "config key 'tokenizer.path' is empty: name the folder to write"
    )
  with remote.Mirror(run.tokenizer.path) as mirror:
    return _train(run, mirror, stop)


def _train(
  run: config_lib.Run, mirror: remote.Mirror, stop: Callable[[], bool]
) -> tokenizers.Tokenizer:
  config, path = run.tokenizer, str(mirror.path)
  done = os.path.join(path, "done.json")
  if distributed.of_first("done" if os.path.exists(done) else ""):
    return _existing(run, path)
  config.make(run.data.image_size)  # Refuses a bad config before the work.
  os.makedirs(path, exist_ok=True)
  mesh = mesh_of(config.batch)
  rows = sharding.local_rows(config.batch, mesh) if mesh else slice(None)
  images = Images(data.make_source(run.data, "train"), run.data.num_train)
  start = time.time()
  progress = Progress(
    os.path.join(path, "metrics.jsonl"), config.steps, max(1, config.steps // 20)
  )
  made_from = digest(of_tokenizer(run) | {"seed": run.seed})
  saved = time.monotonic()

  def restore(carry):
    found = store.read_training(path, carry, made_from)
    step = 0 if found is None else int(found[-1])
    there = distributed.of_first(str(step))
    if not distributed.everyone(there == str(step)):
      raise config_lib.ConfigError(
        f"{path} is not the same folder for all processes: {store.TRAINING} in it is "
        f"of step {there} for process 0, and of another one for others"
      )
    if step:
      distributed.say(f"tokenizer goes on after step {step} of {config.steps}")
    progress.begin(step)
    return found

  def save(carry):
    store.save_training(path, carry, made_from)
    mirror.push()

  def after(step, carry):
    nonlocal saved
    leaves = stop() and step < config.steps
    if leaves:  # None leaves before it is saved: one that is gone ends the others.
      distributed.first(lambda: save(carry))
    elif jax.process_index() == 0 and time.monotonic() - saved > SAVE_SECONDS:
      save(carry)
      saved = time.monotonic()
    if leaves:
      raise Preempted(
        f"after step {step} of {config.steps} of the tokenizer, which is saved; the "
        "same command goes on from there"
      )

  tokenizer, params, state = fit(
    config,
    run.data.image_size,
    lambda start: images.batches(config.batch, run.seed, start, rows),
    run.seed,
    progress,
    restore,
    after,
    mesh,
  )

  def finish():
    nonlocal tokenizer
    sample = images.some(SAMPLE)
    variables = tokenizer.finish(params, state, sample, min(config.batch, len(sample)))
    tokenizer = config.make(run.data.image_size, variables)
    source = data.make_source(run.data, "val")
    held_out = Images(source, run.data.num_val).some(SAMPLE)
    metrics, recon = evaluate(tokenizer, held_out)
    metrics["seconds"] = time.time() - start
    progress.write(config.steps, metrics)
    save_pairs(os.path.join(path, "recon.png"), held_out[:12], recon[:12])
    store.save(path, tokenizer, metrics)
    files.write_json(done, {"step": config.steps} | metrics)
    mirror.push()
    mirror.remove(store.TRAINING)
    print(_summary(run.tokenizer.path, metrics), flush=True)

  distributed.first(finish)
  if jax.process_index() == 0:
    return tokenizer
  mirror.pull(lambda name: True)
  return tokenizers.load(path)


def _existing(run: config_lib.Run, path: str) -> tokenizers.Tokenizer:
  tokenizer = tokenizers.load(path)
  there = identity(tokenizer.config, "tokenizer.")
  there["data.image_size"] = tokenizer.image_size
  wanted = identity(run.tokenizer, "tokenizer.")
  wanted["data.image_size"] = run.data.image_size
  for name in differences(there, wanted):
    raise config_lib.ConfigError(
      f"{path} holds a tokenizer with {name} = {there.get(name)}, not "
      f"{wanted.get(name)}: choose another tokenizer.path or remove the folder"
    )
  distributed.say(f"{run.tokenizer.path} is done already")
  return tokenizer


def _summary(path: str, metrics: dict[str, Any]) -> str:
  values = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
  return f"{path}: {values}"


CONFIG = cli.config_flag()


def main(argv):
  del argv
  distributed.join_by_flags()
  with Preemption() as preemption:
    train(cli.read(CONFIG, buckets=True), preemption.reached)


if __name__ == "__main__":
  distributed.define_flags()
  cli.run(main)
