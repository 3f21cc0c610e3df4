"""Cells of published tables: what to convert, how to evaluate, what to expect.

  python -m configs.reproduce.tables > docs/reproduce-cells.md

Figures are the authors', of ImageNet at 256 pixels with 50,000 images unless a cell
says otherwise; Fluid's are of its Table 1. `hours` of the output are an estimate: FLOPs
of drawing (fluid.flops.drawing) at 40 % of a v5e chip's peak.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from fluid import config, flops, models
from fluid.convert.tokenizers import FAMILIES
from fluid.models.published import RUNS

MFU, CHIP = 0.4, "TPU v5e"


@dataclasses.dataclass(frozen=True)
class Cell:
  """A number of a table.

  Attributes:
    model: of fluid.models.published.RUNS, and kind of fluid.convert.
    weights: the authors' file.
    tokenizer: its kind and the authors' file.
    protocol: of fluid.evals.protocols.
    expected: metric -> figure.
    changes: keys of the config that differ from the model's.
    note: what else to know.
    place: name of the tokenizer's folder, where another file of its kind has that.
  """

  model: str
  weights: str
  tokenizer: tuple[str, str]
  protocol: str
  expected: dict[str, float]
  changes: tuple[tuple[str, Any], ...] = ()
  note: str = ""
  place: str = ""

  @property
  def _size(self) -> int:
    """Of its images, where that is not the model's own; else 0."""
    return dict(self.changes).get("data.image_size", 0)

  @property
  def tokenizer_folder(self) -> str:
    """Where its converted tokenizer lies: a tokenizer is for one size of image."""
    kind, _ = self.tokenizer
    size = f"-{self._size}" if self._size else ""
    return f"tokenizers/{self.place or kind}{size}"

  @property
  def folder(self) -> str:
    """Where its converted model lies: one for each tokenizer and size."""
    kind, _ = self.tokenizer
    own = RUNS[self.model]().tokenizer == FAMILIES[kind].config
    size = f"-{self._size}" if self._size else ""
    return f"models/{self.model}{'' if own else f'-{kind}'}{size}"

  def convert_tokenizer(self) -> str:
    """The command; of cells with one tokenizer it is the same."""
    kind, file = self.tokenizer
    given = f" image_size={self._size}" if self._size else ""
    return f"python -m fluid.convert {kind} {file} {self.tokenizer_folder}{given}"

  def convert(self) -> str:
    """The model's command."""
    given = "".join(f" {k}={v}" for k, v in self.changes)
    return (
      f"python -m fluid.convert {self.model} {self.weights} {self.folder} "
      f"tokenizer.path={self.tokenizer_folder}{given}"
    )

  def evaluate(self) -> str:
    """The command that gives the figure."""
    return (
      f"python -m fluid.evaluate --workdir {self.folder} --protocol={self.protocol}"
    )

  def hours(self, images: int = 50_000) -> float:
    """Chip hours of drawing, at least: where batches are small, reading weights and
    keys takes longer than the products.
    """
    run = config.replaced(RUNS[self.model](), dict(self.changes))
    work = flops.drawing(models.Net.of(run, platform="tpu"), run.sample) * images
    return work / (MFU * flops.PEAKS[CHIP]) / 3600


# Where the authors publish their files.
HOMES = {
  "mar": "github.com/LTH14/mar",
  "llamagen": "github.com/FoundationVision/LlamaGen",
  "maskgit": "github.com/google-research/maskgit",
  "rar": "github.com/bytedance/1d-tokenizer",
  "var": "github.com/FoundationVision/VAR",
}


def _mar(size: str, name: str, fid: float, score: float) -> Cell:
  return Cell(
    f"mar_{size}",
    f"mar_{name}/checkpoint-last.pth",
    ("kl16", "vae/kl16.ckpt"),
    "imagenet50k-fidelity",
    {"FID": fid, "IS": score},
  )


def _llamagen(size: str, fid: float, pixels: int, name: str = "") -> Cell:
  changes: tuple[tuple[str, Any], ...] = ()
  if pixels != 256:
    changes = (("data.image_size", pixels),)
  return Cell(
    f"llamagen_{size}",
    f"c2i_{name or size.upper()}_{pixels}.pt",
    ("llamagen_vq", "vq_ds16_c2i.pt"),
    "imagenet50k",
    {"FID": fid},
    changes,
    "" if pixels == 256 else f"drawn at {pixels} pixels, scaled to 256",
  )


def _rar(size: str, fid: float) -> Cell:
  tokenizer = ("maskgit_vq", "maskgit-vqgan-imagenet-f16-256.bin")
  return Cell(
    f"rar_{size}",
    f"rar_{size}.bin",
    tokenizer,
    "imagenet50k",
    {"FID": fid},
    place="maskgit_vq-rar",
  )


def _var(depth: int, fid: float) -> Cell:
  return Cell(
    f"var_d{depth}",
    f"var_d{depth}.pth",
    ("var_vq", "vae_ch160v4096z32.pth"),
    "imagenet50k",
    {"FID": fid},
  )


