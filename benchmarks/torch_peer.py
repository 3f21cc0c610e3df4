"""The same network in plain PyTorch, eager: what a first reimplementation would be.

For timing alone: same shapes, same losses, torch's fused attention and AdamW. Needs
`pip install torch`; nothing else in this project does.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from fluid.models.diffusion import Diffusion
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

  def attend(self, q, k, v, **kwargs):
    """[B, L, D] each -> [B, L, D]."""
    split = lambda x: x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
    y = F.scaled_dot_product_attention(split(q), split(k), split(v), **kwargs)
    return y.transpose(1, 2).flatten(2)

  def forward(self, x, text=None, text_mask=None, mask=None, causal=False):
    """x [B, L, D], text [B, T, D], masks [B, 1, 1, T] -> [B, L, D]."""
    q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
    x = x + self.out(self.attend(q, k, v, attn_mask=mask, is_causal=causal))
    if text is not None:
      k, v = self.kv(text).chunk(2, -1)
      y = self.attend(self.q(self.norms[2](x)), k, v, attn_mask=text_mask)
      x = x + self.out2(y)
    h = F.gelu(self.up(self.norms[1](x)), approximate="tanh")
    return x + self.down(h)


class ResBlock(nn.Module):
  """AdaLN block of the denoiser."""

  def __init__(self, w):
    super().__init__()
    self.norm = nn.LayerNorm(w, eps=1e-6)
    self.modulation = nn.Linear(w, 3 * w)
    self.up, self.down = nn.Linear(w, w), nn.Linear(w, w)

  def forward(self, x, y):
    shift, scale, gate = self.modulation(y).chunk(3, -1)
    h = self.norm(x) * (1 + scale) + shift
    return x + gate * self.down(F.silu(self.up(h)))


class Net(nn.Module):
  """The whole model of a fluid.models.Net, its training loss as forward."""

  def __init__(self, net):
    super().__init__()
    m, t, text = net.model.trunk, net.tokens, net.model.condition
    d, head = m.width, net.model.head
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
    w, c = head.width or d, t.channels
    self.tokens = nn.Linear(c, d)
    self.input, self.cond = nn.Linear(c, w), nn.Linear(d, w)
    self.time = nn.Sequential(nn.Linear(256, w), nn.SiLU(), nn.Linear(w, w))
    self.blocks = nn.ModuleList(ResBlock(w) for _ in range(head.layers))
    self.norm_out = nn.LayerNorm(w, elementwise_affine=False)
    self.modulation, self.output = nn.Linear(w, 2 * w), nn.Linear(w, 2 * c)
    tables = Diffusion(head.steps).tables
    for k, v in tables.items():
      self.register_buffer(k, torch.tensor(v))

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

  def denoise(self, x_t, t, z):
    """x_t [..., C], t [...], z [..., D] -> [..., 2C]."""
    freqs = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    angles = t[..., None] * freqs
    time = self.time(torch.cat([angles.cos(), angles.sin()], -1))
    y = F.silu(time + self.cond(z))
    x = self.input(x_t)
    for block in self.blocks:
      x = block(x, y)
    shift, scale = self.modulation(y).chunk(2, -1)
    return self.output(self.norm_out(x) * (1 + scale) + shift).float()

  def head(self, z, target):
    """z [B, L, D] -> loss [B, L]."""
    if self.net.tokens.kind == "discrete":
      logits = F.linear(z, self.tokens.weight, self.bias).float()
      return F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), reduction="none"
      ).view(target.shape)
    r = self.net.model.head.batch_mul
    x0 = target[:, :, None].expand(-1, -1, r, -1)
    t = torch.randint(0, self.net.model.head.steps, x0.shape[:3])
    noise = torch.randn_like(x0)
    at = lambda name: getattr(self, name)[t][..., None]
    x_t = at("sqrt_bar") * x0 + at("sqrt_one_minus_bar") * noise
    out = self.denoise(x_t, t, z[:, :, None])
    eps, fraction = out.chunk(2, -1)
    mse = (noise - eps).square().mean(-1)
    # The variational term: KL of two Gaussians with the learned variance.
    implied = at("sqrt_recip_bar") * x_t - at("sqrt_recip_bar_minus_one") * eps.detach()
    mean = at("mean_x0") * implied + at("mean_xt") * x_t
    true = at("mean_x0") * x0 + at("mean_xt") * x_t
    low, high = at("log_variance"), at("log_beta")
    log_var = low + (fraction + 1) / 2 * (high - low)
    kl = log_var - low + (low - log_var).exp() - 1
    kl = 0.5 * (kl + (true - mean).square() * (-log_var).exp())
    return (mse + kl.mean(-1) / math.log(2)).mean(-1)


def step(net, batch: dict, optim):
  """A call that takes one training step: AdamW, clipping, moving average."""
  model = Net(net)
  ema = [p.detach().clone() for p in model.parameters()]
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=optim.lr,
    betas=(optim.b1, optim.b2),
    weight_decay=optim.weight_decay,
    foreach=True,
  )
  half = net.model.dtype == "bfloat16"
  inputs = {k: torch.from_numpy(batch[k]) for k in ("tokens", "text", "text_mask")}
  if net.tokens.kind == "discrete":
    inputs["tokens"] = inputs["tokens"].long()
  inputs["text"] = inputs["text"].long()

  def call():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
      loss = model(**inputs)
    loss.backward()
    if optim.clip:
      nn.utils.clip_grad_norm_(model.parameters(), optim.clip)
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(ema, list(model.parameters()), 1 - optim.ema)
    return float(loss.detach())

  return call


def sample(net, batch: dict, cfg):
  """A call that draws the tokens of a batch in random order, with guidance.

  As MAR's public sampler: every step runs the trunk on all tokens, conditional and
  unconditional rows together, and the whole head, its conditioning included, on the
  tokens of the step.
  """
  model = Net(net).eval()
  t, continuous = net.tokens, net.tokens.kind == "continuous"
  left = remaining(t.length, cfg.order.steps)
  rows = len(batch["text"])
  text = torch.from_numpy(batch["text"]).long().repeat(2, 1)
  mask = torch.from_numpy(batch["text_mask"]).repeat(2, 1)
  half = net.model.dtype == "bfloat16"

  def denoised(z):  # z [2M, D] -> [M, C]
    x = torch.randn(len(z) // 2, t.channels)
    for i in reversed(range(cfg.head.diffusion_steps)):
      out = model.denoise(x.repeat(2, 1), torch.full((len(z),), i), z)
      c, u = out[:, : t.channels].chunk(2)
      eps = u + cfg.guidance * (c - u)
      x0 = model.sqrt_recip_bar[i] * x - model.sqrt_recip_bar_minus_one[i] * eps
      x = model.mean_x0[i] * x0 + model.mean_xt[i] * x
      x = x + (0.5 * model.log_variance[i]).exp() * torch.randn_like(x)
    return x

  def drawn(z):  # z [2M, D] -> [M]
    logits = F.linear(z, model.tokens.weight, model.bias).float()
    c, u = logits.chunk(2)
    return torch.multinomial((u + cfg.guidance * (c - u)).softmax(-1), 1)[:, 0]

  @torch.no_grad()
  def call():
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
      c, m = model.align(text, mask)
      shape = (rows, t.length)
      tokens = (
        torch.zeros(*shape, t.channels) if continuous else torch.zeros(shape).long()
      )
      ranks = torch.rand(shape).argsort(1).argsort(1)
      for before, after in zip(left[:-1], left[1:]):
        x = model.tokens(tokens)
        x = torch.where((ranks < before)[..., None], model.fill.to(x.dtype), x)
        z = model.through(x.repeat(2, 1, 1), c, m)
        now = (ranks < before) & (ranks >= after)
        tokens[now] = (denoised if continuous else drawn)(z[now.repeat(2, 1)])
    return tokens

  return call
