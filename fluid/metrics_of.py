"""Scores any two sets of images, whoever made them.

  python -m fluid.metrics_of SET [REAL] [--metrics=fid,kid@EffNet] [--protocol=adm]

A set is a folder of images or an .npz of ADM's evaluator; REAL may also be a file of
statistics ('mu', 'sigma'). Without --metrics all that can be had of the two are
measured, and those whose network's weights are not there are named. Files of weights
are looked for in --weights (default: the environment's FLUID_WEIGHTS). A folder in
GenEval's layout (00000/metadata.jsonl, 00000/samples/0000.png) has its score as well:
by --detector, or from --detections of another one.
--statistics=FILE.npz writes mean and covariance of SET, to be REAL another time.
Nothing of a model is needed, and every image counts once, whatever the batch.
"""

import os
from typing import Any

import numpy as np
from absl import flags

from fluid import config, files
from fluid.console import cli
from fluid.evals import features as feature_nets
from fluid.evals import geneval, measures, metrics, sets
from fluid.evals.detectors import DETECTORS, finder
from fluid.parallel import distributed

OF_GENEVAL = ("detector", "detections")


def geneval_of(x: sets.ImageSet, detector: str, detections: str) -> list[dict]:
  """Records of GenEval: each tag, and overall with its interval."""
  assert x.images is not None
  images: Any = x.images
  size: int | tuple[int, int] = 0
  if not detections:
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
      raise config.ConfigError(f"{x.name} has images of several sizes: {shapes}")
    height, width, _ = shapes.pop()
    if detector == "shapes" and height != width:
      raise config.ConfigError(
        f"{x.name} has images of {height} x {width} pixels; the shapes detector is for "
        "square ones"
      )
    images = np.stack(list(images))
    size = height if height == width else (height, width)
  find, classify = finder(x.lines, size, detector=detector, detections=detections)
  found = geneval.detect(find, images, x.lines, classify, distributed.track)
  rows = geneval.judged(found, x.lines)
  values = geneval.summarize(rows)
  by = detections or detector
  out = []
  for name, value in values.items():
    if name in ("overall_lo", "overall_hi"):
      continue
    n = sum(r["tag"] == name for r in rows) or len(rows)
    out.append({"metric": f"geneval/{name}", "value": value, "images": n, "by": by})
  out[-1] |= {"lo": values["overall_lo"], "hi": values["overall_hi"]}
  return out


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
  alone = bool(f.statistics) and len(argv) == 2 and not f.metrics
  unused = "statistics" if alone else "metrics"
  cli.useful(without=dict.fromkeys((*OF_GENEVAL, *["json"] * alone), unused))
  cli.useful(without={"detector": "detections"})
  if f.weights:
    os.environ[feature_nets.FOLDER] = f.weights
  x, *rest = (sets.open_set(path) for path in argv[1:])
  y = rest[0] if rest else None
  for name in OF_GENEVAL:
    if cli.given(name) and not x.lines:
      raise cli.UserError(
        f"flag --{name} is of GenEval, and {x.name} is no folder in its layout "
        "(00000/metadata.jsonl, 00000/samples/0000.png)"
      )
  if f.detections:  # One that is of no use is refused now, not after hours.
    geneval.read_detections(f.detections, len(x))
  options = dict(cache=f.cache, batch=f.batch, track=distributed.track)
  if f.statistics:
    write_statistics(f.statistics, x, f.protocol, **options)
    if alone:
      return
  records = measures.measure(
    f.metrics or measures.possible(x, y),
    x,
    y,
    protocol=f.protocol,
    seed=f.seed,
    missing="raise" if f.metrics else "say",
    **options,
  )
  if x.lines and not f.metrics:
    try:
      records += geneval_of(x, f.detector, f.detections or "")
    except feature_nets.MissingWeights as e:
      records.append({"metric": "geneval", "value": None, "missing": str(e)})
  print(measures.table(records))
  if f.json:
    files.write_json(f.json, {"set": x.name, "records": records})


if __name__ == "__main__":
  flags.DEFINE_list("metrics", None, f"Of {', '.join(metrics.METRICS)}; @NETWORK.")
  flags.DEFINE_enum(
    "protocol", "torch_fidelity", list(metrics.PROTOCOLS), "Resize and splits."
  )
  flags.DEFINE_string("weights", None, "Folder of the networks' files.")
  flags.DEFINE_string("cache", None, "Folder where features are kept.")
  flags.DEFINE_string("statistics", None, "Write those of SET to this .npz.")
  flags.DEFINE_enum("detector", "mask2former", list(DETECTORS), "Of GenEval.")
  flags.DEFINE_string("detections", None, "File of another detector's, see docs.")
  flags.DEFINE_integer("batch", 0, "Images a call (0: by the device).", lower_bound=0)
  flags.DEFINE_integer("seed", 0, "Of bootstraps and draws.")
  flags.DEFINE_string("json", None, "Write the records to this file.")
  cli.run(main, words=True)
