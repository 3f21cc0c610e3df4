"""The paper's figure 7: loss, FID and GenEval against training compute, four cells.

A point of the figure is a step of a run: the ladder, judged every 50,000 steps of its
constant rate by validation loss and the distances of 10,000 samples. GenEval of a
checkpoint that is kept: `python -m fluid.evaluate --workdir RUN --protocol=geneval`.

It needs captioned images and the frozen text encoder, and trains the tokenizers unless
published ones are named (docs/reproduce.md):

  python -m launch.sweep --config configs/sweeps/fig7_compute.py --workdir DIR \
    --on gke --override data.source.path=IMAGES --override text.path=T5 --set ...

Steps, batch and rate are those of configs/fluid.py; mesh and slice are recommended by
launch/topologies.md for v5p, or another generation: --topology v6e.
"""

from configs import fluid, sizes

EVERY = 50_000
JUDGED = {
  "eval_every": EVERY,
  "evals.distribution.every": EVERY,
  "evals.distribution.examples": 10_000,
}


def sweep():
  yield from fluid.cells(sizes.PAPER, JUDGED, text="t5", evals="distances")
