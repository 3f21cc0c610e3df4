"""Orders: which tokens are seen, which are predicted, and in what sequence.

An order has no parameters: its config is the whole of it, a frozen dataclass with

  Draw                                  its options in config section 'sample'
  plan(keys [B], step, spec) -> Plan    for training; `step` is that of the training
  sample(net, options) -> tokens        decodes with what `Decoding` offers

It knows neither head nor trunk. A new order is one file and one row of ORDERS.
"""

from typing import Any

from fluid.models.orders.base import Decoding, Order, Stage, stage
from fluid.models.orders.permuted import Permuted
from fluid.models.orders.random import Random
from fluid.models.orders.raster import Raster
from fluid.models.orders.scales import Scales

ORDERS: dict[str, Any] = {
  "raster": Raster,
  "random": Random,
  "permuted": Permuted,
  "scales": Scales,
}

__all__ = ["ORDERS", "Decoding", "Order", "Stage", "stage"]
