"""Fluid's own trunk, all four cells."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.layers import DiffusionHead, attend
from fluid.errors import ConfigError
from fluid.models.orders.random import remaining


class Block(nn.Module):
  """Pre-norm block: self-attention, cross-attention (if text), MLP."""

  def __init__(self, d, heads, hidden, cross):
    super().__init__()
    self.heads = heads
    self.norms = nn.ModuleList(nn.LayerNorm(d, eps=1e-6) for _ in range(2 + cross))
    self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
    if cross:
      self.q, self.kv, self.out2 = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)
    self.up, self.down = nn.Linear(d, hidden), nn.Linear(hidden, d)

  def forward(self, x, text=None, text_mask=None, mask=None, causal=False):
    """x [B, L, D], text [B, T, D], masks [B, 1, 1, T] -> [B, L, D]."""
    q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
    x = x + self.out(attend(q, k, v, self.heads, attn_mask=mask, is_causal=causal))
    if text is not None:
      k, v = self.kv(text).chunk(2, -1)
      q = self.q(self.norms[2](x))
      y = attend(q, k, v, self.heads, attn_mask=text_mask)
      x = x + self.out2(y)
    h = F.gelu(self.up(self.norms[1](x)), approximate="tanh")
    return x + self.down(h)


class Fluid(nn.Module):
  """See benchmarks.peers."""

  def __init__(self, net):
    super().__init__()
    m, t, text = net.model.trunk, net.tokens, net.model.condition
    d = m.width
    self.net, self.causal = net, net.order.kind == "raster"
    self.table = nn.Embedding(net.vocab, text.width)
    self.proj = nn.Linear(text.width, d)
    self.text_pos = nn.Parameter(0.02 * torch.randn(net.text.length, d))
    self.pos, self.pos_out = (
      nn.Parameter(0.02 * torch.randn(t.length, d)) for _ in range(2)
    )
    self.fill, self.norm_in = nn.Parameter(0.02 * torch.randn(d)), nn.LayerNorm(d)
    hidden = m.mlp_ratio * d
    self.aligner = nn.ModuleList(
      Block(d, m.heads, hidden, False) for _ in range(text.layers)
    )
    self.trunk = nn.ModuleList(Block(d, m.heads, hidden, True) for _ in range(m.layers))
    self.norm_text, self.norm = nn.LayerNorm(d), nn.LayerNorm(d)
    if t.kind == "discrete":
      self.tokens = nn.Embedding(t.vocab, d)
      self.bias = nn.Parameter(torch.zeros(t.vocab))
      return
    self.tokens = nn.Linear(t.channels, d)
    self.diffusion = DiffusionHead(net)

  def forward(self, tokens, text, text_mask):
    """-> mean loss of the predicted tokens."""
    c, mask = self.align(text, text_mask)
    x, passes = self.tokens(tokens), self.net.order.passes
    if passes > 1:  # Several masks of an image: rows that share their text.
      repeat = lambda a: a.repeat_interleave(passes, 0)
      x, c, mask, tokens = map(repeat, (x, c, mask, tokens))
    b, n = x.shape[:2]
    if self.causal:
      x = torch.cat([self.fill.to(x.dtype).expand(b, 1, -1), x[:, :-1]], 1)
      weight = torch.ones(b, n)
    else:
      count = (torch.cos(math.pi / 2 * torch.rand(b, 1)) * n).ceil().clamp(1, n)
      masked = torch.rand(b, n).argsort(1) < count
      x = torch.where(masked[..., None], self.fill.to(x.dtype), x)
      weight = masked.float()
    loss = self.head(self.through(x, c, mask), tokens)
    return (loss * weight).sum() / weight.sum()

  def align(self, text, text_mask):
    """Text [B, T], its mask [B, T] -> text [B, T, D], mask [B, 1, 1, T]."""
    mask = text_mask[:, None, None]
    c = self.proj(self.table(text)) + self.text_pos
    for block in self.aligner:
      c = block(c, mask=mask)
    return self.norm_text(c), mask

  def through(self, x, c, mask):
    """Embedded tokens [B, L, D] -> z [B, L, D]."""
    x = self.norm_in(x + self.pos)
    for block in self.trunk:
      x = block(x, text=c, text_mask=mask, causal=self.causal)
    return self.norm(x) + self.pos_out

  def head(self, z, target):
    """z [B, L, D] -> loss [B, L]."""
    if self.net.tokens.kind == "continuous":
      return self.diffusion(z, target)
    logits = self.logits(z)
    nats = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
    return nats.view(target.shape)

  def logits(self, z):
    """z [..., D] -> [..., V]."""
    return F.linear(z, self.tokens.weight, self.bias).float()

  def draw(self, text, text_mask, options):
    """In random order with guidance, as MAR's public sampler.

    Every step runs the trunk on all tokens, conditional and unconditional rows
    together, and the whole head, its conditioning included, on the tokens of the step.
    """
    if self.causal or options.guidance == 1:
      raise ConfigError("Fluid's PyTorch peer samples random order with guidance only")
    t, rows = self.net.tokens, len(text)
    continuous = t.kind == "continuous"
    c, mask = self.align(text.repeat(2, 1), text_mask.repeat(2, 1))
    shape = (rows, t.length)
    tokens = (
      torch.zeros(*shape, t.channels) if continuous else torch.zeros(shape).long()
    )
    ranks = torch.rand(shape).argsort(1).argsort(1)
    left = remaining(t.length, options.order.steps).tolist()
    for before, after in zip(left[:-1], left[1:]):
      x = self.tokens(tokens)
      x = torch.where((ranks < before)[..., None], self.fill.to(x.dtype), x)
      z = self.through(x.repeat(2, 1, 1), c, mask)
      now = (ranks < before) & (ranks >= after)
      z = z[now.repeat(2, 1)]
      if continuous:
        tokens[now] = self.diffusion.draw(z, options, options.guidance)
      else:
        cond, null = self.logits(z).chunk(2)
        logits = null + options.guidance * (cond - null)
        tokens[now] = torch.multinomial(logits.softmax(-1), 1)[:, 0]
    return tokens
