"""Writes tests/data/vision: tiny CLIP and DINOv2 models by transformers, with features.

Needs torch and transformers, which nothing else does (2.13 and 5.24 made the files):

  python tests/data/make_vision_fixtures.py

Weights are noise, so strong that every one of them is seen in the features; they are
stored in float16 and exact in it. `expected.npz` has the inputs and what comes out,
`tokens.json` prompts and their ids.
"""

import collections
import json
import pathlib
import shutil

import numpy as np
import torch
import transformers
from PIL import Image
from torch.nn import functional

FOLDER = pathlib.Path(__file__).parent / "vision"
CAPTIONS = (
  "a photo of a red apple; a photo of a green-colored bench, the photo of two dogs. "
  "it's a dog's life and they're here : an orange object left of 12 books !! two "
  "yellow-colored cats above the café , a purple café with naïve waiters , кошка кошка "
)
PROMPTS = [
  "a photo of a cat",
  "",
  "   \t two  spaces\nand a line  ",
  "It's THE dogs' life: they'll, we've, I'm, he'd, DON'T'S",
  "'sunny ''ll !'s 'S 's's",
  "12 apples, 3.14159 & 1,000,000 ①②½Ⅷ٣",
  "naïve café — «Ωmega» ÅÄÖ İstanbul ß ﬁ",
  "e\u0301 is \u00e9; a\u0308 is \u00e4",
  "猫と犬 고양이 кошка बिल्ली ไทย",
  "\U0001f600\U0001f3fd\u200d\U0001f680 emoji!!! ❤\ufe0f",
  "under_score snake_case __init__ a\u00b2 x\u02b0y",
  "no\u00a0break\u3000wide\u200bzero\u2028line\x85next\x0btab\x0cpage",
  "\x1cfile\x1dgroup\x1erecord\x1funit\x00nul",
  "<b>html</b> &amp; &lt;x&gt; {json: [1, 2]} a@b.c #tag $5 50% ~^`|\\",
  "'", "a'", "'a", "''", "a-b--c...d",
  "a photo of a green-colored orange object " * 6,
]  # fmt: skip


def randomize(model, seed):
  """Noise for every parameter: scales about 1, the rest so that it matters."""
  rng = np.random.RandomState(seed)
  for name, p in model.named_parameters():
    x = rng.standard_normal(p.shape)
    scale = p.ndim == 1 and ("weight" in name or "lambda" in name)
    if p.ndim in (2, 4) and "embed" not in name.replace("patch_embed", ""):
      x = x * 1.5 / np.sqrt(np.prod(p.shape[1:]))
    x = 1 + 0.3 * x if scale else 0.5 * x if p.ndim == 1 else x
    p.data = torch.tensor(x, dtype=torch.float32).half().float()
  return model.eval()


def save(model, folder):
  """model.safetensors in float16 and config.json."""
  model.half().save_pretrained(FOLDER / folder)
  model.float()


def images():
  """Three pictures [3, 36, 54, 3] of blocks, with some noise."""
  rng = np.random.RandomState(1)
  blocks = rng.randint(0, 256, (3, 6, 9, 3)).repeat(6, 1).repeat(6, 2)
  noise = rng.randint(-40, 40, (3, 36, 54, 3))
  return (blocks + noise).clip(0, 255).astype(np.uint8)


