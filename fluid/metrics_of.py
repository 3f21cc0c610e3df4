"""Scores any two sets of images, whoever made them.

  python -m fluid.metrics_of SET [REAL] [--metrics=fid,kid@EffNet] [--protocol=adm]

A set is a folder of images or an .npz of ADM's evaluator; REAL may also be a file of
statistics ('mu', 'sigma'). Without --metrics all that can be had of the two are
measured, and those whose network's weights are not there are named. Files of weights
are looked for in --weights (default: the environment's FLUID_WEIGHTS).
--statistics=FILE.npz writes mean and covariance of SET, to be REAL another time.
Nothing of a model is needed, and every image counts once, whatever the batch.
"""

import os

from absl import flags

from fluid import files
from fluid.console import cli
from fluid.evals import features as feature_nets
from fluid.evals import measures, sets
from fluid.parallel import distributed


def possible(x: sets.ImageSet, y: sets.ImageSet | None) -> list[str]:
  """Names of metrics that can be had of two sets, on their usual networks and EffNet.

  Pixels are compared where sets are asked for that by name alone: two folders with as
  many images are rarely pairs.
  """
  out = []
  for name, metric in measures.METRICS.items():
    real = metric.needs == "real" and y is not None
    images = metric.needs == "images" and y is not None and y.images is not None
    texts = metric.needs == "texts" and len(x.texts) == len(x)
    if real or images or texts or not metric.needs:
      if name != "kid_subsets":
        out.append(name)
  return out + [f"{name}@EffNet" for name in ("kid", "fd", "vendi") if name in out]


def write_statistics(path: str, x: sets.ImageSet, protocol: str, **options) -> None:
  """Mean and covariance of Inception's features of a set, as measures reads them."""
  found, net = measures.statistics(x, protocol, **options)
  made_with = {"features": net.name, "weights": net.digest, "images": len(x)}
  sets.write_statistics(path, found, made_with)


def main(argv: list[str]) -> None:
  """Entry point."""
  f = flags.FLAGS
  if len(argv) not in (2, 3):
    raise cli.UserError(
      "usage: python -m fluid.metrics_of SET [REAL]; a set is a folder of images or "
      "an .npz; see --help"
    )
  if f.weights:
    os.environ[feature_nets.FOLDER] = f.weights
  x, *rest = (sets.open_set(path) for path in argv[1:])
  y = rest[0] if rest else None
  options = dict(cache=f.cache, batch=f.batch, track=distributed.track)
  if f.statistics:
    write_statistics(f.statistics, x, f.protocol, **options)
    if y is None and not f.metrics:
      return
  records = measures.measure(
    f.metrics or possible(x, y),
    x,
    y,
    protocol=f.protocol,
    seed=f.seed,
    missing="raise" if f.metrics else "say",
    **options,
  )
  print(measures.table(records))
  if f.json:
    files.write_json(f.json, {"set": x.name, "records": records})


if __name__ == "__main__":
  flags.DEFINE_list("metrics", None, f"Of {', '.join(measures.METRICS)}; @NETWORK.")
  flags.DEFINE_enum(
    "protocol", "torch_fidelity", list(measures.PROTOCOLS), "Resize and splits."
  )
  flags.DEFINE_string("weights", None, "Folder of the networks' files.")
  flags.DEFINE_string("cache", None, "Folder where features are kept.")
  flags.DEFINE_string("statistics", None, "Write those of SET to this .npz.")
  flags.DEFINE_integer("batch", 0, "Images a call (0: by the device).", lower_bound=0)
  flags.DEFINE_integer("seed", 0, "Of bootstraps and draws.")
  flags.DEFINE_string("json", None, "Write the records to this file.")
  cli.run(main, words=True)
