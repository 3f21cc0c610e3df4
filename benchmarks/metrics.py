"""Time of each feature network and metric per 1,000 images, against its own floor.

  python -m benchmarks.metrics [--images=16] [--size=256] [--only=Inception]

Networks have their published sizes and seeded random weights: what an image costs does
not depend on them. The floor of a network is its FLOPs at this machine's best matmul,
in float32; `reading` is decoding a PNG and resizing it, one thread, which runs beside
the network. Metrics are timed on random features of 1,000 rows.
"""

import io
import os
import pathlib
import tempfile
import time

import jax
import numpy as np
import safetensors.numpy
from absl import flags
from PIL import Image

from benchmarks import timing
from fluid import flops
from fluid.console import cli
from fluid.data import images as image_files
from fluid.evals import features
from fluid.evals.features import base, clip, dinov2, inception
from fluid.evals.metrics import METRICS, PROTOCOLS, Side

ROWS = 1000
# Layers, width, patch, side of the images.
VISION = {
  "CLIP-B32": (12, 768, 32, 224),
  "CLIP-L14-336": (24, 1024, 14, 336),
  "DINOv2-L14": (24, 1024, 14, 518),
}


def _inception() -> dict[str, tuple[int, ...]]:
  found, width = inception.convs()
  shapes: dict[str, tuple[int, ...]] = {}
  for conv, channels, _ in found:
    shapes[f"{conv.name}.conv.weight"] = (conv.width, channels, *conv.kernel)
    for part in ("weight", "bias", "running_mean", "running_var"):
      shapes[f"{conv.name}.bn.{part}"] = (conv.width,)
  return shapes | {"fc.weight": (1008, width), "fc.bias": (1008,)}


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
  return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
  return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _clip_tower(name: str, layers: int, width: int) -> dict[str, tuple[int, ...]]:
  out = {}
  for i in range(layers):
    layer = f"{name}.encoder.layers.{i}"
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
      out |= _linear(f"{layer}.self_attn.{part}", width, width)
    out |= _linear(f"{layer}.mlp.fc1", width, 4 * width)
    out |= _linear(f"{layer}.mlp.fc2", 4 * width, width)
    out |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
  return out


