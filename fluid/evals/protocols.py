"""Protocols of published tables: evaluators and their settings, by name.

A number is on protocol if every setting is; what is not is said with the number. With
`quick` few images are drawn, to try a command: its numbers compare with nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from fluid import config
from fluid.evals.base import Evaluation
from fluid.evals.distribution import PINNED, DistributionConfig, ReconstructionConfig
from fluid.evals.geneval.evaluator import GenEvalConfig

_NONE: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A row of PROTOCOLS.

  Attributes:
    what: a line for listings.
    evals: evaluators by name.
    quick: what a quick form changes of them: name -> fields.
    image_size: in pixels (0: any).
    source: of captions and real images (fluid.data.SOURCES; '': any, or a file's).
    classes: of a model of classes (0: any).
  """

  what: str
  evals: dict[str, Evaluation]
  quick: dict[str, dict[str, Any]]
  image_size: int = 0
  source: str = ""
  classes: int = 0


def _imagenet(protocol: str, reference: str, *metrics: str) -> dict[str, Evaluation]:
  return {
    "distribution": DistributionConfig(
      examples=50_000,
      prompts="classes",
      metrics=metrics,
      features="Inception",  # Of precision and recall, which may be of any.
      protocol=protocol,
      reference=reference,
      tokenizer=False,
    )
  }


_ADM = ("fid", "sfid", "inception_score", "precision_recall")
_FEW = {"distribution": {"examples": 128, "real": 128}}
PROTOCOLS: dict[str, Protocol] = {
  "imagenet50k": Protocol(
    "50,000 images, as many of each class, by ADM's evaluator (LlamaGen, RAR, VAR)",
    _imagenet(
      "adm",
      "$FLUID_WEIGHTS/VIRTUAL_imagenet256_labeled.npz",
      *_ADM,
    ),
    _FEW,
    256,
    classes=1000,
  ),
  "imagenet50k-512": Protocol(
    "the same at 512 pixels",
    _imagenet(
      "adm",
      "$FLUID_WEIGHTS/VIRTUAL_imagenet512.npz",
      *_ADM,
    ),
    _FEW,
    512,
    classes=1000,
  ),
  "imagenet50k-fidelity": Protocol(
    "the same images by torch-fidelity (MAR)",
    _imagenet(
      "torch_fidelity",
      "$FLUID_WEIGHTS/adm_in256_stats.npz",
      "fid",
      "inception_score",
    ),
    _FEW,
    256,
    classes=1000,
  ),
  "imagenet50k-rfid": Protocol(
    "the tokenizer: 50,000 validation images against themselves, decoded again (rFID)",
    {
      "reconstruction": ReconstructionConfig(
        examples=50_000, metrics=("fid",), protocol="adm"
      )
    },
    {"reconstruction": {"examples": 128}},
    source="imagenet",
  ),
  "coco30k-fid": Protocol(
    "30,000 captions of COCO's validation split, drawn by seed, against their images",
    {
      "distribution": DistributionConfig(
        examples=PINNED,
        real=PINNED,
        prompts="pinned",
        metrics=("fid", "cmmd", "clip_score"),
        tokenizer=False,
      )
    },
    _FEW,
    256,
    source="coco",
  ),
  "geneval": Protocol(
    "GenEval's 553 prompts, four images each",
    {
      "geneval": GenEvalConfig(
        prompts="official", k=4, detector="mask2former", layout=True
      )
    },
    {"geneval": {"k": 1}},
  ),
  "toy": Protocol(
    "the toy study's: 32 prompts a tag, two images each",
    {
      "geneval": GenEvalConfig(n=32, k=2),
      "distribution": DistributionConfig(
        prompts="geneval", examples=384, metrics=("all",)
      ),
    },
    {"geneval": {"n": 4}, "distribution": {"examples": 48}},
    32,
    source="shapes",
  ),
}


def apply(run: config.Run, name: str, *, quick: bool = False) -> config.Run:
  """The run with the evaluators of a protocol."""
  if name not in PROTOCOLS:
    raise config.ConfigError(
      f"unknown protocol '{name}'; choose from {', '.join(PROTOCOLS)}"
    )
  entry = PROTOCOLS[name]
  evals = {
    key: dataclasses.replace(part, **(entry.quick.get(key, _NONE) if quick else _NONE))
    for key, part in entry.evals.items()
  }
  return dataclasses.replace(run, evals=_scaled(run, entry, evals))


def _scaled(run, entry: Protocol, evals) -> dict[str, Evaluation]:
  """Of what is drawn larger than a protocol's images, these are to be scaled."""
  part = evals.get("distribution")
  fits = part is not None and not part.tokenizer
  if not fits or not 0 < entry.image_size < run.data.image_size:
    return evals
  scaled = dataclasses.replace(part, image_size=entry.image_size)
  return evals | {"distribution": scaled}


def short(records: Sequence[dict], name: str) -> list[str]:
  """What was measured of other numbers of images than a protocol's; empty: nothing."""
  (part, *_) = PROTOCOLS[name].evals.values()
  if not isinstance(part, DistributionConfig | ReconstructionConfig):
    return []
  if getattr(part, "prompts", "pinned") not in ("classes", "pinned"):
    return []
  found = {r["images"] for r in records if "images" in r} - {part.examples}
  return [f"{n} images (protocol: {part.examples})" for n in sorted(found)]


def deviations(run: config.Run, name: str, *, classes: int = 0) -> Sequence[str]:
  """How a run's evaluators differ from a protocol's; empty: on protocol.

  Args:
    classes: that a model of classes knows.
  """
  entry, out = PROTOCOLS[name], []
  wanted_evals = _scaled(run, entry, entry.evals)
  same = run.data.image_size == entry.image_size or wanted_evals is not entry.evals
  if entry.image_size and not same:
    out.append(f"images of {run.data.image_size} pixels (protocol: {entry.image_size})")
  if entry.source and (kind := run.data.source.kind) != entry.source:
    out.append(f"images of '{kind}' (protocol: {entry.source})")
  if entry.classes and classes != entry.classes:
    out.append(f"{classes} classes (protocol: {entry.classes})")
  for key, part in wanted_evals.items():
    mine = run.evals.get(key)
    if mine is None:
      out.append(f"no {key}")
      continue
    for field, wanted in vars(part).items():
      if (found := getattr(mine, field)) != wanted and field not in ("every", "raw"):
        out.append(f"evals.{key}.{field} is {found!r} (protocol: {wanted!r})")
  return out