def pieces():
  """A vocabulary in the order of CLIP's, with the merges that CAPTIONS suggest."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  alphabet = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
  letter = dict(zip([*plain, *sorted(set(range(256)) - set(plain))], alphabet))
  words = [[letter[b] for b in w.encode()] for w in CAPTIONS.lower().split()]
  words = [[*w[:-1], w[-1] + "</w>"] for w in words]
  merges = []
  while len(merges) < 70:
    pairs = collections.Counter(p for w in words for p in zip(w, w[1:]))
    best = max(pairs, key=lambda pair: (pairs[pair], pair))
    merges.append(best)
    for word in words:
      i = 0
      while i < len(word) - 1:
        if (word[i], word[i + 1]) == best:
          word[i : i + 2] = ["".join(best)]
        i += 1
  names = alphabet + [a + "</w>" for a in alphabet] + ["".join(m) for m in merges]
  return names + ["<|startoftext|>", "<|endoftext|>"], merges


def clip(raw, out):
  names, merges = pieces()
  ids = {name: i for i, name in enumerate(names)}
  folder = FOLDER / "clip"
  folder.mkdir(parents=True)
  (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False))
  lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
  (folder / "merges.txt").write_text("\n".join(lines) + "\n")
  tokenizer = transformers.CLIPTokenizer(vocab=ids, merges=merges)
  tokens = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
  content = {"prompts": PROMPTS, "ids": tokens}
  (FOLDER / "tokens.json").write_text(json.dumps(content, indent=0))

  ends = {"bos_token_id": len(ids) - 2, "eos_token_id": len(ids) - 1}
  vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
  vision |= {"num_attention_heads": 4, "image_size": 32, "patch_size": 8}
  text = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
  text |= {"num_attention_heads": 3, "vocab_size": len(ids), **ends}
  text |= {"max_position_embeddings": 77}
  config = transformers.CLIPConfig(
    vision_config=vision, text_config=text, projection_dim=20
  )
  model = randomize(transformers.CLIPModel(config), 0)
  save(model, "clip")

  processor = transformers.CLIPImageProcessorPil(
    size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
  )
  x = processor([Image.fromarray(i) for i in raw], return_tensors="pt")
  short = [prompt for prompt in PROMPTS if len(tokenizer(prompt)["input_ids"]) <= 77]
  y = tokenizer(short, padding=True, return_tensors="pt")
  with torch.no_grad():
    pool = model.vision_model(**x).pooler_output
    out["clip_pool"] = model.visual_projection(pool)
    out["clip_texts"] = model.text_projection(model.text_model(**y).pooler_output)
    # The same weights with the exact GELU of OpenCLIP's models.
    for layer in model.vision_model.encoder.layers:
      layer.mlp.activation_fn = torch.nn.GELU()
    out["clip_gelu"] = model.visual_projection(model.vision_model(**x).pooler_output)


def dinov2(raw, out):
  sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
  sizes |= {"mlp_ratio": 2, "patch_size": 14, "image_size": 280}
  squeezed = [
    np.asarray(Image.fromarray(i).resize((224, 224), Image.Resampling.BICUBIC))
    for i in raw
  ]
  mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
  x = (torch.tensor(np.stack(squeezed)) / 255 - mean) / std
  x = x.permute(0, 3, 1, 2)
  model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
  save(randomize(model, 3), "dinov2")
  with torch.no_grad():
    # transformers leaves out the tenth of a patch that the authors' network adds.
    out["dinov2_plain"] = model(x).last_hidden_state[:, 0]
    table = model.embeddings.position_embeddings
    grid = table[:, 1:].reshape(1, 20, 20, -1).permute(0, 3, 1, 2)
    scale = float((224 // 14 + 0.1) / 20)
    grid = functional.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    table = torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], 1)
    out["dinov2_positions"] = table[0, :, :4]
    model.embeddings.position_embeddings.data = table
    out["dinov2_pool"] = model(x).last_hidden_state[:, 0]

  sizes |= {"hidden_size": 16, "num_register_tokens": 3}
  config = transformers.Dinov2WithRegistersConfig(**sizes)
  model = randomize(transformers.Dinov2WithRegistersModel(config), 4)
  save(model, "dinov2_reg")
  with torch.no_grad():
    out["dinov2_reg_pool"] = model(x).last_hidden_state[:, 0]


if __name__ == "__main__":
  shutil.rmtree(FOLDER, ignore_errors=True)
  found: dict = {"images": images()}
  clip(found["images"], found)
  dinov2(found["images"], found)
  np.savez_compressed(
    FOLDER / "expected.npz", **{k: np.asarray(v) for k, v in found.items()}
  )
