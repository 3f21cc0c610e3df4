"""Class labels: a learned vector for each class, and one for none.

B batch, D model width.
"""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from fluid import config
from fluid.models import layers
from fluid.models.conditions.base import Cond, Condition
from fluid.parallel.sharding import spec


@dataclasses.dataclass(frozen=True)
class ClassConfig(Condition):
  """The class of an image, as one token and as a vector.

  Attributes:
    null: there is a vector for no class; without one there is no guidance.
  """

  kind = "class"
  texts = ("classes",)
  gives = ("tokens", "vector")
  PARAMETERS = ((r"label/w", False, "embeddings"),)

  null: bool = True

  def check(self, name):
    super().check(name)
    if self.drop and not self.null:
      raise config.ConfigError(
        f"config key '{name}drop' is {self.drop}, but there is no null class to train "
        f"('{name}null'); set it to 0"
      )

  def module(self, model: config.Model, text: config.Part, vocab: int) -> nn.Module:
    """See fluid.models.conditions."""
    del text
    return ClassCondition(self, model, vocab)


class ClassCondition(nn.Module):
  """Row `classes` of the table is the null class."""

  cfg: ClassConfig
  model: config.Model
  classes: int

  def setup(self):
    shape = (self.classes + self.cfg.null, self.model.trunk.width)
    self.label = layers.Table(shape, (None, "embed"))

  def __call__(self, ids, mask, drop):
    """Class ids [B, 1], mask [B, 1], drop [B] -> Cond."""
    ids = jnp.where(drop[:, None], self.classes, ids)
    tokens = self.label().at[ids].get(out_sharding=spec("batch", None, None))
    tokens = tokens.astype(self.model.dtype)
    return Cond(tokens, mask, tokens[:, 0])
