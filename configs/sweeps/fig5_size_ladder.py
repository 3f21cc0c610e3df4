"""The paper's figures 5 and 6: four cells at six sizes, 166M to 10.5B.

It needs captioned images and the frozen text encoder, and trains the tokenizers unless
published ones are named (docs/reproduce.md):

  python -m launch.sweep --config configs/sweeps/fig5_size_ladder.py --workdir DIR \
    --on gke --override data.source.path=IMAGES --override text.path=T5 --set ...

Steps, batch and rate are those of configs/fluid.py; mesh and slice are recommended by
launch/topologies.md for v5p, or another generation: --topology v6e.
"""

from configs import fluid, sizes


def sweep():
  yield from fluid.cells(sizes.PAPER, text="t5")
