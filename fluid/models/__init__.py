"""Models: head x order x trunk x condition, as pure functions.

`Net.of(run)` is the model of a run; Linen does not leave this package.
"""

from fluid.models.conditions import CONDITIONS, Cond
from fluid.models.heads import HEADS
from fluid.models.net import Net, build
from fluid.models.orders import ORDERS
from fluid.models.plan import Plan
from fluid.models.trunks import TRUNKS

__all__ = [
  "CONDITIONS", "HEADS", "ORDERS", "TRUNKS", "Cond", "Net", "Plan", "build",
]  # fmt: skip