def _clip(layers, width, patch, side) -> dict[str, tuple[int, ...]]:
  text, joint = (512, 512) if width == 768 else (768, 768)
  positions = (side // patch) ** 2 + 1
  vision, words = "vision_model.embeddings", "text_model.embeddings"
  return {
    f"{vision}.class_embedding": (width,),
    f"{vision}.patch_embedding.weight": (width, 3, patch, patch),
    f"{vision}.position_embedding.weight": (positions, width),
    f"{words}.token_embedding.weight": (49_408, text),
    f"{words}.position_embedding.weight": (77, text),
    **_norm("vision_model.pre_layrnorm", width),
    **_norm("vision_model.post_layernorm", width),
    **_norm("text_model.final_layer_norm", text),
    **_clip_tower("vision_model", layers, width),
    **_clip_tower("text_model", 12, text),
    "visual_projection.weight": (joint, width),
    "text_projection.weight": (joint, text),
    "logit_scale": (),
  }


def _dinov2(layers, width, patch, side) -> dict[str, tuple[int, ...]]:
  start = "embeddings.patch_embeddings.projection"
  out = {
    "embeddings.cls_token": (1, 1, width),
    "embeddings.mask_token": (1, width),
    "embeddings.position_embeddings": (1, (side // patch) ** 2 + 1, width),
    f"{start}.weight": (width, 3, patch, patch),
    f"{start}.bias": (width,),
    **_norm("layernorm", width),
  }
  for i in range(layers):
    layer = f"encoder.layer.{i}"
    for part in ("query", "key", "value"):
      out |= _linear(f"{layer}.attention.attention.{part}", width, width)
    out |= _linear(f"{layer}.attention.output.dense", width, width)
    out |= _linear(f"{layer}.mlp.fc1", width, 4 * width)
    out |= _linear(f"{layer}.mlp.fc2", 4 * width, width)
    out |= _norm(f"{layer}.norm1", width) | _norm(f"{layer}.norm2", width)
    out |= {f"{layer}.layer_scale{k}.lambda1": (width,) for k in (1, 2)}
  return out


def write_weights(name: str, folder: pathlib.Path) -> None:
  """A file of a network with seeded weights, where `features.load` looks for it."""
  if name == "EffNet":
    return  # Its weights come with a package.
  if name == "Inception":
    shapes, path = _inception(), folder / next(iter(inception.FILES))
  else:
    make, models = (
      (_clip, clip.MODELS) if name in clip.MODELS else (_dinov2, dinov2.MODELS)
    )
    shapes = make(*VISION[name])
    path = folder / models[name].rpartition("/")[2] / "model.safetensors"
  rng = np.random.default_rng(0)
  path.parent.mkdir(parents=True, exist_ok=True)
  draw = lambda shape: 0.02 * rng.standard_normal(shape, np.float32)
  arrays = {
    k: np.abs(draw(v)) + 0.5 if k.endswith("running_var") else draw(v)
    for k, v in shapes.items()
  }
  if path.suffix != ".safetensors":
    path = path.with_suffix(".safetensors")
  safetensors.numpy.save_file(arrays, path)
  if name in clip.MODELS:
    (path.parent / "config.json").write_text(
      '{"vision_config": {"hidden_act": "quick_gelu"}}'
    )


def network(name: str, images: np.ndarray, peak: float) -> dict[str, float | str]:
  """Seconds per 1,000 images of a network: reading, alone, in all, and its floor."""
  path = {}
  if name == "Inception":  # The published file is torch's; ours is safetensors.
    folder = pathlib.Path(os.environ[base.FOLDER])
    path = {"path": str(next(folder.glob("*.safetensors")))}
  net = features.load(name, **path)
  files = []
  for image in images:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    files.append(file.getvalue())

  def timed(run):
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * ROWS / len(images)

  read = lambda: [net.preprocess(image_files.read(f)[None]) for f in files]
  x = net.preprocess(images[:4])
  work = flops.traced(net.apply, net.params, x) / len(x)
  features.extract(net, images[:4])  # Compiles.
  alone = timed(lambda: features.extract(net, images))
  row = {"network": net.name, "gflop_an_image": work / 1e9, "seconds": alone}
  row |= {"reading": timed(read), "floor": work * ROWS / peak}
  return row | {"share_of_peak": row["floor"] / alone}


def metrics() -> list[dict[str, float | str]]:
  """Seconds of each metric on features of 1,000 and 1,000 images."""
  rng, out = np.random.default_rng(0), []
  draw = lambda d: rng.standard_normal((ROWS, d), np.float32)
  for name, metric in METRICS.items():
    if not metric.network:
      continue
    width = {"Inception": 2048, "CLIP-L14-336": 768, "CLIP-B32": 512}
    d = width.get(metric.network, 1024)
    x, y = Side(draw(d)), Side(draw(d))
    x.texts = draw(d)
    protocol = PROTOCOLS["torch_fidelity"]
    start = time.perf_counter()
    metric.compute(x, y, protocol, 0)
    out.append({"metric": name, "seconds": time.perf_counter() - start})
  return out


def main(argv) -> None:
  """Entry point."""
  del argv
  f = flags.FLAGS
  best, work = timing.matmul("float32")
  best()
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    best()
    seconds.append(time.perf_counter() - start)
  peak = work / min(seconds)
  shape = (f.images, f.size, f.size, 3)
  images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  names = f.only or ["EffNet", "Inception", *VISION]
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    os.environ[base.FOLDER] = folder
    for name in names:
      write_weights(name, pathlib.Path(folder))
      rows.append(network(name, images, peak))
  report = {
    "device": jax.devices()[0].device_kind,
    "matmul_flops_per_s": peak,
    "images": f.images,
    "size": f.size,
    "networks": rows,
    "metrics": metrics(),
  }
  timing.write(f.json, report)


if __name__ == "__main__":
  flags.DEFINE_integer("images", 16, "Images a network is timed on.", lower_bound=4)
  flags.DEFINE_integer("size", 256, "Their side in pixels.", lower_bound=16)
  flags.DEFINE_list("only", None, "Networks.")
  flags.DEFINE_string("json", None, "Write the report to this file.")
  cli.run(main)
