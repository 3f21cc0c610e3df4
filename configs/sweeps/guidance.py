"""Guidance and temperature of the four cells: one size is trained, then tuned.

`fluid.evaluate --sweep` draws with many samplings of a checkpoint and keeps every point
in runs/NAME/eval; the paper's best are in configs/fluid.py.

It needs captioned images and the frozen text encoder, and trains the tokenizers unless
published ones are named (docs/reproduce.md):

  python -m launch.sweep --config configs/sweeps/guidance.py --workdir DIR \
    --on gke --override data.source.path=IMAGES --override text.path=T5 --set ...

Steps, batch and rate are those of configs/fluid.py; mesh and slice are recommended by
launch/topologies.md for v5p, or another generation: --topology v6e.
"""

from configs import fluid

GRID = "guidance=1:8:0.5,temperature=0.9:1.05:0.025"


def sweep():
  for point in fluid.cells(("369M",), text="t5", evals="distances"):
    yield point | {"tune": (GRID, "kid")}
