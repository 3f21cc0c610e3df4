"""Makes tests/data/mask2former: a tiny random Mask2Former and what it computes.

  python tests/data/make_mask2former_fixture.py

Needs torch and transformers (made with 2.13 and 5.24), which the tests do not. The
folder holds model.safetensors (float16) and config.json as transformers writes them;
expected.npz, the outputs of its own implementation for the image in it, in float32 by
the same rounded weights; published.json, the config that transformers has for the
published size and a digest of the names and shapes it saves there.
"""

import hashlib
import json
import pathlib

import numpy as np
import torch
import transformers
from torch.nn import functional

OUT = pathlib.Path(__file__).parent / "mask2former"
# Neither size is a multiple of a patch, and no map is one of a window.
HEIGHT, WIDTH = 59, 75


def tiny() -> transformers.Mask2FormerConfig:
  """Two stages with shifted windows, one of them on a map smaller than a window."""
  backbone = transformers.SwinConfig(
    image_size=64,
    embed_dim=6,
    depths=(2, 1, 1, 2),
    num_heads=(1, 2, 3, 4),
    window_size=4,
    mlp_ratio=1.5,
    drop_path_rate=0.0,
    out_features=["stage1", "stage2", "stage3", "stage4"],
  )
  return transformers.Mask2FormerConfig(
    backbone_config=backbone,
    feature_size=32,
    hidden_dim=32,
    mask_feature_size=16,
    num_attention_heads=4,
    encoder_layers=2,
    encoder_feedforward_dim=40,
    decoder_layers=5,
    dim_feedforward=48,
    num_queries=10,
    num_labels=80,
  )


def randomize(model: torch.nn.Module) -> None:
  """Weights under which every part of the network matters to its outputs."""
  for name, p in model.named_parameters():
    noise = torch.randn_like(p)
    if "norm" in name or p.ndim == 1:
      center = 1.0 if name.endswith("weight") else 0.0
      if "sampling_offsets" in name:  # Rays of growing length, as at the start.
        center = p.detach()
      p.data = center + 0.3 * noise
    elif "relative_position_bias_table" in name or "level_embed" in name:
      p.data = noise
    elif "queries" in name:  # Large, so that attention does not make them alike.
      p.data = 3 * noise
    else:
      p.data = noise * p[0].numel() ** -0.5
  model.half().float()


def digest(model: torch.nn.Module) -> dict:
  """Of 'name shape' of all tensors that are saved, by name."""
  skip = ("criterion.empty_weight", "model.pixel_level_module.encoder.swin.layernorm")
  lines = sorted(
    f"{name} {list(t.shape)}"
    for name, t in saved_names(model).items()
    if not name.startswith(skip)
  )
  text = "\n".join(lines).encode()
  return {"tensors": len(lines), "sha256": hashlib.sha256(text).hexdigest()}


def saved_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
  """Name in a file -> tensor."""
  from transformers.core_model_loading import revert_weight_conversion

  return revert_weight_conversion(model, model.state_dict())


def main() -> None:
  torch.manual_seed(1)
  OUT.mkdir(exist_ok=True)
  model = transformers.Mask2FormerForUniversalSegmentation(tiny()).eval()
  randomize(model)
  image = torch.randn(1, HEIGHT, WIDTH, 3)
  # A blurred image: masks are blobs then, some queries' of one sign.
  image = functional.avg_pool2d(image.permute(0, 3, 1, 2), 9, 1, 4) * 9
  image = image.half().float()

  group_norm = torch.nn.GroupNorm(32, 64)
  group_norm.weight.data, group_norm.bias.data = torch.randn(2, 64)
  groups = 3 + torch.randn(2, 64, 3, 4)
  with torch.no_grad():
    maps = model.model.pixel_level_module.encoder(image).feature_maps
    out = model(image, output_hidden_states=True, output_auxiliary_logits=True)
    normed = group_norm(groups)
  channels_last = lambda x: x.movedim(1, -1).numpy()
  expected = {
    "image": channels_last(image).astype(np.float16),
    "classes": out.class_queries_logits.numpy(),
    "masks": out.masks_queries_logits.numpy(),
    "features": channels_last(out.pixel_decoder_last_hidden_state),
    "group_in": channels_last(groups),
    "group_out": channels_last(normed),
    "group_weight": group_norm.weight.detach().numpy(),
    "group_bias": group_norm.bias.detach().numpy(),
  }
  for i, x in enumerate(maps):
    expected[f"map{i}"] = channels_last(x)
  for i, x in enumerate(out.pixel_decoder_hidden_states):
    expected[f"level{i}"] = channels_last(x)
  np.savez_compressed(OUT / "expected.npz", **expected)
  report(out)
  model.half().save_pretrained(OUT)

  with torch.device("meta"):
    config = transformers.Mask2FormerConfig(num_labels=80)
    whole = transformers.Mask2FormerForUniversalSegmentation(config)
  content = {"config": json.loads(config.to_json_string()), **digest(whole)}
  content["config"].pop("label2id")
  (OUT / "published.json").write_text(json.dumps(content))
  for file in sorted(OUT.iterdir()):
    print(f"{file.name:20} {file.stat().st_size:8}")


def report(out) -> None:
  """Whether the masked attention is tried in full, and far from its threshold."""
  blocked, margin = [], []
  sizes = [x.shape[-2:] for x in out.pixel_decoder_hidden_states]
  for i, masks in enumerate(x["masks_queries_logits"] for x in out.auxiliary_logits):
    small = functional.interpolate(
      masks, sizes[i % 3], mode="bilinear", align_corners=False
    )
    blocked.append((small < 0).flatten(2).float().mean(-1))
    margin.append(float(small.abs().min() / small.abs().max()))
  print("blocked share by layer and query:\n", torch.cat(blocked).numpy().round(2))
  print("nearest to zero:", margin)


if __name__ == "__main__":
  main()
