"""What several peers are made of: attention, and MAR's diffusion head by its names."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from fluid.models.diffusion import Diffusion


def attend(q, k, v, heads: int, **kwargs):
  """[B, L, D] each -> [B, L, D]."""
  split = lambda x: x.unflatten(-1, (heads, -1)).transpose(1, 2)
  y = F.scaled_dot_product_attention(split(q), split(k), split(v), **kwargs)
  return y.transpose(1, 2).flatten(2)


class _Block(nn.Module):
  def __init__(self, w):
    super().__init__()
    self.in_ln = nn.LayerNorm(w, eps=1e-6)
    self.mlp = nn.Sequential(nn.Linear(w, w), nn.SiLU(), nn.Linear(w, w))
    self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(w, 3 * w))

  def forward(self, x, y):
    shift, scale, gate = self.adaLN_modulation(y).chunk(3, -1)
    return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class _Final(nn.Module):
  def __init__(self, w, c):
    super().__init__()
    self.norm_final = nn.LayerNorm(w, elementwise_affine=False, eps=1e-6)
    self.linear = nn.Linear(w, 2 * c)
    self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(w, 2 * w))

  def forward(self, x, y):
    shift, scale = self.adaLN_modulation(y).chunk(2, -1)
    return self.linear(self.norm_final(x) * (1 + scale) + shift)


class _Time(nn.Module):
  def __init__(self, w):
    super().__init__()
    self.mlp = nn.Sequential(nn.Linear(256, w), nn.SiLU(), nn.Linear(w, w))

  def forward(self, t):
    freqs = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    angles = t[..., None] * freqs
    return self.mlp(torch.cat([angles.cos(), angles.sin()], -1))


class _Denoiser(nn.Module):
  def __init__(self, d, w, c, depth):
    super().__init__()
    self.input_proj, self.cond_embed = nn.Linear(c, w), nn.Linear(d, w)
    self.time_embed, self.final_layer = _Time(w), _Final(w, c)
    self.res_blocks = nn.ModuleList(_Block(w) for _ in range(depth))

  def forward(self, x, t, z):
    """x [..., C], t [...], z [..., D] -> [..., 2C]."""
    y = self.time_embed(t) + self.cond_embed(z)
    x = self.input_proj(x)
    for block in self.res_blocks:
      x = block(x, y)
    return self.final_layer(x, y).float()


class DiffusionHead(nn.Module):
  """Loss and reverse process of single tokens."""

  def __init__(self, net):
    super().__init__()
    head, d, c = net.model.head, net.model.trunk.width, net.tokens.channels
    self.steps, self.draws, self.channels = head.steps, head.batch_mul, c
    self.net = _Denoiser(d, head.width or d, c, head.layers)
    self.tables = self._tables(Diffusion(head.steps))

  def _tables(self, diffusion):
    return {k: torch.tensor(v) for k, v in diffusion.tables.items()}

  def forward(self, z, target):
    """z [B, L, D], target [B, L, C] -> loss [B, L]."""
    x0 = target[:, :, None].expand(-1, -1, self.draws, -1)
    t = torch.randint(0, self.steps, x0.shape[:3])
    noise = torch.randn_like(x0)
    at = lambda name: self.tables[name][t][..., None]
    x_t = at("sqrt_bar") * x0 + at("sqrt_one_minus_bar") * noise
    out = self.net(x_t, t, z[:, :, None])
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

  def draw(self, z, options, guidance: float, noise=torch.randn):
    """z [2M, D], conditional rows first -> [M, C]; all of the head in each step."""
    steps = options.head.diffusion_steps
    tables = self._tables(Diffusion(self.steps).respace(steps, "ancestral"))
    half = len(z) // 2
    x = noise(half, self.channels)
    for i in reversed(range(steps)):
      t = torch.full((len(z),), int(tables["timestep"][i]))
      out = self.net(x.repeat(2, 1), t, z)
      c, u = out[:, : self.channels].chunk(2)
      eps, fraction = u + guidance * (c - u), out[:half, self.channels :]
      at = lambda name, i=i: tables[name][i]
      x0 = at("sqrt_recip_bar") * x - at("sqrt_recip_bar_minus_one") * eps
      x = at("mean_x0") * x0 + at("mean_xt") * x
      low, high = at("log_variance"), at("log_beta")
      log_var, added = low + (fraction + 1) / 2 * (high - low), noise(half, x.shape[1])
      if i:
        x = x + (0.5 * log_var).exp() * added * options.temperature
    return x