CELLS = (
  _mar("b", "base", 2.31, 281.7),
  _mar("l", "large", 1.78, 296.0),
  _mar("h", "huge", 1.55, 303.7),
  _llamagen("b", 5.46, 256),
  _llamagen("b", 6.09, 384),
  _llamagen("l", 3.80, 256),
  _llamagen("l", 3.07, 384),
  _llamagen("xl", 2.62, 384),
  _llamagen("xxl", 2.34, 384),
  _llamagen("3b", 2.18, 384),
  Cell(
    "maskgit",
    "maskgit_imagenet256_checkpoint",
    ("maskgit_vq", "tokenizer_imagenet256_checkpoint"),
    "imagenet50k",
    {"FID": 6.06},
  ),
  Cell(
    "maskgit_512",
    "maskgit_imagenet512_checkpoint",
    ("maskgit_vq512", "tokenizer_imagenet512_checkpoint"),
    "imagenet50k-512",
    {"FID": 7.32},
  ),
  _rar("b", 1.95),
  _rar("l", 1.70),
  _rar("xl", 1.50),
  _rar("xxl", 1.48),
  _var(16, 3.55),
  _var(20, 2.95),
  _var(24, 2.33),
  _var(30, 1.97),
  Cell(
    "var_d36_512",
    "var_d36.pth",
    ("var_vq512", "vae_ch160v4096z32.pth"),
    "imagenet50k-512",
    {"FID": 2.63},
  ),
)


def _rfid(model: str, weights: str, kind: str, file: str, figure: float) -> Cell:
  """Of a tokenizer, beside a model whose parameters fit its tokens."""
  return Cell(model, weights, (kind, file), "imagenet50k-rfid", {"rFID": figure})


TOKENIZERS = (
  _rfid("llamagen_b", "c2i_B_256.pt", "llamagen_vq", "vq_ds16_c2i.pt", 2.19),
  _rfid("llamagen_b", "c2i_B_256.pt", "llamagen_vq8", "vq_ds8_c2i.pt", 0.59),
  _rfid(
    "maskgit",
    "maskgit_imagenet256_checkpoint",
    "maskgit_vq",
    "tokenizer_imagenet256_checkpoint",
    2.28,
  ),
  _rfid(
    "maskgit_512",
    "maskgit_imagenet512_checkpoint",
    "maskgit_vq512",
    "tokenizer_imagenet512_checkpoint",
    1.97,
  ),
)

# Fluid's Table 1 (zero-shot COCO FID-30K, GenEval of 553 x 4): what our own runs of
# configs/fluid.py aim at; there are no weights.
FLUID = {
  "369M": (7.23, 0.62),
  "665M": (6.84, 0.65),
  "1.1B": (6.59, 0.67),
  "3.1B": (6.41, 0.70),
  "10.5B": (6.16, 0.69),
}


def markdown(hours: Callable[[Cell], float] = Cell.hours) -> str:
  """The page."""
  lines = [
    "# Published figures",
    "",
    "By `python -m configs.reproduce.tables`. Figures are the authors': none was",
    "measured here, as no published file was at hand. ImageNet at 256 pixels, 50,000",
    "images, as many of each class. Chip hours: FLOPs of drawing at",
    f"{MFU:.0%} of the peak of a {CHIP.removeprefix('TPU ')} chip, a floor where small",
    "batches wait for memory.",
    "Where their authors publish the files:",
    ", ".join(HOMES.values()) + ".",
    "",
    "| model | weights | expected | by protocol | chip hours | |",
    "|---|---|---|---|---|---|",
  ]
  for cell in CELLS:
    figures = ", ".join(f"{k} {v:g}" for k, v in cell.expected.items())
    lines.append(
      f"| {cell.model} | `{cell.weights}` | {figures} | {cell.protocol} | "
      f"{hours(cell):.1f} | {cell.note} |"
    )
  lines += [
    "",
    "Left out: VAR d30's 1.80, of images that a classifier has chosen (rejection",
    "sampling); and settings without a figure, MAR's without guidance",
    "(`--override=sample.guidance=1 --override=sample.temperature=0.95`) and that of",
    "LlamaGen's text models (guidance 7.5, top-k 1000: how they draw by default).",
    "",
    "| tokenizer | weights | expected | by protocol |",
    "|---|---|---|---|",
  ]
  for cell in TOKENIZERS:
    kind, file = cell.tokenizer
    lines.append(
      f"| {kind} | `{file}` | rFID {cell.expected['rFID']} | {cell.protocol} |"
    )
  lines += [
    "",
    "A tokenizer is judged in the folder of a model; VQ-8's can only be judged, as no",
    "model draws its tokens.",
    "",
    "The commands: tokenizers first, then each figure's. `imagenet50k` compares with",
    "ADM's file, `imagenet50k-fidelity` with MAR's, both in the folder",
    "`$FLUID_WEIGHTS`, as is Inception (docs/evaluation.md).",
    "",
    "```bash",
  ]
  cells = (*CELLS, *TOKENIZERS)
  lines += dict.fromkeys(cell.convert_tokenizer() for cell in cells)
  said: set[str] = set()  # A model whose tokenizer is judged is there already.
  for cell in cells:
    lines.append("")
    if (command := cell.convert()) not in said:
      lines.append(command)
    lines.append(cell.evaluate())
    said.add(command)
  lines += [
    "```",
    "",
    "## Fluid's Table 1",
    "",
    "Targets of `configs/fluid.py:tokens=continuous,order=random,size=SIZE`, whose",
    "weights were not released:",
    "",
    "```bash",
    "python -m fluid.evaluate --workdir RUN --protocol=coco30k-fid \\",
    "  --override=data.source.kind=coco \\",
    "  --override=data.source.val_annotations=captions_val2014.json \\",
    "  --override=data.source.val_images=val2014",
    "python -m fluid.evaluate --workdir RUN --protocol=geneval",
    "```",
    "",
    "Captions and real images are those of these annotations, whatever RUN was trained",
    "on.",
    "",
    "| size | FID-30K | GenEval |",
    "|---|---|---|",
    *(f"| {size} | {fid:.2f} | {score:.2f} |" for size, (fid, score) in FLUID.items()),
  ]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  print(markdown(), end="")
