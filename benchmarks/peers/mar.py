"""MAR (Li et al. 2024): the encoder reads what is known alone, by exact counts."""

import math

import torch
from torch import nn

from benchmarks.peers.layers import DiffusionHead, attend
from fluid.models.orders.random import remaining


class _Attention(nn.Module):
  def __init__(self, d, heads, dropout):
    super().__init__()
    self.heads, self.rate = heads, dropout
    self.qkv, self.proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
    self.drop = nn.Dropout(dropout)

  def forward(self, x):
    rate = self.rate if self.training else 0.0
    y = attend(*self.qkv(x).chunk(3, -1), self.heads, dropout_p=rate)
    return self.drop(self.proj(y))


class _Mlp(nn.Module):
  def __init__(self, d, dropout):
    super().__init__()
    self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)
    self.act, self.drop = nn.GELU(), nn.Dropout(dropout)

  def forward(self, x):
    return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class _Block(nn.Module):
  def __init__(self, d, heads, dropout):
    super().__init__()
    self.norm1, self.norm2 = (nn.LayerNorm(d, eps=1e-6) for _ in range(2))
    self.attn, self.mlp = _Attention(d, heads, dropout), _Mlp(d, dropout)

  def forward(self, x):
    x = x + self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


class MAR(nn.Module):
  """See benchmarks.peers."""

  def __init__(self, net):
    super().__init__()
    m, n, c = net.model.trunk, net.tokens.length, net.tokens.channels
    d, self.buffer, self.length, self.channels = m.width, m.buffer, n, c
    self.order, self.rate = net.model.order, net.model.condition.drop
    table = lambda *shape: nn.Parameter(0.02 * torch.randn(*shape))
    self.class_emb, self.fake_latent = nn.Embedding(net.vocab, d), table(1, d)
    self.z_proj, self.z_proj_ln = nn.Linear(c, d), nn.LayerNorm(d, eps=1e-6)
    self.encoder_pos_embed_learned = table(1, m.buffer + n, d)
    self.decoder_pos_embed_learned = table(1, m.buffer + n, d)
    self.diffusion_pos_embed_learned = table(1, n, d)
    self.mask_token, self.decoder_embed = table(1, 1, d), nn.Linear(d, d)
    block = lambda: _Block(d, m.heads, m.dropout)
    self.encoder_blocks = nn.ModuleList(block() for _ in range(m.layers))
    self.decoder_blocks = nn.ModuleList(block() for _ in range(m.decoder_layers))
    self.encoder_norm, self.decoder_norm = (nn.LayerNorm(d, eps=1e-6) for _ in range(2))
    self.diffloss = DiffusionHead(net)

  def backbone(self, tokens, label, masked):
    """tokens [B, L, C], label [B, D], masked [B, L], the same number of each row ->
    [B, L, D]."""
    b, d = label.shape
    buffer = label[:, None].expand(-1, self.buffer, -1)
    x = torch.cat([buffer, self.z_proj(tokens)], 1) + self.encoder_pos_embed_learned
    known = torch.cat([masked.new_ones(b, self.buffer), ~masked], 1)
    x = self.z_proj_ln(x)[known].view(b, -1, d)
    for block in self.encoder_blocks:
      x = block(x)
    x = self.decoder_embed(self.encoder_norm(x))
    full = self.mask_token.to(x.dtype).repeat(b, known.shape[1], 1)
    full[known] = x.flatten(0, 1)
    x = full + self.decoder_pos_embed_learned
    for block in self.decoder_blocks:
      x = block(x)
    return self.decoder_norm(x)[:, self.buffer :] + self.diffusion_pos_embed_learned

  def forward(self, tokens, text, text_mask):
    """-> mean loss of the predicted tokens; one count of them for the batch."""
    del text_mask
    label, b = self.class_emb(text[:, 0]), len(text)
    drop = torch.rand(b, 1) < self.rate
    label = torch.where(drop, self.fake_latent.to(label.dtype), label)
    rate = nn.init.trunc_normal_(torch.empty(()), 1, 0.25, self.order.mask_min, 1)
    ranks = torch.rand(b, self.length).argsort(1)
    masked = ranks < math.ceil(self.length * float(rate))
    loss = self.diffloss(self.backbone(tokens, label, masked), tokens)
    return loss[masked].mean()

  def draw(self, text, text_mask, options, orders=None, noise=torch.randn):
    """Random order by the cosine schedule; guidance grows with what is decoded."""
    del text_mask
    b, n = len(text), self.length
    label = torch.cat([self.class_emb(text[:, 0]), self.fake_latent.expand(b, -1)])
    orders = torch.rand(b, n).argsort(1) if orders is None else orders
    ranks = orders.argsort(1)
    tokens = torch.zeros(b, n, self.channels)
    left = remaining(n, options.order.steps).tolist()
    for before, after in zip(left[:-1], left[1:]):
      masked, now = ranks < before, (ranks < before) & (ranks >= after)
      z = self.backbone(tokens.repeat(2, 1, 1), label, masked.repeat(2, 1))
      grown = 1 + (options.guidance - 1) * (n - max(after, 1)) / n
      tokens[now] = self.diffloss.draw(z[now.repeat(2, 1)], options, grown, noise)
    return tokens
