"""LlamaGen (Sun et al. 2024), class-conditional: keys and values are cached."""

import torch
from torch import nn
from torch.nn import functional as F

from fluid.models.trunks.llamagen import turns


class _Norm(nn.Module):
  def __init__(self, d, epsilon):
    super().__init__()
    self.weight, self.epsilon = nn.Parameter(torch.ones(d)), epsilon

  def forward(self, x):
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.epsilon)
    return y.type_as(x) * self.weight


def _turned(x, table):
  """x [B, L, H, K] with its pairs turned by table [2, L, K/2]."""
  pairs = x.float().unflatten(-1, (-1, 2))
  cos, sin = table[:, None, :, None]
  a, b = pairs[..., 0], pairs[..., 1]
  return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(3).type_as(x)


class _Attention(nn.Module):
  def __init__(self, m):
    super().__init__()
    self.heads, self.rate, d = m.heads, m.dropout, m.width
    self.wqkv, self.wo = (nn.Linear(d, k * d, bias=False) for k in (3, 1))
    self.drop = nn.Dropout(m.dropout)
    self.cache = None

  def forward(self, x, table, first, mask):
    q, k, v = (a.unflatten(-1, (self.heads, -1)) for a in self.wqkv(x).chunk(3, -1))
    q, k = _turned(q, table), _turned(k, table)
    q, k, v = (a.transpose(1, 2) for a in (q, k, v))
    if self.cache is not None:
      for kept, new in zip(self.cache, (k, v)):
        kept[:, :, first : first + x.shape[1]] = new
      k, v = self.cache
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return self.drop(self.wo(y.transpose(1, 2).flatten(2)))


class _FeedForward(nn.Module):
  def __init__(self, m):
    super().__init__()
    d, f = m.width, m.hidden
    self.w1, self.w3 = (nn.Linear(d, f, bias=False) for _ in range(2))
    self.w2, self.drop = nn.Linear(f, d, bias=False), nn.Dropout(m.dropout)

  def forward(self, x):
    return self.drop(self.w2(F.silu(self.w1(x)) * self.w3(x)))


class _Block(nn.Module):
  def __init__(self, m):
    super().__init__()
    self.attention, self.feed_forward = _Attention(m), _FeedForward(m)
    self.attention_norm, self.ffn_norm = (_Norm(m.width, m.epsilon) for _ in range(2))

  def forward(self, x, *args):
    x = x + self.attention(self.attention_norm(x), *args)
    return x + self.feed_forward(self.ffn_norm(x))


class _Classes(nn.Module):
  def __init__(self, classes, d):
    super().__init__()
    self.embedding_table = nn.Embedding(classes + 1, d)


class LlamaGen(nn.Module):
  """See benchmarks.peers."""

  def __init__(self, net):
    super().__init__()
    m, t = net.model.trunk, net.tokens
    d, self.length, self.classes = m.width, t.length, net.vocab
    self.rate = net.model.condition.drop
    self.tok_embeddings = nn.Embedding(t.vocab, d)
    self.cls_embedding = _Classes(net.vocab, d)
    self.tok_dropout = nn.Dropout(m.dropout)
    self.layers = nn.ModuleList(_Block(m) for _ in range(m.layers))
    self.norm, self.output = _Norm(d, m.epsilon), nn.Linear(d, t.vocab, bias=False)
    self.turns = torch.from_numpy(turns(t.grid, d // m.heads, m.theta))

  def through(self, x, first=0, mask=None):
    """Embedded slots [B, S, D] from `first` on -> logits [B, S, V]."""
    table = self.turns[:, first : first + x.shape[1]]
    for layer in self.layers:
      x = layer(x, table, first, mask)
    return self.output(self.norm(x)).float()

  def logits(self, tokens, label):
    """tokens [B, L], label [B, D] -> [B, L, V], teacher-forced."""
    x = torch.cat([label[:, None], self.tok_embeddings(tokens[:, :-1])], 1)
    return self.through(self.tok_dropout(x))

  def label(self, text, drop):
    """Class ids [B, 1], drop [B] -> [B, D]."""
    ids = torch.where(drop, self.classes, text[:, 0])
    return self.cls_embedding.embedding_table(ids)

  def forward(self, tokens, text, text_mask):
    """-> mean cross-entropy."""
    del text_mask
    label = self.label(text, torch.rand(len(text)) < self.rate)
    logits = self.logits(tokens, label)
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

  def draw(self, text, text_mask, options):
    """One token a step, conditional and unconditional rows together."""
    del text_mask
    b, n = len(text), self.length
    drop = torch.arange(2 * b) >= b
    x = self.label(text.repeat(2, 1), drop)[:, None]
    for layer in self.layers:
      heads = layer.attention.heads
      shape = (2 * b, heads, n, x.shape[-1] // heads)
      layer.attention.cache = [torch.zeros(shape, dtype=x.dtype) for _ in range(2)]
    tokens = torch.zeros(b, n, dtype=torch.long)
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    for i in range(n):
      c, u = self.through(x, i, seen[i : i + 1])[:, -1].chunk(2)
      tokens[:, i] = self.pick(u + options.guidance * (c - u), options)
      x = self.tok_embeddings(tokens[:, i].repeat(2))[:, None]
    return tokens

  def pick(self, logits, options):
    """Logits [B, V] -> [B]."""
    if not options.temperature:
      return logits.argmax(-1)
    logits = logits / options.temperature
    if k := options.head.top_k:
      least = logits.topk(k).values[:, -1:]
      logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial(logits.softmax(-1), 1)[:, 0]
