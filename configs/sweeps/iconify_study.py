"""The four cells at four sizes on real captioned drawings, 64 px, beside toy_study.

20,000 drawings in six styles (source iconify, fetched by npm), read with MiniLM's text
features (requirements-minilm.txt). docs/study.md says what it takes.
"""

from configs import toy

# Rows have four times the tokens of toy_study's, so fewer steps; and in so few, twice
# its rate was better in every cell there (configs/sweeps/toy_rates.py).
OVERRIDES = {
  "steps": 1500,
  "eval_every": 500,
  "checkpoint_every": 500,
  "optim.lr": 4e-3,
  "optim.muon": 1e-2,
  "optim.ema": 0.995,
}


def sweep():
  sizes = ("xxs", "xs", "s", "m")
  yield from toy.cells(sizes, OVERRIDES, data="iconify", text="minilm")
