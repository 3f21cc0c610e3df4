"""The same models in plain PyTorch, eager: as a reimplementation would be.

For timing alone: same shapes and losses, torch's fused attention and AdamW, keys and
values cached and masked tokens dropped where the authors' code does so. Those of
published models have their authors' names of parameters and pass the same fixtures as
ours (tests/peers_test.py). They need `pip install torch`; nothing else here does.

A peer is a module made from a Net. Its `forward(tokens, text, text_mask)` is the
training loss, `draw(text, text_mask, options)` gives tokens [B, L(, C)].
"""

import importlib

import torch
from torch import nn

from fluid.errors import ConfigError

PEERS = {"fluid": "Fluid", "mar": "MAR", "llamagen": "LlamaGen"}  # By trunk.


def of(net) -> nn.Module:
  """The peer of a Net, with random parameters.

  Raises:
    ConfigError: its trunk has none.
  """
  kind = net.model.trunk.kind
  if kind not in PEERS:
    raise ConfigError(
      f"no PyTorch peer of trunk '{kind}'; there are {', '.join(PEERS)}"
    )
  module = importlib.import_module(f"{__name__}.{kind}")
  return getattr(module, PEERS[kind])(net)


def tensors(net, batch: dict) -> dict[str, torch.Tensor]:
  """The inputs of `forward`, of a batch of arrays."""
  inputs = {k: torch.from_numpy(batch[k]) for k in ("tokens", "text", "text_mask")}
  long = ("text", "tokens") if net.tokens.kind == "discrete" else ("text",)
  return {k: v.long() if k in long else v for k, v in inputs.items()}


def _cast(net):
  half = net.model.dtype == "bfloat16"
  return torch.autocast("cpu", torch.bfloat16, enabled=half)


def step(net, batch: dict, optim):
  """A call that takes one training step: AdamW, clipping, moving average."""
  model, inputs = of(net).train(), tensors(net, batch)
  ema = [p.detach().clone() for p in model.parameters()]
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=optim.lr,
    betas=(optim.b1, optim.b2),
    weight_decay=optim.weight_decay,
    foreach=True,
  )

  def call():
    optimizer.zero_grad(set_to_none=True)
    with _cast(net):
      loss = model(**inputs)
    loss.backward()
    if optim.clip:
      nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(ema, list(model.parameters()), 1 - optim.ema)
    return float(loss.detach())

  return call


def sample(net, batch: dict, options):
  """A call that draws the tokens of a batch, by a config.Sample."""
  model, inputs = of(net).eval(), tensors(net, batch)

  @torch.no_grad()
  def call():
    with _cast(net):
      return model.draw(inputs["text"], inputs["text_mask"], options)

  return call
