"""A data set as one HTML page: what is in it, and what a model gets of it.

  python -m fluid.data.browse --config=configs/toy.py:tokens=discrete \\
    --config.data.cache=DIR --config.tokenizer.path=DIR2 [--split=val --count=64]

Examples with their captions (as text ids say them again, words that are unknown or cut
marked), pixels beside what the tokenizer makes of the stored tokens, lengths, sizes,
rejects and why, use of the codebook or moments of the channels. Of a source that is not
prepared yet the same is shown as far as it can be. The page is one file, which loads
nothing.
"""

import sys

from absl import flags

from fluid.console import cli
from fluid.data.browse import browse

CONFIG = cli.config_flag()


def main(argv: list[str]) -> None:
  """Writes the page that the flags ask for."""
  del argv
  args = flags.FLAGS
  out = args.out or f"browse-{args.split}.html"
  command = ["python", "-m", "fluid.data.browse", *sys.argv[1:]]
  run = cli.read(CONFIG)
  browse(run, out, split=args.split, n=args.count, seed=args.seed, command=command)
  print(out)


if __name__ == "__main__":
  flags.DEFINE_string("split", "train", "Split of the data.")
  flags.DEFINE_integer("count", 64, "Examples to show.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Of which examples.")
  flags.DEFINE_string("out", None, "File to write (default: browse-SPLIT.html).")
  cli.run(main)
