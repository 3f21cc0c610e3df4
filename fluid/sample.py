"""Prompts to images.

  python -m fluid.sample --workdir DIR --prompt "a red circle left of a blue square" \\
    --n 4 --out DIR2

writes DIR2/00000_00.png and so on (prompt, image), batch by batch, grid.png (a row for
each of the first prompts) and samples.json. On several devices the model is laid out as
in training.
"""

import functools
import pathlib
import typing

import jax
import numpy as np
from absl import flags
from PIL import Image

from fluid import api, config, files, models, sampling, shipped
from fluid.console import cli
from fluid.evals.images import grid
from fluid.parallel import distributed, sharding

GRID = 64  # Prompts in the grid.


def options() -> dict[str, type]:
  """Name -> type of every sampling option that some model has; each has its flag."""
  parts = [*models.HEADS.values(), *models.ORDERS.values()]
  owners = [config.Sample, *(config.resolve_row(row).Draw for row in parts)]
  hints = [typing.get_type_hints(owner) for owner in owners]
  return {k: v for h in hints for k, v in h.items() if v in (float, int, str)}


def sample(
  loaded: api.Loaded, prompts: list[str], out, *, n: int = 4, seed: int = 0, **options
) -> pathlib.Path:
  """Draws n images of each prompt and writes them under `out`.

  Args:
    loaded: from fluid.load.
    prompts: texts.
    out: folder, made if it is not there.
    n: images a prompt.
    seed: of the noise.
    **options: overrides of fluid.config.Sample.

  Returns:
    Path of the grid.
  """
  out = pathlib.Path(out)
  repeated = [p for p in prompts for _ in range(n)]
  names = [f"{i:05d}_{k:02d}.png" for i in range(len(prompts)) for k in range(n)]
  settings = loaded.config.sample.replace(**options)
  batch = options.pop("batch", sampling.few(len(repeated), settings.batch))
  writes = jax.process_index() == 0
  shown: list[np.ndarray] = []
  if writes:
    out.mkdir(parents=True, exist_ok=True)
  starts = range(0, len(repeated), batch)
  for first in distributed.track(starts, "sampling", len(starts)):
    these = slice(first, first + batch)
    images = loaded.sample(
      repeated[these], key=seed, first=first, batch=batch, **options
    )
    if writes:  # What is drawn is there, should the rest not come.
      for name, image in zip(names[these], images):
        Image.fromarray(image).save(out / name)
    shown += list(images[: max(0, GRID * n - len(shown))])
  if writes:
    Image.fromarray(grid(np.stack(shown), columns=n)).save(out / "grid.png")
    described = {
      "images": [{"file": f, "prompt": p} for f, p in zip(names, repeated)],
      "step": loaded.step,
      "weights": loaded.weights,
      "seed": seed,
      "sample": settings.flat(),
    }
    files.write_json(out / "samples.json", described)
  return out / "grid.png"


def read_prompts(path: str) -> list[str]:
  """One prompt a line, in UTF-8; empty lines are left out.

  Raises:
    UserError: it cannot be read.
  """
  try:
    lines = pathlib.Path(path).read_text("utf-8-sig").splitlines()
  except (OSError, UnicodeDecodeError) as e:
    said = config.one_line(e)
    raise cli.UserError(f"--prompts {path} cannot be read as UTF-8: {said}") from e
  return [line.strip() for line in lines if line.strip()]


def _mesh(trained: config.Mesh) -> jax.sharding.Mesh:
  """That of the training, or, where it was of more or fewer devices, of all here."""
  try:
    return sharding.make_mesh(trained)
  except config.ConfigError:
    return sharding.make_mesh(config.Mesh(data=1, fsdp=-1))


def main(argv) -> None:
  """Entry point."""
  del argv
  args = flags.FLAGS
  distributed.join_by_flags()
  prompts = list(args.prompt or ()) + (
    read_prompts(args.prompts) if args.prompts else []
  )
  if not prompts:
    raise cli.UserError("no prompts: give --prompt (as often as you like) or --prompts")
  if args.n < 1:
    raise cli.UserError(f"flag --n must be at least 1, not {args.n}")
  out = cli.require(OUT)
  files.on_disk(out, "--out")
  files.no_file(out, "--out")
  workdir, mesh = shipped.find(cli.require(WORKDIR)), None
  if jax.device_count() > 1:
    mesh = _mesh(api.read_config(workdir).mesh)
  loaded = api.load(workdir, args.weights, args.step, mesh=mesh)
  given = {name: args[name].value for name in options()}
  given = {k: v for k, v in given.items() if v is not None}
  path = sample(loaded, prompts, out, n=args.n, seed=args.seed, **given)
  if jax.process_index() == 0:
    print(f"{len(prompts) * args.n} images of step {loaded.step} in {path.parent}")


if __name__ == "__main__":
  WORKDIR = cli.workdir_flag()
  flags.DEFINE_multi_string("prompt", None, "Text; may be given several times.")
  flags.DEFINE_string("prompts", None, "File with one prompt a line.")
  flags.DEFINE_integer("n", 4, "Images a prompt.")
  OUT = flags.DEFINE_string("out", None, "Folder for the images.")
  flags.DEFINE_enum("weights", "ema", ["ema", "raw"], "Averaged or raw weights.")
  flags.DEFINE_integer("step", None, "Checkpoint (default: the newest).")
  flags.DEFINE_integer("seed", 0, "Of the noise.")
  define: dict[type, typing.Any] = {
    float: flags.DEFINE_float,
    int: functools.partial(flags.DEFINE_integer, lower_bound=0),
    str: flags.DEFINE_string,
  }
  for name, kind in options().items():
    define[kind](name, None, "Overrides the run's config.sample.")
  distributed.define_flags()
  cli.run(main)
