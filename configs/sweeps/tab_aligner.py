"""The paper's table of aligners: 0, 3 and 6 trainable blocks over the text.

Random order on continuous tokens at 1.1B, which the paper's FID of 9.38, 8.61 and 8.42
is taken to be of (the size is unconfirmed).

It needs captioned images and the frozen text encoder, and trains the tokenizers unless
published ones are named (docs/reproduce.md):

  python -m launch.sweep --config configs/sweeps/tab_aligner.py --workdir DIR \
    --on gke --override data.source.path=IMAGES --override text.path=T5 --set ...

Steps, batch and rate are those of configs/fluid.py; mesh and slice are recommended by
launch/topologies.md for v5p, or another generation: --topology v6e.
"""

ARGUMENTS = "tokens=continuous,order=random,size=1.1B,text=t5"


def sweep():
  for layers in (0, 3, 6):
    yield dict(
      name=f"aligner-{layers}",
      config=f"configs/fluid.py:{ARGUMENTS}",
      overrides={"model.condition.layers": layers},
      hardware="recommended",
    )
