"""What blocks of a stack have in common: their style, and what all of them read.

B batch, L image tokens, T text tokens, D width, K head width.
"""

import dataclasses
from typing import Any

from flax import struct

from fluid.models import layers

MODULATIONS = 6  # Of AdaLN: shift, scale and gate of attention, then of the MLP.


@dataclasses.dataclass(frozen=True)
class Style:
  """What blocks of one stack have in common; by default those of Fluid.

  Attributes:
    cross: a block has cross-attention, between the others.
    norm: 'layer', 'plain' (LayerNorm without affine) or 'rms'.
    epsilon: of the norms.
    post: norms come after each residual sum (BERT), and not before what is added.
    mlp: activation: 'gelu_tanh', 'gelu' (exact), or 'swiglu', which is gated.
    bias: of linear layers: 'all', 'none', or 'not_keys'.
    match: how queries meet keys: 'dot', 'layer' (a LayerNorm for each head's) or 'unit'
      (unit vectors, times a learned factor for each head).
    sharpness: factor on their products beside 1 / sqrt(K).
    modulation: AdaLN: '', 'own' (every block projects the condition's vector) or
      'shared' (all blocks have one projection, and a learned table each).
    dropout, hidden_dropout, attention_dropout, path_dropout: shares of what blocks add,
      of what their MLPs hold, of attention weights, and of examples whose block adds
      nothing, in training.
    depth: blocks over which path_dropout grows, from 0 at the first (0: all alike).
  """

  cross: bool = False
  norm: str = "layer"
  epsilon: float = 1e-6
  post: bool = False
  mlp: str = "gelu_tanh"
  bias: str = "all"
  match: str = "dot"
  sharpness: float = 1.0
  modulation: str = ""
  dropout: float = 0.0
  hidden_dropout: float = 0.0
  attention_dropout: float = 0.0
  path_dropout: float = 0.0
  depth: int = 0

  def norm_layer(self) -> layers.Norm:
    """A norm of this style."""
    return layers.Norm(
      affine=self.norm != "plain",
      epsilon=self.epsilon,
      centred=self.norm != "rms",
    )


@struct.dataclass
class Given:
  """What all blocks of a stack read beside x.

  Attributes:
    text, text_mask: [B, T, D], [B, T]: for cross-attention. x may have several rows for
      each of theirs.
    mask: [B, L], keys of self-attention that may be attended; behind a cache, those of
      all its slots. A row that may attend to none gets an output of no meaning.
    turns: (cosine, sine) [L, K/2] by which pairs of a query's and a key's channels are
      turned (rotary positions).
    vector: of AdaLN, [B, L or 1, D], or what its shared projection gave [B, 1, 6, D].
    keys: [B], of dropout (None: none).
  """

  text: Any = None
  text_mask: Any = None
  mask: Any = None
  turns: Any = None
  vector: Any = None
  keys: Any = None
